"""Who has fewer rights than the tests: whether that one may use this checkout at all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

import diskyard


def skip_unless_readable(setpriv: Sequence[str]) -> None:
    """Skip where the checkout is in a folder that others may not enter, as most homes are.

    Only that is a reason: what fails though these files can be read has failed.

    :param setpriv: the words before those of a program, which take the rights.
    """
    for flag, path in (("-x", sys.executable), ("-r", diskyard.__file__)):
        if subprocess.run([*setpriv, "test", flag, path], check=False).returncode:
            # The program that the test starts could not be read: that says nothing of Diskyard.
            pytest.skip(f"{path} is in a folder that who has so few rights may not enter")
