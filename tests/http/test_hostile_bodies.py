"""Bodies that are wrong in every way: each is refused as it should be."""

from __future__ import annotations

import gzip
import json

import pytest

from diskyard.testing.daemon_process import DaemonProcess
from tests.http.wire import IMAGE, LIMIT_BYTES, ask, exchange, one, refused, request


def test_a_body_over_the_limit(attacked: DaemonProcess) -> None:
    body = b'{"x": "' + b"x" * LIMIT_BYTES + b'"}'
    refused(ask(attacked, "getHostInfo", body), 413, "RequestTooLarge")
    for size in (b"9" * 18, b"9" * 400):
        sent = request("/v1/getHostInfo", headers={"Content-Length": size.decode()})
        answer = one(exchange(attacked, sent))
        assert answer.status in (400, 413)
    chunked = request("/v1/getHostInfo", headers={"Transfer-Encoding": "chunked"})
    chunk = b"%x\r\n%s\r\n" % (1 << 12, b" " * (1 << 12))
    refused(one(exchange(attacked, chunked + chunk * 20)), 413, "RequestTooLarge")


def test_a_body_at_the_limit_is_read(attacked: DaemonProcess) -> None:
    body = b"{}".ljust(LIMIT_BYTES)
    assert ask(attacked, "getHostInfo", body).status == 200
    refused(ask(attacked, "getHostInfo", body + b" "), 413, "RequestTooLarge")


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b"[[", b'[{"a":'])
@pytest.mark.parametrize("depth", [100, 1_000, 10_000])
def test_deep_nesting(attacked: DaemonProcess, opening: bytes, depth: int) -> None:
    count = min(depth, LIMIT_BYTES // 2 // len(opening))
    refused(ask(attacked, "getHostInfo", opening * count))
    closing = {b"[": b"]", b"{": b"}"}
    closed = b"".join(closing[bytes((byte,))] for byte in reversed(opening) if bytes((byte,)) in closing)
    value = opening * count + b"1" + closed * count
    if len(value) < LIMIT_BYTES:
        answer = ask(attacked, "setUserData", b'{"repositoryId":"a","imageId":"%s","userData":%s}' % (
            IMAGE.encode(), value))  # fmt: skip
        assert answer.status in (404, 422)


def test_of_two_members_of_one_name_the_last_counts(attacked: DaemonProcess) -> None:
    answer = ask(
        attacked, "getImageInfo", b'{"repositoryId":"a","repositoryId":"b","imageId":"%s"}' % IMAGE.encode()
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
        gzip.compress(b"{}", mtime=0),
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
def test_what_is_no_json_object(attacked: DaemonProcess, body: bytes) -> None:
    refused(ask(attacked, "listImages", body))


@pytest.mark.parametrize(
    "value",
    [
        "NaN", "-NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e-999", "10" * 200, "-" + "9" * 40,
        "9223372036854775808", "18446744073709551616", "1.5", "1e3", "-0", "0x10", "1_000", "true", "null",
        '"512"', "[]", "{}", "512.0", "5.12e2", "-512",
    ],
)  # fmt: skip
def test_numbers(attacked: DaemonProcess, value: str) -> None:
    """In no place is a number that is none taken, or one that is too large cut."""
    refused(ask(attacked, "createVirtualDisk", b'{"targetRepoId":"a","size":%s}' % value.encode()))
    body = b'{"repositoryId":"a","imageId":"%s","userData":1,"options":{"ifRevision":%s}}'
    answer = ask(attacked, "setUserData", body % (IMAGE.encode(), value.encode()))
    assert answer.problem()["code"] in ("InvalidParameter", "ImageNotFound")
    for verb, more in (("listImages", b'"limit"'), ("checkStorageRepository", b'"options"')):
        if value != "{}":
            refused(ask(attacked, verb, b'{"repositoryId":"a",%s:%s}' % (more, value.encode())))


@pytest.mark.parametrize(
    "value",
    ["1e999", "NaN", "123456789012345678901234567890", "1e400", '"\\ud800"', '{"\\udc00":1}', "-0.0", "1.0",
     "0.1", '"\\u0000"', '{"":{"":[[]]}}', "9007199254740993", "18446744073709551615", "1e-400"],
)  # fmt: skip
def test_user_data_comes_back_as_sent_or_is_refused(attacked: DaemonProcess, value: str) -> None:
    body = b'{"targetRepoId":"a","size":512,"userData":%s}' % value.encode()
    answer = ask(attacked, "createVirtualDisk", body)
    if answer.status != 200:
        refused(answer)
        return
    image_id = json.loads(answer.body)
    info = attacked.call("getImageInfo", repositoryId="a", imageId=image_id)
    attacked.call("removeImage", repositoryId="a", imageId=image_id)
    assert info["userData"] == json.loads(value)


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "*/*",
     "application/json-patch+json", "application/problem+json", "text/json", "application/json, text/plain",
     "APPLICATION", "\xff"],
)  # fmt: skip
def test_other_media_types(attacked: DaemonProcess, kind: str) -> None:
    sent = request("/v1/getHostInfo", b"{}", headers={"Content-Type": kind})
    refused(one(exchange(attacked, sent)))


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON", "application/json; charset=utf-8"])
def test_the_one_media_type(attacked: DaemonProcess, kind: str) -> None:
    sent = request("/v1/getHostInfo", b"{}", headers={"Content-Type": kind})
    assert one(exchange(attacked, sent)).status == 200
    assert one(exchange(attacked, request("/v1/getHostInfo"))).status == 200
