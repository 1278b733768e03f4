"""What the tests of the movers are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from diskyard.host import Host
from tests.unit.mover.bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, Host.real())
    yield made
    made.close()
