"""A thousand Snapshots of one disk, then all of them removed and merged."""

from __future__ import annotations

from diskyard import KiB, MiB
from tests.api.helpers import SIZE, Rig, fixes, picture, qemu_io, run_fix

COUNT = 1000
WRITES = 50


def test_a_thousand_snapshots(rig: Rig) -> None:
    """The bytes are right at the end, and nothing is left but one volume."""
    yard = rig.yard
    disk = rig.disk("a", (255, 0, MiB))
    stretches = [(255, 0, MiB)]
    snapshots = []
    for number in range(COUNT):
        if number % (COUNT // WRITES) == 0:
            place = (number * 977 * KiB) % (SIZE - 64 * KiB) // 512 * 512
            stretches.append((number % 250 + 1, place, 64 * KiB))
            attached = yard.prepare_image("a", disk)
            qemu_io(attached, f"write -P {stretches[-1][0]} {place} {64 * KiB}")
            yard.teardown_image("a", disk)
        snapshots.append(yard.create_snapshot("a", disk, {"number": number}))
    assert len(yard.list_images("a", kind="snapshot").images) == COUNT
    # The order in which they go matters to merging: from both ends towards the middle.
    while snapshots:
        yard.remove_image("a", snapshots.pop(len(snapshots) // 2 if len(snapshots) % 2 else -1))
    rig.wait()
    while found := [fix for fix in fixes(yard, "a") if fix.runnable]:
        for fix in found:
            run_fix(yard, "a", fix)
    rig.expect("a", disk, picture(SIZE, *stretches))
    assert len(rig.files("a")) == 1
    assert len(yard.list_images("a").images) == 1
    rig.clean_slate("a")
