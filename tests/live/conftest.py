"""What the tests of running guests are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from diskyard.host import Host
from tests.live.running import Daemon, Qemu, Running
from tests.unit.mover.bench import Bench


@pytest.fixture
def bench(quick_folder: Path) -> Bench:
    return Bench(quick_folder, Host.real())


@pytest.fixture(params=[Qemu, Daemon])
def running(request: pytest.FixtureRequest, bench: Bench) -> Iterator[Running]:
    """A program that has nothing open yet."""
    with request.param(bench.folder) as program:
        yield program
