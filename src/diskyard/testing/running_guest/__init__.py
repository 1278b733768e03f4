"""Guests that write while Diskyard works on their disks, and the judge of what became of their writes.

A guest is a process that Diskyard has not started and that outlives Diskyard's death: a storage daemon with
a client that writes (quick), or an emulated machine (slow, and the real thing). Both have the same methods,
are told their disks as ``prepareImage`` described them, and have a monitor for Diskyard.
"""

from diskyard.testing.running_guest.blocks import judge, require_one_moment
from diskyard.testing.running_guest.emulated import EmulatedGuest
from diskyard.testing.running_guest.guest import RunningGuest
from diskyard.testing.running_guest.record import Acknowledged
from diskyard.testing.running_guest.storage_daemon import StorageDaemonGuest

__all__ = [
    "Acknowledged",
    "EmulatedGuest",
    "RunningGuest",
    "StorageDaemonGuest",
    "judge",
    "require_one_moment",
]
