"""What a process left when it was killed or closed is started again by the next, if it is told to."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest

from diskyard import Diskyard, MiB
from diskyard.daemon.resume import Resumed, resume
from tests.api.helpers import (
    COMMIT_ONLY,
    SIZE,
    UNLIMITED,
    Rig,
    actors,
    fixes,
    picture,
    python,
    settle,
    wait_until,
)

WHOLE = (1, 0, SIZE)
CRAWL = {"rate_limit": 1}

#: Two copies run, each at a byte a second; behind them wait a third one with what makes it better, and
#: an export. Then one more is stopped by its caller.
BUSY = """
import time
def running(copy):
    return any(task.state == "running" and task.total_bytes for task in yard.list_tasks(copy))
made = [yard.copy_image("b", DISK, options={"rate_limit": 1}) for _ in range(2)]
while not all(map(running, made)):
    time.sleep(0.05)
better = {"rate_limit": UNLIMITED, "optimize_now": True, "strategy": "performance"}
made.append(yard.copy_image("b", DISK, options=better))
yard.export_image("a", DISK, OUT, "raw")
made.append(yard.copy_image("b", DISK, options={"rate_limit": UNLIMITED}))
for task in yard.list_tasks(made[-1]):
    yard.stop_task(task.task_id)
print(*made, flush=True)
time.sleep(600)
"""


def killed(rig: Rig, disk: str) -> list[str]:
    """The copies that a process of the host had begun, queued, and stopped when it was killed."""
    program = BUSY.replace("DISK", repr(disk)).replace("UNLIMITED", str(UNLIMITED))
    process = python(rig, "one", program.replace("OUT", repr(str(rig.folder / "out"))))
    assert process.stdout is not None
    made = process.stdout.readline().split()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(made) == 4
    return made


def has_begun(host: Diskyard, copy: str) -> bool:
    return host.list_tasks(copy)[0].total_bytes > 0


def outcomes(done: list[Resumed]) -> list[tuple[str, str | None, str]]:
    return [(one.task.verb, one.task.image_id, one.outcome) for one in done]


def test_a_killed_process(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Running and queued fixes start again as asked for; what was stopped, and the export, do not."""
    disk = rig.disk("a", WHOLE)
    first, second, third, stopped = killed(rig, disk)
    states = {task.image_id: task.state for task in rig.yard.list_tasks()}
    assert states == dict.fromkeys((first, second, third, stopped, disk), "stopped")
    with caplog.at_level(logging.INFO, "diskyard.resume"):
        done = resume(rig.yard.service)
    assert sorted(outcomes(done), key=str) == sorted(
        [
            ("mend", first, "started"),
            ("mend", second, "started"),
            ("mend", third, "started"),
            ("optimize", third, "started"),
            ("exportImage", disk, "over"),
        ],
        key=str,
    )
    assert any("an export is not resumed" in record.getMessage() for record in caplog.records)
    by_image: dict[str | None, list[str]] = {}
    for one in done:
        if one.new_task_id is not None:
            by_image.setdefault(one.task.image_id, []).append(one.new_task_id)
    wait_until(lambda: all(rig.yard.get_task(by_image[key][0]).total_bytes for key in (first, second)))
    # Their callers' rates are kept: these two would take days, and the third has no place before.
    assert [rig.yard.get_task(task_id).state for task_id in by_image[third]] == ["queued", "queued"]
    rig.yard.stop_task(by_image[first][0])
    assert rig.yard.service.tasks.wait(by_image[third], 60)
    assert rig.yard.get_image_status("b", third).status == "optimized"
    rig.yard.stop_task(by_image[second][0])
    rig.wait()
    ended = [rig.yard.get_task(task_id) for task_id in by_image[third]]
    assert [(task.verb, task.state, task.changed) for task in ended] == [
        ("mend", "done", True),
        ("optimize", "done", True),
    ]
    assert resume(rig.yard.service) == []  # once each, and what its caller stopped stays so
    settle(rig.yard, "b", "a")
    for copy in (first, second, third, stopped):
        rig.expect("b", copy, picture(SIZE, WHOLE))
    rig.clean_slate("a", "b")


def test_a_close_in_order_says_whether_to_go_on(rig: Rig) -> None:
    disk = rig.disk("a", WHOLE)
    for resumable in (False, True):
        host = rig.host("two")
        copy = host.copy_image("b", disk, options=CRAWL)
        wait_until(partial(has_begun, host, copy))
        host.service.close(resumable=resumable)
        assert host.list_tasks(copy)[0].state == "stopped"
        next_one = rig.host("two")
        done = resume(next_one.service)
        assert outcomes(done) == ([("mend", copy, "started")] if resumable else [])
        next_one.close()
    assert resume(rig.host("two").service) == []


def test_a_repository_that_is_not_there_is_left_to_the_next_start(rig: Rig) -> None:
    """Its tasks are neither lost nor in the way of those of others; then they go on as their caller."""
    disk = rig.disk("a", WHOLE)
    other = rig.disk("b", WHOLE)
    program = f"""
import time
made = [yard.copy_image("b", {disk!r}, options={CRAWL!r}), yard.copy_image("a", {other!r}, options={CRAWL!r})]
while not all(any(t.total_bytes for t in yard.list_tasks(copy)) for copy in made):
    time.sleep(0.05)
made.append(yard.copy_image("a", {disk!r}, options={{"rate_limit": {UNLIMITED}}}))
print(*made, flush=True)
time.sleep(600)
"""
    process = python(rig, "two", program)
    assert process.stdout is not None
    in_b, in_a, queued = process.stdout.readline().split()
    process.kill()
    process.communicate()
    folder = Path(rig.place("b")["path"])
    away = folder.with_name("away")
    shutil.move(folder, away)
    next_one = rig.host("two", connect=())
    done = resume(next_one.service)
    # The copy from "b" into "a" has no source now: it cannot run yet.
    assert outcomes(done) == [
        ("mend", in_b, "later"),
        ("mend", in_a, "later"),
        ("mend", queued, "started"),
    ]
    assert [bool(one.why) for one in done] == [True, True, False]
    assert next_one.wait_for_tasks(60)
    rig.expect("a", queued, picture(SIZE, WHOLE))
    next_one.close()
    shutil.move(away, folder)
    last = rig.host("two", connect=())
    done = resume(last.service)
    assert outcomes(done) == [("mend", in_b, "started"), ("mend", in_a, "started")]
    for one in done:
        assert one.new_task_id is not None
        last.stop_task(one.new_task_id)
    assert last.wait_for_tasks(60)
    assert actors(rig.repository("b"), "mend") == {"python"}
    settle(rig.yard, "a", "b")
    rig.expect("b", in_b, picture(SIZE, WHOLE))
    rig.expect("a", in_a, picture(SIZE, WHOLE))


def test_what_is_queued_behind_what_cannot_run_waits_with_it(rig: Rig) -> None:
    """It is not listed yet, and not forgotten for that."""
    disk = rig.disk("a", WHOLE)
    host = rig.host("two")
    better = {"rate_limit": 1, "optimize_now": True, "strategy": "performance"}
    copy = host.copy_image("b", disk, options=better)
    host.service.close(resumable=True)
    folder = Path(rig.place("a")["path"])
    shutil.move(folder, folder.with_name("away"))
    next_one = rig.host("two", connect=())
    done = resume(next_one.service)
    assert outcomes(done) == [("mend", copy, "later"), ("optimize", copy, "later")]
    shutil.move(folder.with_name("away"), folder)
    done = resume(next_one.service)
    assert outcomes(done) == [("mend", copy, "started"), ("optimize", copy, "started")]


def test_what_is_done_meanwhile_is_not_started(rig: Rig) -> None:
    disk = rig.disk("a", WHOLE)
    host = rig.host("two")
    copy = host.copy_image("b", disk, options=CRAWL)
    host.service.close(resumable=True)
    settle(rig.yard, "b", "a")
    (one,) = resume(rig.host("two").service)
    assert (one.outcome, one.why) == ("over", "its fix is not listed any more")
    rig.expect("b", copy, picture(SIZE, WHOLE))
    assert resume(rig.host("two").service) == []


def test_what_kills_its_process_is_not_started_for_ever(rig: Rig) -> None:
    """Nor does it keep the daemon from running: after three times it stays listed for people."""
    disk = rig.disk("a", WHOLE)
    copy = rig.yard.copy_image("b", disk, options=COMMIT_ONLY)
    program = """
from diskyard.daemon.resume import resume
import os, time, sys
if sys.stdin.readline() == "first\\n":
    (fix,) = yard.check_storage_repository("b")
    yard.fix_storage_repository("b", fix, options={"rate_limit": 1})
else:
    print(*(one.outcome for one in resume(yard.service)), flush=True)
while yard.unfinished_tasks() and not any(task.total_bytes for task in yard.unfinished_tasks()):
    time.sleep(0.05)
os.kill(os.getpid(), 9)
"""
    said = []
    for line in ("first\n", *["next\n"] * 5):
        process = python(rig, "two", program)
        out, _ = process.communicate(line, timeout=60)
        said.append(out.strip())
    assert said == ["", "started", "started", "started", "over", ""]
    assert [fix.image_id for fix in fixes(rig.yard, "b", "mend")] == [copy]
    settle(rig.yard, "b", "a")
    rig.expect("b", copy, picture(SIZE, WHOLE))


def test_a_state_folder_that_takes_nothing_starts_nothing_twice(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be noted as started is left to the next start."""
    disk = rig.disk("a", WHOLE)
    host = rig.host("two")
    copy = host.copy_image("b", disk, options={"rate_limit": MiB})
    host.service.close(resumable=True)
    next_one = rig.host("two")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(next_one.service.host.files, "rename", full)
        (one,) = resume(next_one.service)
        assert one.outcome == "later"
        assert "No space" in one.why
    assert next_one.unfinished_tasks() == []
    assert outcomes(resume(next_one.service)) == [("mend", copy, "started")]
    assert next_one.wait_for_tasks(60)
    rig.expect("b", copy, picture(SIZE, WHOLE))
