"""Where work that may be long lets other work go first.

Code that goes through many things calls :func:`give_way` again and again. That does nothing unless the
starter of the work wants to be asked, as a daemon does: its short calls would wait for the long ones.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

#: Called by :func:`give_way` in the running context; it may take its time. None: nobody is let ahead.
WAY: ContextVar[Callable[[], None] | None] = ContextVar("diskyard-way", default=None)


def give_way() -> None:
    """Let others go first, if anybody is to be let ahead."""
    ask = WAY.get()
    if ask is not None:
        ask()
