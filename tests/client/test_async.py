"""The asynchronous client is the synchronous one, word for word."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from diskyard import AsyncDiskyard, Diskyard, errors

ROOT = Path(__file__).resolve().parent.parent.parent


def test_its_files_are_as_they_are_made() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "make_async", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_has_the_same_methods_with_the_same_parameters() -> None:
    def methods(of: type) -> dict[str, list[str]]:
        found = inspect.getmembers(of, inspect.isfunction)
        return {
            name: [str(parameter) for parameter in inspect.signature(method).parameters.values()]
            for name, method in found
            if not name.startswith("_")
        }

    assert methods(AsyncDiskyard) == methods(Diskyard)
    plain = {"events", "take_started"}
    for name in methods(AsyncDiskyard).keys() - plain:
        assert inspect.iscoroutinefunction(getattr(AsyncDiskyard, name)), name


def test_it_is_not_embedded() -> None:
    with pytest.raises(errors.InvalidParameter, match="URL of a daemon"):
        AsyncDiskyard()
