"""The rig of the API's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.helpers import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A host with two empty repositories."""
    made = Rig(tmp_path)
    yield made
    made.close()
