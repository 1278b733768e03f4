"""Guests that write while Diskyard works on their disks, and the judge of what became of their writes.

A guest is a process that Diskyard has not started and that outlives Diskyard's death: a storage daemon with
a client that writes (quick), or an emulated machine (slow, and the real thing). Both have the same methods,
are told their disks as ``prepareImage`` described them, and have a monitor for Diskyard.

::

    graphs = [yard.prepare_image("a", disk).blockdev for disk in disks]
    with StorageDaemonGuest(folder, graphs) as guest:
        before = guest.acknowledged()
        ...  # freeze both disks at one moment, through guest.monitor
        guest.wait_for(20)
        require_one_moment([judge(path, before, disk=index) for index, path in enumerate(frozen)])
        last = guest.kill()
    judge(image, last)
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
