"""Imports all that a service may ever need: for processes that live long.

Some of it is imported elsewhere only when it is used, so that short commands are quick. A process
that goes on for weeks has to have it from the beginning: another version may be installed meanwhile,
and half of one and half of another is neither.
"""

from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module

import msgspec

from diskyard.model.verbs import VERBS
from diskyard.service.verbs import function_of


def import_all() -> None:
    """Import what does the verbs, and what runs the tasks that they start."""
    for verb in VERBS.values():
        function_of(verb)
    for name in ("diskyard.fixes.exporting", "diskyard.fixes.runner", "diskyard.mover.qemu.qmp"):
        import_module(name)
    with suppress(ImportError):  # libnbd may be missing: who needs it says so then
        import_module("nbd")


def build_tables() -> None:
    """Make what reads JSON as each of our types, which else the first reading of one makes.

    msgspec keeps it with the type. Made here, before there are threads, it is never made by two of
    them at the same moment (decision 0027).
    """
    for kind in own_types():
        msgspec.json.Decoder(kind)


def own_types(of: type[msgspec.Struct] = msgspec.Struct) -> Iterator[type[msgspec.Struct]]:
    """All types of records that are imported."""
    for kind in of.__subclasses__():
        if kind.__module__.split(".")[0] == "diskyard":
            yield kind
        yield from own_types(kind)


import_all()
build_tables()
