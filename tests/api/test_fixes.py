"""check, fix and tasks: AutoFix=false, other hosts and processes, stopping, what is kept."""

from __future__ import annotations

import errno
import json
from typing import Any

import pytest

from diskyard import KiB, MiB, errors
from diskyard.model import fix as model
from diskyard.service import call
from tests.api.helpers import (
    COMMIT_ONLY,
    SIZE,
    Rig,
    code_of,
    fix_module,
    fixes,
    intercept,
    kill,
    picture,
    python,
    run_fix,
    settle,
)

ONE = (1, 0, MiB)
SLOW = {"rate_limit": 256 * KiB}


def left_work(rig: Rig) -> tuple[str, str]:
    """A copy to complete, a disk to optimize, an image to merge, a volume to clean."""
    yard = rig.yard
    disk = rig.disk("a", ONE)
    middle = yard.create_snapshot("a", disk)
    rig.write("a", disk, (2, MiB, 64 * KiB))
    copy = yard.copy_image("b", disk, options=COMMIT_ONLY)
    yard.set_strategy("a", disk, "performance")
    yard.remove_image("a", middle, options=COMMIT_ONLY)
    yard.remove_image("a", rig.disk("a", ONE), options=COMMIT_ONLY)
    return disk, copy


def test_auto_fix_false_leaves_work_to_another_host(rig: Rig) -> None:
    """The second host lists every type of it, and leaves nothing to do."""
    disk, copy = left_work(rig)
    assert rig.yard.list_tasks() == []
    other = rig.host("two")
    assert {fix.type for fix in fixes(other, "a")} == {"merge", "optimize", "clean"}
    assert {fix.type for fix in fixes(other, "b")} == {"mend"}
    for repo, kind in (("b", "mend"), ("a", "merge"), ("a", "optimize"), ("a", "clean")):
        listed = fixes(other, repo, kind)
        assert {fix.type for fix in listed} == {kind}
        assert all(None not in (f.frees_bytes, f.moves_bytes, f.needs_bytes) for f in listed if f.runnable)
    settle(other, "b", "a")
    for repo, image in (("a", disk), ("b", copy)):
        rig.expect(repo, image, picture(SIZE, ONE, (2, MiB, 64 * KiB)))
    assert rig.yard.get_image_status("a", disk).status == "optimized"
    assert rig.yard.get_image_status("b", copy).host_id == "two"
    rig.clean_slate("a", "b")


def test_another_process_runs_them(rig: Rig) -> None:
    """A process of another host finds and runs the fixes; this one sees the result."""
    disk, copy = left_work(rig)
    program = """
for repo in ("b", "a", "b", "a"):
    for fix in yard.check_storage_repository(repo):
        if fix.runnable:
            task = yard.wait_for_task(yard.fix_storage_repository(repo, fix).task_id, 60)
            print(fix.type, task.state)
yard.close()
"""
    process = python(rig, "other", program)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert {line.split()[0] for line in out.splitlines()} == {"mend", "merge", "optimize", "clean"}
    assert {line.split()[1] for line in out.splitlines()} == {"done"}
    rig.expect("a", disk, picture(SIZE, ONE, (2, MiB, 64 * KiB)))
    rig.expect("b", copy, picture(SIZE, ONE, (2, MiB, 64 * KiB)))
    assert rig.yard.get_image_status("b", copy).host_id == "other"
    settle(rig.yard, "a", "b")
    rig.clean_slate("a", "b")


def test_a_fix_is_sent_back_as_json(rig: Rig) -> None:
    """The whole of it survives the wire, any host, any repoId, and twice is once."""
    _, copy = left_work(rig)
    listed = rig.call("checkStorageRepository", repositoryId="b", options={"types": ["mend"]})
    text = json.dumps(listed[0])
    other = rig.host("two", connect=("a",))
    other.connect_storage_repository("my b", rig.format, rig.place("b"))
    for expected in (True, False):
        words = {"repositoryId": "my b", "fix": json.loads(text)}
        task = call(other.service, "fixStorageRepository", words)
        assert other.wait_for_task(task["taskId"], 30).changed is expected
    rig.expect("b", copy, picture(SIZE, ONE, (2, MiB, 64 * KiB)))


def test_fix_ids_are_stable(rig: Rig) -> None:
    """The same finding has the same id on every host and at every time."""
    left_work(rig)
    first = {fix.fix_id: fix.type for repo in "ab" for fix in fixes(rig.yard, repo)}
    second = {fix.fix_id: fix.type for repo in "ab" for fix in fixes(rig.host("two"), repo)}
    assert first == second


@pytest.mark.parametrize(
    "change",
    [
        {"fixId": "mend-000000000000000000000000"},
        {"data": {"marker": "x", "action": {"do": "mend", "imageId": "x"}}},
        {"data": {"marker": "x"}},
        {"data": None},
        {"type": "nonsense"},
        {"more": 1},
    ],
)
def test_a_fix_that_was_changed_is_refused(rig: Rig, change: dict[str, Any]) -> None:
    """Nothing that was tampered with is run, and no task is made."""
    left_work(rig)
    fix = {**rig.call("checkStorageRepository", repositoryId="b")[0], **change}
    words = {"repositoryId": "b", "fix": fix}
    assert rig.refusal("fixStorageRepository", **words) == "InvalidParameter"
    assert rig.yard.list_tasks() == []


def test_hostile_fixes_do_nothing(rig: Rig) -> None:
    """Well-formed fixes that no check listed are judged by what there is, not by what they say."""
    disk = rig.disk("a", ONE)
    marker = rig.repository("a").marker
    state = rig.repository("a").state()
    volume_id = state.images[disk].volume_id or ""
    name = rig.volume_path("a", disk).name
    for action in (
        model.CleanVolume(volume_id=volume_id),
        model.CleanGarbage(name=name),
        model.CleanGarbage(name="../../x"),
        model.CleanLeftover(name="../log/0000000000000001.a"),
        model.CleanLeftover(name=f"volumes/{name}"),
        model.CleanProgress(image_id="../log/0000000000000001.a"),
        model.CleanAttachment(attachment_id="x"),
        model.CleanReplica(kind="entry", number=1),
        model.Merge(image_id=disk),
        model.Optimize(image_id=disk),
        model.Mend(image_id=disk),
    ):
        data = model.FixData(marker, action)
        fix = model.Fix(
            fix_id=model.fix_id(data), type=model.fix_type(action), description="", image_id=None,
            runnable=True, waits_for=None, held_by=None, frees_bytes=0, moves_bytes=0, needs_bytes=0,
            data=data,
        )  # fmt: skip
        assert run_fix(rig.yard, "a", fix).changed is False, action
    rig.expect("a", disk, picture(SIZE, ONE))
    rig.clean_slate("a")


def test_a_fix_of_another_repository_is_refused(rig: Rig) -> None:
    """It says to which repository a fix must be sent."""
    left_work(rig)
    (fix,) = fixes(rig.yard, "b")
    assert code_of(lambda: rig.yard.fix_storage_repository("a", fix)) == "InvalidParameter"


def test_check_filters(rig: Rig) -> None:
    """By type and by image."""
    disk, copy = left_work(rig)
    every = fixes(rig.yard, "a")
    some = rig.yard.check_storage_repository("a", options={"types": ["merge", "clean"]})
    assert [fix.type for fix in every if fix.type in ("merge", "clean")] == [fix.type for fix in some]
    of_disk = rig.yard.check_storage_repository("a", options={"image_ids": [disk]})
    assert of_disk
    assert {fix.image_id for fix in of_disk} == {disk}
    assert rig.yard.check_storage_repository("b", options={"image_ids": [disk]}) == []
    assert len(rig.yard.check_storage_repository("b", options={"image_ids": [copy]})) == 1


def test_check_changes_nothing(rig: Rig) -> None:
    """Neither the log nor the storage, also where it looks deep."""
    left_work(rig)
    before = [(rig.repository(repo).state().version, rig.files(repo)) for repo in "ab"]
    for repo in "ab":
        rig.yard.check_storage_repository(repo, options={"deep": True})
    assert [(rig.repository(repo).state().version, rig.files(repo)) for repo in "ab"] == before


def test_a_fix_without_room_is_refused_before_it_starts(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """NoSpace says what is needed; nothing was made, and the image says why it is not complete."""
    disk, copy = left_work(rig)
    storage = rig.repository("b").storage
    capacity = storage.capacity()
    full = type(capacity)(capacity.capacity_bytes, 0)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "capacity", lambda: full)
        (fix,) = fixes(rig.yard, "b")
        with pytest.raises(errors.NoSpace, match=r"\d+ bytes"):
            run_fix(rig.yard, "b", fix)
    assert rig.files("b") == []
    assert "needs" in rig.yard.get_image_status("b", copy).last_error
    settle(rig.yard, "b")
    assert rig.yard.get_image_status("b", copy).last_error == ""
    rig.expect("b", copy, picture(SIZE, ONE, (2, MiB, 64 * KiB)))
    assert disk


def test_stop_task(rig: Rig) -> None:
    """The work done stays, last_error says it was stopped, its fix stays listed and completes."""
    yard = rig.yard
    disk = rig.disk("a", (1, 0, SIZE))
    copy = yard.copy_image("b", disk, options=SLOW)
    task_id = yard.get_image_status("b", copy).task_id
    assert task_id is not None
    assert yard.list_tasks(copy)[0].task_id == task_id
    yard.stop_task(task_id)
    task = yard.wait_for_task(task_id, 20)
    assert (task.state, task.verb, task.image_id) == ("stopped", "mend", copy)
    status = yard.get_image_status("b", copy)
    assert (status.status, status.task_id) == ("broken", None)
    assert "stopped" in status.last_error
    with pytest.raises(errors.ImageBroken, match="stopped"):
        yard.wait_for_image("b", copy, 10)
    yard.stop_task(task_id)  # it has ended: nothing happens
    settle(rig.host("two"), "b", "a")
    status = yard.get_image_status("b", copy)
    assert (status.status, status.last_error, status.host_id) == ("optimized", "", "two")
    rig.expect("b", copy, picture(SIZE, (1, 0, SIZE)))


def test_tasks_of_every_process_of_the_host_are_seen(rig: Rig) -> None:
    """Another process of the host lists a running task, stops it, and still has it when it is over."""
    disk = rig.disk("a", (1, 0, SIZE))
    program = f"""
copy = yard.copy_image("b", {disk!r}, options={SLOW!r})
print(copy, flush=True)
yard.wait_for_tasks()
print("ended", flush=True)
yard.close()
"""
    process = python(rig, "one", program)
    assert process.stdout is not None
    copy = process.stdout.readline().strip()
    (task,) = rig.yard.list_tasks(copy)
    assert task.state in ("queued", "running")
    assert rig.yard.get_image_status("b", copy).task_id == task.task_id
    assert code_of(lambda: rig.yard.disconnect_storage_repository("b")) == "RepositoryInUse"
    assert rig.host("two").list_tasks() == []
    rig.yard.stop_task(task.task_id)
    assert process.stdout.readline().strip() == "ended"
    process.communicate(timeout=30)
    again = rig.host("one", connect=())
    assert again.get_task(task.task_id).state == "stopped"
    assert [found.task_id for found in again.list_tasks()] == [task.task_id]


def test_unknown_tasks(rig: Rig) -> None:
    """A task that never was is TaskNotFound, whatever its name looks like."""
    for task_id in ("none", "", "../connections", "a" * 5000, "\0"):
        for verb in ("getTask", "stopTask"):
            assert rig.refusal(verb, taskId=task_id) == "TaskNotFound"


@pytest.mark.embedded("closing ends this process's tasks; a client of a daemon leaves them to it")
def test_closing_stops_tasks_and_leaves_their_fixes(rig: Rig) -> None:
    """Closing returns soon; what was under way is for anybody to go on with."""
    disk = rig.disk("a", (1, 0, SIZE))
    host = rig.host("three")
    copy = host.copy_image("b", disk, options={"rate_limit": 16 * KiB})
    host.close()
    assert [task.state for task in host.list_tasks()] == ["stopped"]
    settle(rig.yard, "b", "a")
    rig.expect("b", copy, picture(SIZE, (1, 0, SIZE)))


def test_a_fix_keeps_the_rate_of_its_operation(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever mends a copy goes as slow as its caller wished, unless the fix says otherwise."""
    disk = rig.disk("a", ONE)
    for given, wanted in (({}, 7 * MiB), ({"rate_limit": 5 * MiB}, 5 * MiB)):
        copy = rig.yard.copy_image("b", disk, options={**COMMIT_ONLY, "rate_limit": 7 * MiB})
        (fix,) = rig.yard.check_storage_repository("b", options={"image_ids": [copy]})
        seen: list[int] = []
        original = fix_module("mend").copy_view

        def watched(*arguments: Any, seen: list[int] = seen, original: Any = original, **words: Any) -> None:
            seen.append(words["monitor"].rate_limit_bytes_per_s)
            original(*arguments, **words)

        with monkeypatch.context() as patch:
            patch.setattr(fix_module("mend"), "copy_view", watched)
            other = rig.host("two")
            task = other.fix_storage_repository("b", fix, options=given)
            assert other.wait_for_task(task.task_id, 30).changed
        assert seen == [wanted]


def test_a_hold_whose_target_is_gone_ends_by_force_only(rig: Rig) -> None:
    """Also by force it does not end while its copy is known to be wanted."""
    yard = rig.yard
    disk = rig.disk("a", ONE)
    yard.copy_image("b", disk, options=COMMIT_ONLY)
    alone = rig.host("two", connect=("a",))
    (fix,) = [found for found in fixes(alone, "a", "clean") if "kept for a copy" in found.description]
    assert not fix.runnable
    force = {"force": True}
    for host, options, changed in ((alone, {}, False), (yard, force, False), (alone, force, True)):
        task = host.fix_storage_repository("a", fix, options=options)
        assert host.wait_for_task(task.task_id, 30).changed is changed
    assert all(image.held_for == () for image in rig.repository("a").state().images.values())
    settle(alone, "a")
    rig.expect("a", disk, picture(SIZE, ONE))


def test_showing_a_task_may_fail(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state folder without room costs what was to be seen, and none of the work."""
    disk = rig.disk("a", ONE)

    def full(_task: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rig.yard.service.records, "_write", full)
        copy = rig.yard.copy_image("b", disk)
        assert rig.yard.wait_for_tasks(30)
        (task,) = rig.yard.list_tasks(copy)
        assert (task.state, rig.yard.get_task(task.task_id)) == ("done", task)
    assert rig.yard.get_image_status("b", copy).status == "optimized"
    assert rig.host("one").list_tasks() == []
    rig.expect("b", copy, picture(SIZE, ONE))


def test_a_defect_is_kept_as_the_last_error(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody expected is told by getImageStatus too, until a later mend succeeds."""
    copy = rig.yard.copy_image("b", rig.disk("a", ONE), options=COMMIT_ONLY)
    (fix,) = fixes(rig.yard, "b")
    with monkeypatch.context() as patch:
        intercept(patch, fix_module("mend"), "copy_view", before=kill)
        assert code_of(lambda: run_fix(rig.yard, "b", fix)) == "InternalError"
    assert "Killed" in rig.yard.get_image_status("b", copy).last_error
    settle(rig.yard, "b")
    assert rig.yard.get_image_status("b", copy).last_error == ""


def test_a_restore_without_room_is_refused_before_it_starts(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Snapshot whose volume is missing needs room for it; nothing is made without."""
    snapshot = rig.yard.create_snapshot("a", rig.disk("a", ONE))
    rig.yard.copy_image("b", snapshot)
    rig.wait()
    rig.volume_path("b", snapshot).unlink()
    storage = rig.repository("b").storage
    capacity = storage.capacity()
    (fix,) = fixes(rig.yard, "b", "mend")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "capacity", lambda: type(capacity)(capacity.capacity_bytes, MiB - 1))
        assert code_of(lambda: run_fix(rig.yard, "b", fix)) == "NoSpace"
    assert rig.files("b") == []
    settle(rig.yard, "b")
    rig.expect("b", snapshot, picture(SIZE, ONE))
