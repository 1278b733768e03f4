"""A disk with very many Snapshots, then all of them removed and merged."""

from __future__ import annotations

import json

from diskyard import KiB, MiB
from diskyard.testing.effort import Effort
from tests.api.helpers import SIZE, Rig, Stretch, fixes, picture, run, run_fix

QUICK_COUNT, THOROUGH_COUNT = 220, 1000  # both deeper than QEMU opens a chain
WRITES = 50


def write_whole_clusters(rig: Rig, disk: str, stretch: Stretch) -> None:
    """Write to the top of a chain alone: the whole of it is too deep to be opened."""
    pattern, offset, length = stretch
    path = rig.volume_path("a", disk)
    top: dict[str, object] = {"driver": path.suffix[1:], "file": {"driver": "file", "filename": str(path)}}
    if path.suffix == ".qcow2":
        top["backing"] = None
    run("qemu-io", "-c", f"write -P {pattern} {offset} {length}", "json:" + json.dumps(top))


def test_very_many_snapshots(rig: Rig, effort: Effort) -> None:
    """The bytes are right at the end, and nothing is left but one volume."""
    count = THOROUGH_COUNT if effort.thorough else QUICK_COUNT
    yard = rig.yard
    disk = rig.disk("a", (255, 0, MiB))
    stretches = [(255, 0, MiB)]
    snapshots = []
    for number in range(count):
        if number % (count // WRITES) == 0:
            stretches.append((number % 250 + 1, number * 977 * KiB % SIZE // MiB * MiB, 128 * KiB))
            stretches.append((number % 249 + 2, number * 64 * KiB % SIZE, 64 * KiB))
            for stretch in stretches[-2:]:
                write_whole_clusters(rig, disk, stretch)
        snapshots.append(yard.create_snapshot("a", disk, {"number": number}))
    assert len(yard.list_images("a", kind="snapshot").images) == count
    refused = rig.refusal("prepareImage", repositoryId="a", imageId=disk)
    assert refused == "Unsupported"
    assert yard.get_image_info("a", disk).attachments == ()
    # Some from the middle and some from the end, in turn.
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
