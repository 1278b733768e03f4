"""The types that callers of the client see besides the model's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from diskyard.model.results import Task

EventType = Literal["task", "image", "repository"]
OnProgress = Callable[[Task], object]
#: Format and parameters of connections by repoId.
Connected = dict[str, tuple[str, dict[str, Any]]]
