"""What the tests of running guests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskyard.host import Host
from diskyard.testing.running_guest.machine import CannotBoot, Machine
from diskyard.testing.running_guest.machine import machine as built
from tests.live.running import Daemon, Qemu, Running
from tests.unit.mover.bench import Bench

_CHECKOUT = Path(__file__).resolve().parent.parent.parent
_CACHE = _CHECKOUT / ".cache"


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """What emulated guests boot; built once for all runs in a checkout that this user may write to."""
    is_ours = os.access(_CHECKOUT, os.W_OK) and (not _CACHE.exists() or os.access(_CACHE, os.W_OK))
    cache = _CACHE if is_ours else tmp_path_factory.getbasetemp()
    try:
        return built(cache / "emulated-guest", [_CACHE / "guest-kernel", Path("/")])
    except CannotBoot as reason:
        pytest.skip(f"no emulated guest: {reason}")


@pytest.fixture
def bench(quick_folder: Path) -> Bench:
    return Bench(quick_folder, Host.real())


@pytest.fixture(params=[Qemu, Daemon])
def running(request: pytest.FixtureRequest, bench: Bench) -> Iterator[Running]:
    """A program that has nothing open yet."""
    with request.param(bench.folder) as program:
        yield program
