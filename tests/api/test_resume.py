"""Copies that are killed: what was durable stays, another host goes on from there."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from msgspec.structs import replace

from diskyard import Diskyard, KiB, MiB
from diskyard.repository.repository import volume_name
from tests.api.helpers import COMMIT_ONLY, Rig, fix_module, fixes, kill, picture, python, run_fix, settle

SIZE = 16 * MiB
BUSY = [(number + 1, number * MiB, MiB) for number in range(16)]


def killed_copy(rig: Rig, disk: str, base: str | None = None, options: str = "{}") -> str:
    """Copy slowly in a process, and kill that once a checkpoint says what is durable."""
    program = f"""
copy = yard.copy_image("b", {disk!r}, {base!r}, options={{"rate_limit": {2 * MiB}, **{options}}})
print(copy, flush=True)
opened = yard.service.connections.get("b")
import time
while (found := opened.progress(copy)) is None or found.durable_bytes == 0:
    time.sleep(0.05)
print(found.durable_bytes, flush=True)
time.sleep(600)
"""
    process = python(rig, "killed", program)
    assert process.stdout is not None
    copy = process.stdout.readline().strip()
    durable_bytes = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert 0 < durable_bytes < SIZE
    return copy


@pytest.mark.parametrize("kind", ["whole", "difference"])
def test_a_killed_copy_goes_on_from_its_checkpoint(rig: Rig, kind: str) -> None:
    """Another host sees how far it was, finishes it without beginning again, and the bytes are right."""
    yard = rig.yard
    disk = rig.disk("a", *BUSY, size=SIZE)
    base = rig.disk("b", (99, 0, SIZE), size=SIZE) if kind == "difference" else None
    copy = killed_copy(rig, disk, base)
    status = yard.get_image_status("b", copy)
    assert (status.status, status.host_id, status.task_id) == ("broken", "killed", None)
    progress = rig.repository("b").progress(copy)
    assert progress is not None
    durable_bytes = progress.durable_bytes
    volumes = rig.files("b")
    rig.write("a", disk, (200, 0, SIZE))
    other = rig.host("two")
    (fix,) = fixes(other, "b", "mend")
    assert fix.runnable
    task = run_fix(other, "b", fix)
    assert task.changed
    assert task.total_bytes <= SIZE - durable_bytes
    assert rig.files("b") == volumes
    rig.expect("b", copy, picture(SIZE, *BUSY))
    settle(other, "a", "b")
    rig.expect("b", copy, picture(SIZE, *BUSY))
    if base is not None:
        rig.expect("b", base, picture(SIZE, (99, 0, SIZE)))
    rig.clean_slate("a", "b")


def test_progress_that_is_lost_costs_only_time(rig: Rig) -> None:
    """Without its progress a copy begins again, and is right."""
    disk = rig.disk("a", *BUSY, size=SIZE)
    copy = killed_copy(rig, disk)
    rig.repository("b").storage.remove_progress(copy)
    settle(rig.host("two"), "b", "a")
    rig.expect("b", copy, picture(SIZE, *BUSY))
    rig.clean_slate("a", "b")


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_progress_that_is_damaged_is_not_believed(rig: Rig, damage: bytes | None) -> None:
    """Nor is one of another volume or source, however far it says the work was."""
    disk = rig.disk("a", *BUSY, size=SIZE)
    copy = killed_copy(rig, disk)
    repository = rig.repository("b")
    progress = repository.progress(copy)
    assert progress is not None
    if damage is not None:
        repository.storage.put_progress(copy, damage)
    else:
        repository.put_progress(replace(progress, durable_bytes=SIZE, fingerprint="another"))
    settle(rig.host("two"), "b", "a")
    rig.expect("b", copy, picture(SIZE, *BUSY))


def test_a_volume_that_was_lost_is_made_again(rig: Rig) -> None:
    """The checkpoint of a volume that is not there any more counts for nothing."""
    disk = rig.disk("a", *BUSY, size=SIZE)
    copy = killed_copy(rig, disk)
    for path in rig.files("b"):
        path.unlink()
    settle(rig.host("two"), "b", "a")
    rig.expect("b", copy, picture(SIZE, *BUSY))


def test_stopped_and_gone_on_with(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy stopped by its caller keeps what it did for whoever runs its fix."""
    yard: Diskyard = rig.yard
    disk = rig.disk("a", *BUSY, size=SIZE)
    copy = yard.copy_image("b", disk, options=COMMIT_ONLY)
    (fix,) = fixes(yard, "b", "mend")
    module = fix_module("work").Work
    original = module.checkpoint

    def stop_after(work: object, durable_bytes: int) -> None:
        original(work, durable_bytes)
        if durable_bytes:
            kill()

    monkeypatch.setattr("diskyard.mover.copying.moving._CHECKPOINT_S", 0.0)
    monkeypatch.setattr("diskyard.mover.copying.telling._BATCH_MOVES", 1)
    monkeypatch.setattr("diskyard.mover.copying.moving._IN_FLIGHT_MOST", 1)
    with monkeypatch.context() as patch:
        patch.setattr(module, "checkpoint", stop_after)
        task = yard.fix_storage_repository("b", fix)
        assert yard.wait_for_tasks(30)
        assert json.dumps(yard.get_task(task.task_id).error)
    progress = rig.repository("b").progress(copy)
    assert progress is not None
    assert 0 < progress.durable_bytes < SIZE
    assert run_fix(rig.host("two"), "b", fix).total_bytes <= SIZE - progress.durable_bytes
    rig.expect("b", copy, picture(SIZE, *BUSY))


def test_a_killed_optimize_begins_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it left is cleaned, the image was whole all the time."""
    yard = rig.yard
    disk = rig.disk("a", (1, 0, MiB), size=SIZE)
    yard.create_snapshot("a", disk)
    rig.write("a", disk, (2, 64 * KiB, MiB))
    yard.set_strategy("a", disk, "performance")
    program = """
import os
import diskyard.fixes.optimize as module
original = module.copy_view
def copy_view(*arguments, **words):
    original(*arguments, **words)
    os.kill(os.getpid(), 9)
module.copy_view = copy_view
(fix,) = yard.check_storage_repository("a", options={"types": ["optimize"]})
yard.wait_for_task(yard.fix_storage_repository("a", fix).task_id)
"""
    process = python(rig, "killed", program)
    process.communicate(timeout=60)
    assert process.returncode == -9
    assert {fix.type for fix in fixes(yard, "a")} >= {"optimize", "clean"}
    rig.expect("a", disk, picture(SIZE, (1, 0, MiB), (2, 64 * KiB, MiB)))
    settle(yard, "a")
    rig.expect("a", disk, picture(SIZE, (1, 0, MiB), (2, 64 * KiB, MiB)))
    assert yard.get_image_status("a", disk).status == "optimized"
    rig.clean_slate("a")


def test_a_volume_that_was_made_without_a_checkpoint(rig: Rig) -> None:
    """What is under its name is nobody's promise, even if it is as long as it should be."""
    disk = rig.disk("a", *BUSY[:4], size=SIZE)
    copy = rig.yard.copy_image("b", disk, options=COMMIT_ONLY)
    state = rig.repository("b").state()
    name = volume_name(state.volumes[str(state.images[copy].volume_id)])
    (Path(rig.place("b")["path"]) / "volumes" / str(name)).write_bytes(b"\xff" * SIZE)
    settle(rig.host("two"), "b", "a")
    rig.expect("b", copy, picture(SIZE, *BUSY[:4]))
    rig.clean_slate("a", "b")
