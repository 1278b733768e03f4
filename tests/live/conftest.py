"""What the tests of running guests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diskyard.testing.running_guest.machine import CannotBoot, Machine
from diskyard.testing.running_guest.machine import machine as built

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
