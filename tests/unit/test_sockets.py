from __future__ import annotations

import socket

import pytest

from diskyard.host.sockets import listen_tcp


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_part_of_an_answer_waits_for_the_last_to_be_acknowledged(host: str) -> None:
    with (
        listen_tcp(host, 0) as listener,
        socket.create_connection(listener.getsockname()[:2]),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
