"""What every test has: a state folder of its own, and nothing of the caller's environment."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where this test's Diskyard keeps connections and tasks."""
    folder = tmp_path / "state"
    monkeypatch.setenv("DISKYARD_STATE_DIR", str(folder))
    for name in ("DISKYARD_HOST_ID", "DISKYARD_URL"):
        monkeypatch.delenv(name, raising=False)
    return folder
