"""Connections from their first moment on: who may stay, and who makes room."""

from __future__ import annotations

import asyncio
import socket

import pytest

from diskyard.daemon import arrivals
from diskyard.daemon.arrivals import Arrivals, Bounds
from diskyard.host.sockets import origin_of

_PATIENCE_S = 20.0


class Rig:
    """A listener's connections, without the listener.

    :ivar said: why connections were refused or cut, in order.
    """

    def __init__(self, bounds: Bounds | None, most: int = 100) -> None:
        self.said: list[str] = []
        self.arrivals = Arrivals(most, bounds, lambda why, peer: self.said.append(why))
        self.pairs: list[tuple[socket.socket, socket.socket]] = []

    def come(self, address: str = "192.0.2.1", *, begins: bool = False) -> bool:
        """A connection comes; whether it may stay."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.pairs.append((ours, theirs))
        stays = self.arrivals.may_stay(ours, address)
        if stays and begins:
            self.arrivals.has_begun(ours.fileno())
        if not stays:
            ours.close()
        return stays

    def ended(self) -> list[int]:
        """The numbers of those of which their other side sees the end."""
        return [number for number, (_, theirs) in enumerate(self.pairs) if self._is_ended(theirs)]

    def _is_ended(self, theirs: socket.socket) -> bool:
        try:
            return theirs.recv(1) == b""
        except BlockingIOError:
            return False

    def close(self) -> None:
        for pair in self.pairs:
            for one in pair:
                one.close()


@pytest.fixture(autouse=True)
def _spare_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "_SPARED_S", 0.0)


def bounds(**given: float) -> Bounds:
    whole = {"of_origin": 50, "silent": 20, "silent_of_origin": 5, "silent_s": 60.0, **given}
    return Bounds(
        int(whole["of_origin"]),
        int(whole["silent"]),
        int(whole["silent_of_origin"]),
        whole["silent_s"],
    )


def run(rig: Rig, attempt: object) -> None:
    async def whole() -> None:
        try:
            assert callable(attempt)
            await attempt()
        finally:
            rig.close()

    asyncio.run(whole())


def test_silent_ones_make_room_the_longest_first() -> None:
    rig = Rig(bounds())

    async def attempt() -> None:
        assert all(rig.come() for _ in range(8))
        assert rig.ended() == [0, 1, 2]
        assert rig.come(begins=True)
        assert rig.ended() == [0, 1, 2, 3]
        assert all(rig.come() for _ in range(5))
        assert 8 not in rig.ended()  # it has begun
        assert rig.said == ["handshake"] * 8

    run(rig, attempt)


def test_silent_ones_of_many_addresses_leave_room() -> None:
    rig = Rig(bounds())

    async def attempt() -> None:
        assert all(rig.come(f"192.0.2.{number}") for number in range(25))
        assert len(rig.ended()) == 5
        assert rig.come("198.51.100.1", begins=True)

    run(rig, attempt)


def test_who_has_come_just_now_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "_SPARED_S", 3600.0)
    rig = Rig(bounds())

    async def attempt() -> None:
        assert [rig.come() for _ in range(7)] == [True] * 5 + [False] * 2
        assert rig.ended() == [5, 6]
        assert rig.come("198.51.100.1")

    run(rig, attempt)


def test_tls_that_is_not_done_in_time_is_ended() -> None:
    rig = Rig(bounds(silent_s=0.05))

    async def attempt() -> None:
        rig.come()
        rig.come(begins=True)

        async def wait() -> None:
            while not rig.ended():
                await asyncio.sleep(0.01)

        await asyncio.wait_for(wait(), _PATIENCE_S)
        assert rig.ended() == [0]
        assert rig.said == ["handshake"]

    run(rig, attempt)


def test_one_address_leaves_room_for_others() -> None:
    rig = Rig(bounds(of_origin=4), most=10)

    async def attempt() -> None:
        assert [rig.come(begins=True) for _ in range(6)] == [True] * 4 + [False] * 2
        assert rig.said == ["address"] * 2
        assert [rig.come(f"198.51.100.{number}", begins=True) for number in range(8)].count(True) == 6
        assert rig.said[2:] == ["all"] * 2
        rig.pairs[0][0].close()  # one of the first ends
        assert rig.come(begins=True)

    run(rig, attempt)


def test_a_unix_socket_knows_no_addresses() -> None:
    rig = Rig(None, most=10)

    async def attempt() -> None:
        assert [rig.come("") for _ in range(12)] == [True] * 10 + [False] * 2

    run(rig, attempt)


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_whose_address_it_is(address: str, origin: str) -> None:
    assert origin_of(address) == origin
