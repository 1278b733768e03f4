"""Our side: one copy in a process of its own, so that its memory and time are its own.

What is timed begins when Diskyard is loaded, as in a daemon, and ends when the copy is durable.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from importlib import import_module
from pathlib import Path

import msgspec

from benchmarks._disks import make_empty_target
from benchmarks._processes import KiB, Outcome, measure
from diskyard import Diskyard
from diskyard.host import Host
from diskyard.model.results import ImageStatus
from diskyard.mover.copying.copy import copy_view
from diskyard.mover.interface import Chain


class CopyJob(msgspec.Struct, tag=True):
    """Make the top layer of a target, and copy a view into it."""

    source: Chain
    target: Chain
    size_bytes: int


class VerbJob(msgspec.Struct, tag=True):
    """Call copyImage, and wait until the copy is complete, then for what follows.

    :param repositories: the folder of each by its name.
    """

    state_folder: str
    repositories: dict[str, str]
    target: str
    image_id: str
    base_image_id: str | None = None
    track_changes: bool = False


class Report(msgspec.Struct):
    """What the process tells.

    :param base_bytes: the most that it had in memory before it began.
    :param image_id: of a verb: the new image.
    :param all_s: of a verb: until the merges and removals that follow had ended too.
    """

    took_s: float
    cpu_s: float
    base_bytes: int
    image_id: str | None = None
    all_s: float | None = None


import_module("diskyard.service.whole")  # what a daemon has imported from its beginning


class _Quiet:
    """A monitor that lets all go on."""

    rate_limit_bytes_per_s = 0
    inherit_fds: Sequence[int] = ()

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        pass

    def checkpoint(self, durable_bytes: int) -> None:
        pass


def run_ours(job: CopyJob | VerbJob) -> tuple[Outcome, str | None]:
    """Do a job in a fresh process; what was measured, and the image that a verb made."""
    words = msgspec.json.encode(job).decode()
    outcome = measure([[sys.executable, "-m", "benchmarks._ours", words]])
    report = msgspec.json.decode(outcome.said, type=Report)
    outcome.took_s, outcome.cpu_s = report.took_s, report.cpu_s
    outcome.base_bytes = report.base_bytes
    if report.all_s is not None:
        outcome.remark = f"all that follows had ended after {report.all_s:.3f} s"
    return outcome, report.image_id


def connected(job: VerbJob) -> Diskyard:
    """A host with the job's repositories."""
    yard = Diskyard(state_folder=job.state_folder)
    known = {info.repo_id for info in yard.list_storage_repositories()}
    for name, folder in job.repositories.items():
        place = {"path": folder}
        if not Path(folder).exists():
            yard.create_storage_repository("localfs-1.0", place)
        if name not in known:
            yard.connect_storage_repository(name, "localfs-1.0", place)
    return yard


def _copy(job: CopyJob) -> Report:
    host = Host.real()
    before = _Counted()
    make_empty_target(job.target[0], has_parent=len(job.target) > 1)
    copy_view(
        host, job.source, job.target, job.size_bytes, start_bytes=0, monitor=_Quiet(), target_zeroed=True
    )
    return before.report()


def _call(job: VerbJob) -> Report:
    yard = connected(job)
    try:
        before = _Counted()
        options = {"track_changes": job.track_changes}
        image_id = yard.copy_image(job.target, job.image_id, job.base_image_id, options=options)
        with closing(yard.transport.watch(("task", "image"), None)) as changes:
            while is_under_way(yard.get_image_status(job.target, image_id)):
                next(changes)
        report = before.report(image_id)
        yard.wait_for_image(job.target, image_id)
        yard.wait_for_tasks()
        report.all_s = before.report().took_s
    finally:
        yard.close()
    return report


def is_under_way(status: ImageStatus) -> bool:
    return status.status == "broken" and status.task_id is not None


class _Counted:
    """Time, processor time and memory before the work."""

    def __init__(self) -> None:
        self._cpu_s, self._base_bytes, self._begin_s = _cpu_s(), _peak_bytes(), time.perf_counter()

    def report(self, image_id: str | None = None) -> Report:
        took_s = time.perf_counter() - self._begin_s
        return Report(took_s, _cpu_s() - self._cpu_s, self._base_bytes, image_id)


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _peak_bytes() -> int:
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * KiB


def main() -> None:
    """Do the job that is given as JSON, and print the report."""
    job = msgspec.json.decode(sys.argv[1], type=CopyJob | VerbJob)
    report = _copy(job) if isinstance(job, CopyJob) else _call(job)
    print(msgspec.json.encode(report).decode())


if __name__ == "__main__":
    main()
