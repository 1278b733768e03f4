"""The rig of the API's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import transports
from tests.api.helpers import Rig


@pytest.fixture(autouse=True)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every host of the test is reached over the transport that is chosen for the test."""
    monkeypatch.setattr(transports, "current", transports.chosen(request))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A host with two empty repositories."""
    made = Rig(tmp_path)
    yield made
    made.close()
