"""Two processes at once on one disk, as they come: every copy is right, or refused for a true reason."""

from __future__ import annotations

from collections import Counter

import pytest

from diskyard import KiB, errors
from diskyard.testing.effort import Effort
from tests.api.helpers import Rig, picture, python, settle
from tests.conftest import Tally

SIZE = 192 * KiB
FULL = (0x5A, 0, SIZE)
COPIES, COPIES_THOROUGH = 12, 400
REFUSED_MOST = 1000  # before one succeeds, so that a defect ends the test

_SNAPSHOTS = """
disk = {disk!r}
while True:
    try:
        made = yard.create_snapshot("a", disk, options={{"auto_fix": False}})
        print("snapshot", flush=True)
        yard.remove_image("a", made, options={{"auto_fix": False}})
        for fix in yard.check_storage_repository("a"):
            if fix.runnable and fix.type in ("merge", "clean"):
                yard.wait_for_task(yard.fix_storage_repository("a", fix).task_id, 60)
    except DiskyardError:
        pass
"""


@pytest.mark.parametrize("verb", ["copy", "export"])
def test_snapshots_are_taken_and_merged_while_a_disk_is_read(
    reflink: Rig, effort: Effort, tally: Tally, verb: str
) -> None:
    yard = reflink.yard
    disk = reflink.disk("a", FULL, size=SIZE)
    wanted = COPIES_THOROUGH if effort.thorough else COPIES
    refused: Counter[str] = Counter()
    made = 0
    other = python(reflink, "two", _SNAPSHOTS.format(disk=disk))
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "snapshot\n"
        while made < wanted:
            try:
                if verb == "copy":
                    copy = yard.copy_image("b", disk)
                    assert yard.wait_for_tasks(60)
                    assert yard.get_image_status("b", copy).status != "broken"
                    reflink.expect("b", copy, picture(SIZE, FULL))
                    yard.remove_image("b", copy)
                else:
                    path = reflink.folder / f"{made}.raw"
                    task = yard.export_image("a", disk, str(path), "raw")
                    yard.wait_for_task(task.task_id, 60)
                    assert path.read_bytes() == picture(SIZE, FULL)
                made += 1
            except (errors.LeaseHeld, errors.ImageInUse) as error:
                refused[error.code] += 1
                assert refused.total() < REFUSED_MOST
    finally:
        other.kill()
        other.communicate()
    tally("natural races", runs=made, refused=refused.total())
    settle(yard, "b", "a")
    reflink.expect("a", disk, picture(SIZE, FULL))
    reflink.clean_slate("a", "b")
