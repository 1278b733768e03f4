"""Requests that are wrong in every way: each is refused as it should be, and harms nobody else."""

from __future__ import annotations

import gzip
import json
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskyard.service import VERBS
from diskyard.testing.daemon_process import DaemonProcess
from tests.http.wire import (
    Answer,
    Canary,
    answers_on,
    connected,
    exchange,
    one,
    parsed,
    request,
    require_well,
)

LIMIT_BYTES = 64 << 10
IMAGE = "11111111-2222-4333-8444-555555555555"


@pytest.fixture(scope="module")
def running() -> Iterator[DaemonProcess]:
    """A daemon with one repository, ``a``, that all tests here attack one after the other."""
    with tempfile.TemporaryDirectory(prefix="diskyard-") as name:
        folder = Path(name)
        canary = Canary(folder / "canary")
        (folder / "transfer").mkdir()
        tables = {
            "transfer": {"folders": [str(folder / "transfer")]},
            "limits": {"request_bytes": LIMIT_BYTES, "event_streams": 4},
        }
        with DaemonProcess(folder, tables) as daemon:
            asked = {"repoFormat": "localfs-1.0", "connectionParameters": daemon.place("a")}
            daemon.call("createStorageRepository", **asked)
            daemon.call("connectStorageRepository", repoId="a", **asked)
            yield daemon
            require_well(daemon)
        canary.require_untouched()


@pytest.fixture(autouse=True)
def well(running: DaemonProcess) -> Iterator[None]:
    """After every attack the daemon is as well as before."""
    yield
    require_well(running)


def refused(answer: Answer, status: int = 422, code: str = "InvalidParameter") -> str:
    """An error of the table; what it says."""
    found = answer.problem()
    assert (answer.status, found["code"]) == (status, code), found
    return str(found["detail"])


def receive_until(connection: socket.socket, wanted: bytes) -> None:
    received = b""
    while wanted not in received:
        part = connection.recv(1 << 16)
        assert part, received
        received += part


def ask(daemon: DaemonProcess, verb: str, body: bytes) -> Answer:
    return one(exchange(daemon, request(f"/v1/{verb}", body)))


# -- bodies ------------------------------------------------------------------------------


def test_a_body_over_the_limit(running: DaemonProcess) -> None:
    body = b'{"x": "' + b"x" * LIMIT_BYTES + b'"}'
    refused(ask(running, "getHostInfo", body), 413, "RequestTooLarge")
    for size in (b"9" * 18, b"9" * 400):
        sent = request("/v1/getHostInfo", headers={"Content-Length": size.decode()})
        answer = one(exchange(running, sent))
        assert answer.status in (400, 413)
    chunked = request("/v1/getHostInfo", headers={"Transfer-Encoding": "chunked"})
    chunk = b"%x\r\n%s\r\n" % (1 << 12, b" " * (1 << 12))
    refused(one(exchange(running, chunked + chunk * 20)), 413, "RequestTooLarge")


def test_a_body_at_the_limit_is_read(running: DaemonProcess) -> None:
    body = b"{}".ljust(LIMIT_BYTES)
    assert ask(running, "getHostInfo", body).status == 200
    refused(ask(running, "getHostInfo", body + b" "), 413, "RequestTooLarge")


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b"[[", b'[{"a":'])
@pytest.mark.parametrize("depth", [100, 1_000, 10_000])
def test_deep_nesting(running: DaemonProcess, opening: bytes, depth: int) -> None:
    count = min(depth, LIMIT_BYTES // 2 // len(opening))
    refused(ask(running, "getHostInfo", opening * count))
    closing = {b"[": b"]", b"{": b"}"}
    closed = b"".join(closing[bytes((byte,))] for byte in reversed(opening) if bytes((byte,)) in closing)
    value = opening * count + b"1" + closed * count
    if len(value) < LIMIT_BYTES:
        answer = ask(running, "setUserData", b'{"repositoryId":"a","imageId":"%s","userData":%s}' % (
            IMAGE.encode(), value))  # fmt: skip
        assert answer.status in (404, 422)


def test_of_two_members_of_one_name_the_last_counts(running: DaemonProcess) -> None:
    answer = ask(
        running, "getImageInfo", b'{"repositoryId":"a","repositoryId":"b","imageId":"%s"}' % IMAGE.encode()
    )
    assert refused(answer, 404, "RepositoryNotConnected").startswith("No repository is connected as 'b'")


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b'{"repositoryId":"\xff","imageId":"x"}',
        b'{"repositoryId":"\xc0\xaf"}',
        b'{"repositoryId":"\xed\xa0\x80"}',
        b'{"\xff":1}',
        "{}".encode("utf-16"),
        "{}".encode("utf-32"),
        gzip.compress(b"{}"),
        b"null",
        b"[]",
        b'"x"',
        b"1",
        b"{} {}",
        b"{}x",
        b"{",
        b"{,}",
        b"{'a':1}",
        b"/* */{}",
        b"{}\0",
        b"\0",
        b" ",
        b'{"limit": 01}',
        b'{"a":"\x01"}',
        b'{"a":"\\x41"}',
        b'{"a":"\\ud800"}',
        b'{"\\udfff":1}',
    ],
)
def test_what_is_no_json_object(running: DaemonProcess, body: bytes) -> None:
    refused(ask(running, "listImages", body))


@pytest.mark.parametrize(
    "value",
    [
        "NaN", "-NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e-999", "10" * 200, "-" + "9" * 40,
        "9223372036854775808", "18446744073709551616", "1.5", "1e3", "-0", "0x10", "1_000", "true", "null",
        '"512"', "[]", "{}", "512.0", "5.12e2", "-512",
    ],
)  # fmt: skip
def test_numbers(running: DaemonProcess, value: str) -> None:
    """In no place is a number that is none taken, or one that is too large cut."""
    refused(ask(running, "createVirtualDisk", b'{"targetRepoId":"a","size":%s}' % value.encode()))
    body = b'{"repositoryId":"a","imageId":"%s","userData":1,"options":{"ifRevision":%s}}'
    answer = ask(running, "setUserData", body % (IMAGE.encode(), value.encode()))
    assert answer.problem()["code"] in ("InvalidParameter", "ImageNotFound")
    for verb, more in (("listImages", b'"limit"'), ("checkStorageRepository", b'"options"')):
        if value != "{}":
            refused(ask(running, verb, b'{"repositoryId":"a",%s:%s}' % (more, value.encode())))


@pytest.mark.parametrize(
    "value",
    ["1e999", "NaN", "123456789012345678901234567890", "1e400", '"\\ud800"', '{"\\udc00":1}', "-0.0", "1.0",
     "0.1", '"\\u0000"', '{"":{"":[[]]}}', "9007199254740993", "18446744073709551615", "1e-400"],
)  # fmt: skip
def test_user_data_comes_back_as_sent_or_is_refused(running: DaemonProcess, value: str) -> None:
    body = b'{"targetRepoId":"a","size":512,"userData":%s}' % value.encode()
    answer = ask(running, "createVirtualDisk", body)
    if answer.status != 200:
        refused(answer)
        return
    image_id = json.loads(answer.body)
    info = running.call("getImageInfo", repositoryId="a", imageId=image_id)
    running.call("removeImage", repositoryId="a", imageId=image_id)
    assert info["userData"] == json.loads(value)


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "*/*",
     "application/json-patch+json", "application/problem+json", "text/json", "application/json, text/plain",
     "APPLICATION", "\xff"],
)  # fmt: skip
def test_other_media_types(running: DaemonProcess, kind: str) -> None:
    sent = request("/v1/getHostInfo", b"{}", headers={"Content-Type": kind})
    refused(one(exchange(running, sent)))


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON", "application/json; charset=utf-8"])
def test_the_one_media_type(running: DaemonProcess, kind: str) -> None:
    sent = request("/v1/getHostInfo", b"{}", headers={"Content-Type": kind})
    assert one(exchange(running, sent)).status == 200
    assert one(exchange(running, request("/v1/getHostInfo"))).status == 200


# -- bodies that do not end -------------------------------------------------------------------


def test_bodies_without_end_keep_nobody_waiting(running: DaemonProcess) -> None:
    """Chunks that never end, lengths that are never reached, headers that stop: others are answered."""
    starts = [
        request("/v1/getHostInfo", headers={"Transfer-Encoding": "chunked"}) + b"1\r\n{\r\n",
        request("/v1/getHostInfo", headers={"Content-Length": "1000"}) + b"{",
        b"POST /v1/getHostInfo HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST",
        b"",
    ]
    held = []
    try:
        for start in starts * 12:
            context = connected(running)
            connection = context.__enter__()
            held.append((context, connection))
            connection.sendall(start)
        for _ in range(3):
            for _, connection in held[:20]:
                connection.sendall(b"")
            assert running.call("getHostInfo")["hostID"]
    finally:
        for context, _ in held:
            context.__exit__(None, None, None)


def test_a_body_that_comes_byte_by_byte_is_read(running: DaemonProcess) -> None:
    with connected(running) as connection:
        sent = request("/v1/getHostInfo", b'{"no":1}')
        for at in range(len(sent) - 1):
            connection.sendall(sent[at : at + 1])
        refused(one(answers_on(connection, sent[-1:])))


def test_a_body_that_is_cut_is_not_run(running: DaemonProcess) -> None:
    before = running.call("listImages", repositoryId="a")["images"]
    body = b'{"targetRepoId":"a","size":512}'
    for length in (len(body) + 1, len(body) * 100):
        sent = request("/v1/createVirtualDisk", body, headers={"Content-Length": str(length)})
        assert all(answer.status in (400, 422) for answer in exchange(running, sent, cut=True))
    chunked = request("/v1/createVirtualDisk", headers={"Transfer-Encoding": "chunked"})
    for tail in (b"", b"0\r\n", b"0\r\nTrailer: x\r\n"):
        sent = chunked + b"%x\r\n%s\r\n" % (len(body), body) + tail
        assert all(answer.status in (400, 422) for answer in exchange(running, sent, cut=True))
    assert running.call("listImages", repositoryId="a")["images"] == before


# -- connections ------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(running: DaemonProcess) -> None:
    sent = b"".join(
        request(path, body, headers={"X-Request-ID": f"n{number}", "Connection": "keep-alive"})
        for number, (path, body) in enumerate(
            [
                ("/v1/getHostInfo", b"{}"),
                ("/v1/nothing", b"{}"),
                ("/v1/listTasks", b"[]"),
                ("/v1/getHostInfo", b""),
            ]
        )
    )
    answers = exchange(running, sent + request("/healthz", method="GET"))
    assert [answer.status for answer in answers] == [200, 404, 422, 200, 200]
    assert [answer.headers["x-request-id"] for answer in answers[:4]] == ["n0", "n1", "n2", "n3"]


@pytest.mark.parametrize(
    ("first", "last"),
    [
        ("one long header", b"X: " + b"a" * (1 << 20) + b"\r\n\r\n"),
        ("many headers", b"".join(b"X-%d: a\r\n" % number for number in range(100_000)) + b"\r\n"),
        ("one header often", b"Cookie: a\r\n" * 100_000 + b"\r\n"),
        ("a long name", b"X" * (1 << 20) + b": a\r\n\r\n"),
    ],
)
def test_header_bombs(running: DaemonProcess, first: str, last: bytes) -> None:
    answers = exchange(running, b"POST /v1/getHostInfo HTTP/1.1\r\nHost: x\r\n" + last)
    assert all(answer.status in (400, 431) for answer in answers), first


def test_a_long_path(running: DaemonProcess) -> None:
    for size in (1_000, 10_000, 1 << 20):
        answers = exchange(running, request("/v1/" + "a" * size))
        assert all(answer.status in (400, 404, 414) for answer in answers)
    assert one(exchange(running, request("/v1/" + "a" * 1_000))).status == 404


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW"])
def test_other_methods_on_verbs(running: DaemonProcess, method: str) -> None:
    for verb in (*VERBS, "nothing"):
        answer = one(exchange(running, request(f"/v1/{verb}", method=method)))
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
        if method != "HEAD":
            refused(answer, 405)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/healthz/ready", "/openapi.json", "/docs"])
def test_other_methods_on_what_is_read(running: DaemonProcess, path: str, method: str) -> None:
    answer = one(exchange(running, request(path, method=method)))
    refused(answer, 405)
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize(
    "path",
    ["/", "//", "/v1", "/v1/", "/v1/getHostInfo/", "//v1/getHostInfo", "/v1/../healthz", "/v1/%2e%2e/healthz",
     "/v1/getHostInfo%00", "/v1/getHostInfo%0d%0aX:%20y", "/V1/getHostInfo", "/v1/GetHostInfo", "/v1/__class__",
     "/docs/../../etc/passwd", "/docs/%2e%2e/%2e%2e/etc/passwd", "/healthz/../docs", "/v1/getHostInfo;x", "/%ff",
     "/v1/%ff%fe", "/v2/getHostInfo", "/favicon.ico", "/.well-known/x"],
)  # fmt: skip
def test_paths_that_there_are_not(running: DaemonProcess, path: str) -> None:
    refused(one(exchange(running, request(path))), 404)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /healthz HTTP/1.0\r\n\r\n",
        b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        request("/healthz", method="GET", version="1.0"),
    ],
)
def test_http_1_0(running: DaemonProcess, sent: bytes) -> None:
    assert one(exchange(running, sent)).status == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /healthz\r\n", b"\r\n\r\n\r\n", b"\0" * 100, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"HELO x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n", b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET  /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 512,
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nNo colon\r\n\r\n", b"GET /healthz HTTP/1.1\r\nHost: a\0b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n: x\r\n\r\n", b"GET /hea\0lthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\rHost: x\r\r",
    ],
)  # fmt: skip
def test_what_is_no_http(running: DaemonProcess, sent: bytes) -> None:
    assert all(answer.status == 400 for answer in exchange(running, sent, cut=True))


# -- smuggling -----------------------------------------------------------------------------------

SMUGGLED = (
    b"POST /v1/createVirtualDisk HTTP/1.1\r\nHost: x\r\nX-Request-ID: smuggled\r\n"
    b'Content-Type: application/json\r\nContent-Length: 31\r\n\r\n{"targetRepoId":"a","size":512}'
)


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n",
        b"Content-Length: %d\r\nTransfer-Encoding: xchunked\r\n",
        b"Content-Length: %d\r\nTransfer-Encoding : chunked\r\n",
        b"Content-Length: %d\r\nTransfer-Encoding: identity\r\n",
        b"Content-Length: %d\r\nTransfer-Encoding: chunked, identity\r\n",
        b"Content-Length: %d\r\nTransfer-Encoding: gzip, chunked\r\n",
        b"Content-Length: %d\r\nTransfer-Encoding:\r\n chunked\r\n",
        b"Content-Length: %d\r\nTransfer-Encoding:\x0bchunked\r\n",
        b"Content-Length: %d\r\nX: y\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Content-Length: %d\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: %d\r\n",
        b"Content-Length: 5, %d\r\n",
        b"Content-Length: +5\r\nX-Full: %d\r\n",
        b"Content-Length: 0x5\r\nX-Full: %d\r\n",
        b"Content-Length: 5_0\r\nX-Full: %d\r\n",
        b"Content-Length: -1\r\nX-Full: %d\r\n",
        b"Content-Length: \xb2\r\nX-Full: %d\r\n",
        b"Content-Length : 5\r\nX-Full: %d\r\n",
        b"Content-Length:\r\nX-Full: %d\r\n",
    ],
)
def test_no_request_is_smuggled(running: DaemonProcess, headers: bytes) -> None:
    """However its length is told, a request that a proxy may take for a body is never run."""
    before = running.call("listImages", repositoryId="a")["images"]
    body = b"0\r\n\r\n" + SMUGGLED
    head = b"POST /v1/getHostInfo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    answers = exchange(running, head + headers % len(body) + b"\r\n" + body)
    assert len(answers) <= 1, answers
    assert all(answer.status in (400, 422, 501) for answer in answers)
    assert running.call("listImages", repositoryId="a")["images"] == before


@pytest.mark.parametrize(
    "size",
    [
        b"-1",
        b"+5",
        b"0x5",
        b"5 5",
        b"g",
        b"",
        b"f" * 17,
        b"f" * 400,
        b"5\n",
        b"5;" + b"x" * (1 << 20),
        b"1_0",
    ],
)
def test_sizes_of_chunks(running: DaemonProcess, size: bytes) -> None:
    sent = request(
        "/v1/getHostInfo", headers={"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
    )
    answers = exchange(running, sent + size + b"\r\n{}   \r\n0\r\n\r\n" + SMUGGLED, cut=True)
    assert all(answer.status in (400, 413, 422) for answer in answers), answers
    assert b"smuggled" not in b"".join(json.dumps(answer.headers).encode() for answer in answers)


def test_a_get_with_a_body_leaves_the_connection_in_step(running: DaemonProcess) -> None:
    sent = request("/healthz", SMUGGLED, method="GET", headers={"Connection": "keep-alive"})
    answers = exchange(running, sent + request("/v1/nothing"))
    assert [answer.status for answer in answers] in ([200], [200, 404])


# -- what the caller names ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", ["", " ", "a b", "a" * 65, "../x", "ä", "\xff", "a\tb", "{{7*7}}", "a,b", "%0a", '"', "<b>"]
)
def test_names_of_requests_that_are_not_fair_are_replaced(running: DaemonProcess, given: str) -> None:
    answer = one(exchange(running, request("/v1/nothing", headers={"X-Request-ID": given})))
    assert answer.headers["x-request-id"] not in (given, given.strip())
    assert answer.problem()["requestId"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("given", ["a", "A.b_c-9", "a" * 64])
def test_names_of_requests_are_kept(running: DaemonProcess, given: str) -> None:
    answer = one(exchange(running, request("/healthz", method="GET", headers={"X-Request-ID": given})))
    assert answer.headers["x-request-id"] == given


@pytest.mark.parametrize("host", ["", "evil.example", "[::1]:99999", "a" * 4000, "x y", "localhost, evil"])
def test_whatever_host_is_named(running: DaemonProcess, host: str) -> None:
    sent = request("/docs", method="GET", headers={"Host": host})
    for answer in exchange(running, sent):
        assert answer.status in (200, 400)
        assert b"evil" not in answer.body


def test_events_of_what_there_is_not(running: DaemonProcess) -> None:
    for query in ("types=x", "types=task,x", "types=Task", "types=%00", "types=task%2C%20image"):
        refused(one(exchange(running, request(f"/v1/events?{query}", method="GET"))))


@pytest.mark.parametrize("last", ["x", "-1", "x-1", "-", "\xff", "9" * 400, "0" * 12 + "-1", " "])
def test_events_after_one_that_is_not_known(running: DaemonProcess, last: str) -> None:
    with connected(running) as connection:
        connection.sendall(request("/v1/events", method="GET", headers={"Last-Event-ID": last}))
        receive_until(connection, b"event: reset" if last.strip() else b"events of this host")


def test_only_so_many_listen_at_a_time(running: DaemonProcess) -> None:
    held = []
    try:
        for _ in range(4):
            context = connected(running)
            connection = context.__enter__()
            held.append(context)
            connection.sendall(request("/v1/events", method="GET"))
            receive_until(connection, b"events of this host")
        answer = one(exchange(running, request("/v1/events", method="GET")))
        refused(answer, 429, "TooManyRequests")
        assert answer.headers["retry-after"]
    finally:
        for context in held:
            context.__exit__(None, None, None)
    with connected(running) as connection:
        while True:  # what has gone is noticed soon
            connection.sendall(request("/v1/events", method="GET"))
            if b" 200 " in connection.recv(1 << 16):
                break


def test_answers_are_read_by_nobody(running: DaemonProcess) -> None:
    """Who asks much and reads nothing keeps nobody else waiting."""
    with connected(running) as connection:
        connection.settimeout(1.0)
        try:
            for _ in range(400):
                connection.sendall(request("/openapi.json", method="GET"))
        except TimeoutError:
            pass  # the daemon reads no more of it
        assert running.call("getHostInfo")["hostID"]
    assert parsed(b"") == []
