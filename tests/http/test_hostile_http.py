"""Requests and connections that are wrong in every way: nobody else is harmed, and nothing is smuggled in."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from diskyard.service import VERBS
from diskyard.testing.daemon_process import DaemonProcess
from tests.http.wire import (
    EVENT_STREAMS,
    answers_on,
    connected,
    exchange,
    one,
    parsed,
    receive_until,
    refused,
    request,
)

# -- bodies that do not end -------------------------------------------------------------------


def test_bodies_without_end_keep_nobody_waiting(attacked: DaemonProcess) -> None:
    """Chunks that never end, lengths that are never reached, headers that stop: others are answered."""
    starts = [
        request("/v1/getHostInfo", headers={"Transfer-Encoding": "chunked"}) + b"1\r\n{\r\n",
        request("/v1/getHostInfo", headers={"Content-Length": "1000"}) + b"{",
        b"POST /v1/getHostInfo HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST",
        b"",
    ]
    with ExitStack() as held:
        for start in starts * 12:
            held.enter_context(connected(attacked)).sendall(start)
        for _ in range(3):
            assert attacked.call("getHostInfo")["hostID"]


def test_a_body_that_comes_byte_by_byte_is_read(attacked: DaemonProcess) -> None:
    with connected(attacked) as connection:
        sent = request("/v1/getHostInfo", b'{"no":1}')
        for at in range(len(sent) - 1):
            connection.sendall(sent[at : at + 1])
        refused(one(answers_on(connection, sent[-1:])))


def test_a_body_that_is_cut_is_not_run(attacked: DaemonProcess) -> None:
    before = attacked.call("listImages", repositoryId="a")["images"]
    body = b'{"targetRepoId":"a","size":512}'
    for length in (len(body) + 1, len(body) * 100):
        sent = request("/v1/createVirtualDisk", body, headers={"Content-Length": str(length)})
        assert all(answer.status in (400, 422) for answer in exchange(attacked, sent, cut=True))
    chunked = request("/v1/createVirtualDisk", headers={"Transfer-Encoding": "chunked"})
    for tail in (b"", b"0\r\n", b"0\r\nTrailer: x\r\n"):
        sent = chunked + b"%x\r\n%s\r\n" % (len(body), body) + tail
        assert all(answer.status in (400, 422) for answer in exchange(attacked, sent, cut=True))
    assert attacked.call("listImages", repositoryId="a")["images"] == before


def test_a_body_that_is_wrong_is_the_end_of_requests_that_need_none(attacked: DaemonProcess) -> None:
    """They are refused before what answers them begins: once, and without a line in the log."""
    before = attacked.log_path.read_text()
    for method, path in (
        ("GET", "/healthz"),
        ("POST", "/nowhere"),
        ("POST", "/v1/nothing"),
        ("GET", "/docs"),
    ):
        sent = request(path, method=method, headers={"Transfer-Encoding": "chunked"}) + b"zz\r\n"
        assert one(exchange(attacked, sent)).status == 400, path
    assert attacked.log_path.read_text() == before


# -- connections ------------------------------------------------------------------------------


def test_callers_who_vanish_make_no_lines(attacked: DaemonProcess) -> None:
    before = attacked.log_path.read_text()
    for _ in range(5):
        with connected(attacked) as connection:
            connection.sendall(request("/openapi.json", method="GET"))
        assert one(exchange(attacked, request("/healthz", method="GET"))).status == 200
    assert attacked.log_path.read_text() == before


def test_pipelined_requests_are_answered_in_order(attacked: DaemonProcess) -> None:
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
    answers = exchange(attacked, sent + request("/healthz", method="GET"))
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
def test_header_bombs(attacked: DaemonProcess, first: str, last: bytes) -> None:
    answers = exchange(attacked, b"POST /v1/getHostInfo HTTP/1.1\r\nHost: x\r\n" + last)
    assert all(answer.status in (400, 431) for answer in answers), first


def test_a_long_path(attacked: DaemonProcess) -> None:
    for size in (1_000, 10_000, 1 << 20):
        answers = exchange(attacked, request("/v1/" + "a" * size))
        assert all(answer.status in (400, 404, 414) for answer in answers)
    assert one(exchange(attacked, request("/v1/" + "a" * 1_000))).status == 404


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW"])
def test_other_methods_on_verbs(attacked: DaemonProcess, method: str) -> None:
    for verb in (*VERBS, "nothing"):
        answer = one(exchange(attacked, request(f"/v1/{verb}", method=method)))
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
        if method != "HEAD":
            refused(answer, 405)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/healthz/ready", "/openapi.json", "/docs"])
def test_other_methods_on_what_is_read(attacked: DaemonProcess, path: str, method: str) -> None:
    answer = one(exchange(attacked, request(path, method=method)))
    refused(answer, 405)
    assert answer.headers["allow"] == "GET"


@pytest.mark.parametrize(
    "path",
    ["/", "//", "/v1", "/v1/", "/v1/getHostInfo/", "//v1/getHostInfo", "/v1/../healthz", "/v1/getHostInfo%00",
     "/v1/%2e%2e/healthz", "/v1/getHostInfo%0d%0aX:%20y", "/V1/getHostInfo", "/v1/GetHostInfo", "/v1/%ff%fe",
     "/docs/../../etc/passwd", "/docs/%2e%2e/%2e%2e/etc/passwd", "/healthz/../docs", "/v1/getHostInfo;x",
     "/%ff", "/v2/getHostInfo", "/favicon.ico", "/.well-known/x", "/v1/__class__"],
)  # fmt: skip
def test_paths_that_there_are_not(attacked: DaemonProcess, path: str) -> None:
    refused(one(exchange(attacked, request(path))), 404)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /healthz HTTP/1.0\r\n\r\n",
        b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        request("/healthz", method="GET", version="1.0"),
    ],
)
def test_http_1_0(attacked: DaemonProcess, sent: bytes) -> None:
    assert one(exchange(attacked, sent)).status == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /healthz\r\n", b"\r\n\r\n\r\n", b"\0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"HELO x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n", b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET  /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 512,
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nNo colon\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\0b\r\n\r\n", b"GET /healthz HTTP/1.1\r\n: x\r\n\r\n",
        b"GET /hea\0lthz HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /healthz HTTP/1.1\rHost: x\r\r",
    ],
)  # fmt: skip
def test_what_is_no_http(attacked: DaemonProcess, sent: bytes) -> None:
    assert all(answer.status == 400 for answer in exchange(attacked, sent, cut=True))


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
def test_no_request_is_smuggled(attacked: DaemonProcess, headers: bytes) -> None:
    """However its length is told, a request that a proxy may take for a body is never run."""
    before = attacked.call("listImages", repositoryId="a")["images"]
    body = b"0\r\n\r\n" + SMUGGLED
    head = b"POST /v1/getHostInfo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    answers = exchange(attacked, head + headers % len(body) + b"\r\n" + body)
    assert len(answers) <= 1, answers
    assert all(answer.status in (400, 422, 501) for answer in answers)
    assert attacked.call("listImages", repositoryId="a")["images"] == before


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
def test_sizes_of_chunks(attacked: DaemonProcess, size: bytes) -> None:
    sent = request(
        "/v1/getHostInfo", headers={"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
    )
    answers = exchange(attacked, sent + size + b"\r\n{}   \r\n0\r\n\r\n" + SMUGGLED, cut=True)
    assert all(answer.status in (400, 413, 422) for answer in answers), answers
    assert b"smuggled" not in b"".join(json.dumps(answer.headers).encode() for answer in answers)


def test_a_get_with_a_body_leaves_the_connection_in_step(attacked: DaemonProcess) -> None:
    sent = request("/healthz", SMUGGLED, method="GET", headers={"Connection": "keep-alive"})
    answers = exchange(attacked, sent + request("/v1/nothing"))
    assert [answer.status for answer in answers] in ([200], [200, 404])


# -- what the caller names ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", ["", " ", "a b", "a" * 65, "../x", "ä", "\xff", "a\tb", "{{7*7}}", "a,b", "%0a", '"', "<b>"]
)
def test_names_of_requests_that_are_not_fair_are_replaced(attacked: DaemonProcess, given: str) -> None:
    answer = one(exchange(attacked, request("/v1/nothing", headers={"X-Request-ID": given})))
    assert answer.headers["x-request-id"] not in (given, given.strip())
    assert answer.problem()["requestId"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("given", ["a", "A.b_c-9", "a" * 64])
def test_names_of_requests_are_kept(attacked: DaemonProcess, given: str) -> None:
    answer = one(exchange(attacked, request("/healthz", method="GET", headers={"X-Request-ID": given})))
    assert answer.headers["x-request-id"] == given


@pytest.mark.parametrize("host", ["", "evil.example", "[::1]:99999", "a" * 4000, "x y", "localhost, evil"])
def test_whatever_host_is_named(attacked: DaemonProcess, host: str) -> None:
    sent = request("/docs", method="GET", headers={"Host": host})
    for answer in exchange(attacked, sent):
        assert answer.status in (200, 400)
        assert b"evil" not in answer.body


def test_events_of_what_there_is_not(attacked: DaemonProcess) -> None:
    for query in ("types=x", "types=task,x", "types=Task", "types=%00", "types=task%2C%20image"):
        refused(one(exchange(attacked, request(f"/v1/events?{query}", method="GET"))))


@pytest.mark.parametrize("last", ["x", "-1", "x-1", "-", "\xff", "9" * 400, "0" * 12 + "-1", " "])
def test_events_after_one_that_is_not_known(attacked: DaemonProcess, last: str) -> None:
    with connected(attacked) as connection:
        connection.sendall(request("/v1/events", method="GET", headers={"Last-Event-ID": last}))
        receive_until(connection, b"event: reset" if last.strip() else b"events of this host")


def test_only_so_many_listen_at_a_time(attacked: DaemonProcess) -> None:
    with ExitStack() as held:
        for _ in range(EVENT_STREAMS):
            connection = held.enter_context(connected(attacked))
            connection.sendall(request("/v1/events", method="GET"))
            receive_until(connection, b"events of this host")
        answer = one(exchange(attacked, request("/v1/events", method="GET")))
        refused(answer, 429, "TooManyRequests")
        assert answer.headers["retry-after"]
    while one_listens(attacked) != b"200":
        pass  # that they have gone is noticed soon


def one_listens(daemon: DaemonProcess) -> bytes:
    """The status of a stream that is not read further."""
    with connected(daemon) as connection:
        connection.sendall(request("/v1/events", method="GET"))
        return connection.recv(1 << 16).split()[1]


def test_many_who_come_at_once_are_counted_too(attacked: DaemonProcess) -> None:
    with ExitStack() as held:
        connections = [held.enter_context(connected(attacked)) for _ in range(40)]
        for connection in connections:
            connection.sendall(request("/v1/events", method="GET"))
        heads = [connection.recv(1 << 16).split() for connection in connections]
    assert sorted(head[1] for head in heads) == [b"200"] * EVENT_STREAMS + [b"429"] * (40 - EVENT_STREAMS)


def test_answers_are_read_by_nobody(attacked: DaemonProcess) -> None:
    """Who asks much and reads nothing keeps nobody else waiting."""
    with connected(attacked) as connection:
        connection.settimeout(1.0)
        try:
            for _ in range(400):
                connection.sendall(request("/openapi.json", method="GET"))
        except TimeoutError:
            pass  # the daemon reads no more of it
        assert attacked.call("getHostInfo")["hostID"]
    assert parsed(b"") == []
