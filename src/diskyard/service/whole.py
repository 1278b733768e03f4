"""Imports everything that a service may ever need, for processes that live long.

Some modules are otherwise imported only when they are used, so that short commands are quick. A process
that goes on for weeks must have them from the beginning: another version may be installed meanwhile, and
the two must not be mixed.
"""

from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module

import msgspec

from diskyard.model.verbs import VERBS
from diskyard.service.verbs import function_of


def import_all() -> None:
    """Import the functions of all verbs, and what runs the tasks that they start."""
    for verb in VERBS.values():
        function_of(verb)
    for name in ("diskyard.fixes.exporting", "diskyard.fixes.runner", "diskyard.mover.qemu.qmp"):
        import_module(name)
    with suppress(ImportError):  # libnbd may be missing: the code that needs it reports that
        import_module("nbd")


def build_tables() -> None:
    """Make the decoders of all our types now; otherwise msgspec makes each when it is first used.

    msgspec keeps a decoder's tables with the type. If they are made here, before there are threads, two
    threads never make the same ones at the same moment (decision 0027).
    """
    for kind in own_types():
        msgspec.json.Decoder(kind)


def own_types(of: type[msgspec.Struct] = msgspec.Struct) -> Iterator[type[msgspec.Struct]]:
    """All imported types of records."""
    for kind in of.__subclasses__():
        if kind.__module__.split(".")[0] == "diskyard":
            yield kind
        yield from own_types(kind)


import_all()
build_tables()
