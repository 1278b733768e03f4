"""What the client makes of every answer, and of none: the errors of the table, and what is sent twice."""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diskyard import Diskyard, MiB, errors
from tests.client.scripted import LOST, Reply, Scripted, problem

Call = Callable[[Diskyard], object]
ANYTHING = "t"
NOBODY = "00000000-0000-4000-8000-000000000001"
AFTER = {"Retry-After": "0"}
HOST: dict[str, Any] = {"hostID": "kvm1", "version": "9.0", "formats": [], "connections": []}


def look(yard: Diskyard) -> object:
    return yard.get_host_info()


def create(yard: Diskyard) -> object:
    return yard.create_virtual_disk("a", MiB)


def remove(yard: Diskyard) -> object:
    yard.remove_image("a", NOBODY)
    return None


def copy(yard: Diskyard) -> object:
    return yard.copy_image("b", NOBODY)


def refused(folder: Path, call: Call, *replies: Reply, **words: Any) -> errors.DiskyardError:
    """The error that the replies come to, each of which was needed."""
    with (
        Scripted(folder, *replies) as server,
        Diskyard(server.url, **words) as yard,
        pytest.raises(errors.DiskyardError) as caught,
    ):
        call(yard)
    assert caught.value.message
    assert caught.value.advice
    return caught.value


@pytest.mark.parametrize("code", errors.CODES)
def test_a_problem_is_the_error_of_its_code(short_folder: Path, code: str) -> None:
    status = errors.CODES[code].http_status
    error = refused(short_folder, remove, problem(code, status, imageId=NOBODY, outcome="unknown", tries=3))
    assert isinstance(error, errors.CODES[code])
    assert isinstance(error, errors.UnknownOutcome)
    assert (error.message, error.advice, error.request_id) == ("It is so.", "Do this.", "r1")
    assert error.details == {
        "requestId": "r1", "hostID": "h", "imageId": NOBODY, "outcome": "unknown", "tries": "3",
    }  # fmt: skip


def test_a_code_of_a_newer_daemon(short_folder: Path) -> None:
    error = refused(short_folder, look, problem("TooFunny", 418))
    assert type(error) is errors.InternalError
    assert error.details["unknownCode"] == "TooFunny"
    assert "It is so." in error.message


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, errors.Unauthorized),
        (403, errors.Forbidden),
        (404, errors.InternalError),
        (413, errors.RequestTooLarge),
        (429, errors.TooManyRequests),
        (500, errors.InternalError),
        (502, errors.RepositoryUnavailable),
        (302, errors.InternalError),
    ],
)
@pytest.mark.parametrize(
    "body", [b"<html>\x1b[2J Bad Gateway", b'{"code": 7}', b"[" * 100_000, b"\xff", b""], ids=range(5)
)
def test_an_answer_of_something_else(
    short_folder: Path, status: int, kind: type[errors.DiskyardError], body: bytes
) -> None:
    media_type = "text/html" if body.startswith(b"<") else "application/problem+json"
    error = refused(short_folder, look, Reply(status, body, media_type))
    assert type(error) is (kind if status < 500 else errors.unknown_outcome(kind))
    assert f"HTTP {status}" in error.message
    assert "\x1b" not in error.message
    assert len(error.message) < 1000


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"hostID": 7}', b"\xff", b"[" * 100_000], ids=range(6))
def test_an_answer_that_cannot_be_read(short_folder: Path, body: bytes) -> None:
    assert type(refused(short_folder, look, Reply(200, body))) is errors.InternalError


def test_what_a_newer_daemon_says_besides_is_ignored(short_folder: Path) -> None:
    fix = {
        "fixId": "polish-1", "type": "mend", "description": "", "imageId": None, "runnable": True,
        "waitsFor": None, "heldBy": None, "freesBytes": 0, "movesBytes": 0, "needsBytes": 0, "mood": "good",
        "data": {"marker": "m", "action": {"do": "polish", "with": ["wax"]}, "more": 1},
    }  # fmt: skip
    task = {"taskId": "t", "verb": "mend", "repositoryId": "a", "imageId": None, "state": "done", "new": 1}
    replies = (Reply(200, {**HOST, "weather": "fine"}), Reply(200, [fix]), Reply(200, task))
    with Scripted(short_folder, *replies) as server, Diskyard(server.url) as yard:
        assert yard.get_host_info().host_id == "kvm1"
        (found,) = yard.check_storage_repository("a")
        assert found.runnable
        yard.fix_storage_repository("a", found)
    # The opaque part goes back as it came.
    assert server.asked[2].body["fix"]["data"] == fix["data"]


def test_a_verb_that_only_the_daemon_knows(short_folder: Path) -> None:
    with Scripted(short_folder, Reply(200, {"cups": [1]})) as server, Diskyard(server.url) as yard:
        assert yard.call("makeCoffee", {"sugar": 0.5}) == {"cups": [1]}
        for verb in ("", "../healthz", "a/b", "a?b", "ä"):
            with pytest.raises(errors.InvalidParameter):
                yard.call(verb)
        for parameters in ({"a": object()}, {"a": "\ud800"}):
            with pytest.raises(errors.InvalidParameter):
                yard.call("makeCoffee", parameters)
    (asked,) = server.asked
    assert (asked.path, asked.body) == ("/v1/makeCoffee", {"sugar": 0.5})


def test_what_is_not_of_the_verbs_form_is_not_sent(short_folder: Path) -> None:
    with Scripted(short_folder) as server, Diskyard(server.url) as yard:
        for call in (
            lambda: yard.create_virtual_disk("a", 511),
            lambda: yard.create_virtual_disk("a", MiB, options={"nonsense": 1}),
            lambda: yard.get_image_info("a", "x"),
        ):
            with pytest.raises(errors.InvalidParameter):
                call()
    assert server.asked == []


# -- what is sent twice ---------------------------------------------------------------------


@pytest.mark.parametrize("call", [look, create])
def test_what_may_be_done_twice_is_sent_again(short_folder: Path, call: Call) -> None:
    answer = Reply(200, HOST if call is look else NOBODY)
    busy = Reply(503, b"busy", "text/plain", AFTER)
    with Scripted(short_folder, LOST, busy, LOST, answer) as server, Diskyard(server.url) as yard:
        call(yard)
    assert len({str(asked.body) for asked in server.asked}) == 1
    assert len({asked.headers["x-request-id"] for asked in server.asked}) == 1
    if call is create:
        assert server.asked[0].body["options"]["newImageId"]


def test_an_id_of_the_callers_is_kept(short_folder: Path) -> None:
    with Scripted(short_folder, LOST, LOST, Reply(200, NOBODY)) as server, Diskyard(server.url) as yard:
        yard.copy_image("b", NOBODY, options={"new_image_id": NOBODY.replace("1", "2")})
    assert {asked.body["options"]["newImageId"] for asked in server.asked} == {NOBODY.replace("1", "2")}


@pytest.mark.parametrize("call", [remove, copy])
def test_what_may_not_be_done_twice_is_sent_once(short_folder: Path, call: Call) -> None:
    error = refused(short_folder, call, LOST)
    assert type(error) is errors.unknown_outcome(errors.RepositoryUnavailable)
    assert error.details["outcome"] == "unknown"
    assert error.request_id
    assert "check before" in error.advice


def test_a_proxy_that_does_not_say_what_it_did(short_folder: Path) -> None:
    error = refused(short_folder, remove, Reply(503, b"busy", "text/plain", AFTER))
    assert error.details["outcome"] == "unknown"


@pytest.mark.parametrize("call", [look, create, remove, copy])
def test_who_is_too_quick_waits(short_folder: Path, call: Call) -> None:
    answer: Any = HOST if call is look else None if call is remove else NOBODY
    busy = problem("TooManyRequests", 429, AFTER)
    with Scripted(short_folder, busy, busy, Reply(200, answer)) as server, Diskyard(server.url) as yard:
        call(yard)
    assert len(server.asked) == 3


@pytest.mark.parametrize("after", ["1000", "soon", "-1", "", "٣".encode().decode("latin-1")])
def test_nobody_waits_for_longer_than_he_may(short_folder: Path, after: str) -> None:
    busy = problem("TooManyRequests", 429, {"Retry-After": after})
    assert type(refused(short_folder, look, busy, timeout_s=5.0)) is errors.TooManyRequests


def test_storage_that_does_not_answer_is_not_asked_again(short_folder: Path) -> None:
    error = refused(short_folder, look, problem("RepositoryUnavailable", 503, AFTER, repositoryId="a"))
    assert error.details["repositoryId"] == "a"


def test_answers_that_are_lost_again_and_again(short_folder: Path) -> None:
    error = refused(short_folder, look, *[LOST] * 5)
    assert type(error) is errors.RepositoryUnavailable
    assert "outcome" not in error.details


def test_no_daemon(short_folder: Path) -> None:
    def expect(url: str, call: Call) -> None:
        unavailable = pytest.raises(errors.RepositoryUnavailable)
        with Diskyard(url, token=ANYTHING) as yard, unavailable as caught:
            call(yard)
        assert f"No daemon answers at {url}" in caught.value.message
        assert caught.value.details == {"url": url}
        assert "diskyard serve" in caught.value.advice

    for url in (f"unix://{short_folder}/none", "https://127.0.0.1:1"):
        for call in (look, remove):
            expect(url, call)
    gc.collect()  # nothing is left to be closed


def test_a_daemon_that_says_nothing(short_folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{short_folder}/s.sock")
        silent.listen()
        with Diskyard(f"unix://{short_folder}/s.sock", timeout_s=0.3) as yard:
            for call, outcome in ((look, None), (create, "unknown"), (remove, "unknown")):
                with pytest.raises(errors.RepositoryUnavailable, match=r"within 0\.3 s") as caught:
                    call(yard)
                assert caught.value.details.get("outcome") == outcome


@pytest.mark.parametrize(
    "url",
    [
        "", "unix:", "unix://", "unix://relative", "http://a:1", "https://", "https://a:99999", "https://a:b",
        "https://a/b", "https://a?b", "https://u@a", "ftp://a", "a:7443", "https://[::1",
    ],
)  # fmt: skip
def test_what_is_no_url_of_a_daemon(url: str) -> None:
    with pytest.raises(errors.InvalidParameter, match="not the URL of a daemon"):
        Diskyard(url)


def test_what_else_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for token in ("", "a\nb", "ä"):
        with pytest.raises(errors.InvalidParameter):
            Diskyard("https://localhost:1", token=token)
    for ca_file in ("/none", str(tmp_path / "empty")):
        with pytest.raises(errors.InvalidParameter):
            Diskyard("https://localhost:1", ca_file=ca_file)
