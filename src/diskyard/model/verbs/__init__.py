"""The table of verbs: one row for each, in the file of its group, with everything there is to say of it."""

from __future__ import annotations

from diskyard.model import requests as ask
from diskyard.model.verbs import fixes, guests, host, images, repositories, tasks, transfer
from diskyard.model.verbs.verb import EVERY_CALL, Access, Example, Group, Verb

__all__ = ["BY_REQUEST", "EVERY_CALL", "GROUPS", "VERBS", "Access", "Example", "Group", "Verb"]

#: In the order in which they are shown to people.
GROUPS = (
    Group("repositories", "Where images are kept.", repositories.VERBS),
    Group("images", "VirtualDisks, which guests write to, and Snapshots, which never change.", images.VERBS),
    Group("guests", "Giving images to QEMU and libvirt.", guests.VERBS),
    Group("transfer", "Importing and exporting files of this host.", transfer.VERBS),
    Group("fixes", "Finding unfinished work, and finishing it.", fixes.VERBS),
    Group("tasks", "Work that runs on this host.", tasks.VERBS),
    Group("host", "This host, and how to watch it.", host.VERBS),
)
VERBS: dict[str, Verb] = {verb.name: verb for group in GROUPS for verb in group.verbs}
BY_REQUEST: dict[type[ask.Request], Verb] = {verb.request: verb for verb in VERBS.values()}
