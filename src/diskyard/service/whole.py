"""Imports all that a service may ever need: for processes that live long.

Some of it is imported elsewhere only when it is used, so that short commands are quick. A process
that goes on for weeks has to have it from the beginning: another version may be installed meanwhile,
and half of one and half of another is neither.
"""

from contextlib import suppress
from importlib import import_module

import diskyard.mover.qmp
import diskyard.service.changing  # noqa: F401 - importing them is what this is for

with suppress(ImportError):  # libnbd may be missing: who needs it says so then
    import_module("nbd")
