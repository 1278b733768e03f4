"""The table of verbs: a row for each, in the file of its group, which has all that is said of it."""

from __future__ import annotations

from diskyard.model import requests as ask
from diskyard.model.verbs import fixes, guests, host, images, repositories, tasks, transfer
from diskyard.model.verbs.verb import Access, Example, Group, Verb

__all__ = ["BY_REQUEST", "GROUPS", "VERBS", "Access", "Example", "Group", "Verb"]

#: In the order in which people are shown them.
GROUPS: tuple[Group, ...] = tuple(
    module.GROUP for module in (repositories, images, guests, transfer, fixes, tasks, host)
)
VERBS: dict[str, Verb] = {verb.name: verb for group in GROUPS for verb in group.verbs}
BY_REQUEST: dict[type[ask.Request], Verb] = {verb.request: verb for verb in VERBS.values()}
