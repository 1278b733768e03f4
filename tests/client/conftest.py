from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a short name: sockets in it must not be longer than the kernel takes."""
    with tempfile.TemporaryDirectory(prefix="diskyard-") as folder:
        yield Path(folder)
