"""Where work that may be long lets other work go first.

Code that goes through many things calls :func:`give_way` again and again. That does nothing unless
whatever started the work has set :data:`WAY`, as a daemon does: its short calls would otherwise wait
for the long ones.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

#: Called by :func:`give_way` in the running context; it may take its time. None: nothing goes first.
WAY: ContextVar[Callable[[], None] | None] = ContextVar("diskyard-way", default=None)


def give_way() -> None:
    """Let other work go first, if there is any."""
    ask = WAY.get()
    if ask is not None:
        ask()
