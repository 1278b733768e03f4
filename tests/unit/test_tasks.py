"""The task files: two processes that begin at one time, and a folder that takes none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from diskyard.host import Host
from diskyard.model.results import Task
from diskyard.tasks.records import TaskRecords

TASK = Task(task_id="1", verb="mend", repository_id=None, image_id=None, state="running")


def test_two_processes_make_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, folder = Host.real(), tmp_path / "tasks"

    def too_late(path: str) -> bool:
        os.mkdir(path)
        return False

    monkeypatch.setattr(host.files, "exists", too_late)
    TaskRecords(host, str(folder)).put(TASK)
    assert (folder / "1.task").exists()


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host.real()
    records = TaskRecords(host, str(tmp_path))

    def full(*_words: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(host.files, "write", full)
        records.put(TASK)
    assert list(tmp_path.iterdir()) == []
    assert records.get("1") == TASK
    assert records.all() == [TASK]
    records.put(TASK)
    assert TaskRecords(host, str(tmp_path)).all() == [TASK]


def test_those_that_have_not_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that have are read once, however often others are asked for."""
    host = Host.real()
    records, others = TaskRecords(host, str(tmp_path)), TaskRecords(host, str(tmp_path))
    for number in range(2, 6):
        records.put(replace(TASK, task_id=str(number), state="done"))
    others.put(TASK)
    assert records.unended() == [TASK]
    reads: list[str] = []
    read = host.files.read

    def counted(path: str, limit_bytes: int) -> bytes | None:
        reads.append(path)
        return read(path, limit_bytes)

    monkeypatch.setattr(host.files, "read", counted)
    assert records.unended() == [TASK]
    assert reads == [str(tmp_path / "1.task")]
    others.put(replace(TASK, state="failed"))
    assert records.unended() == []

    def full(*_words: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(host.files, "write", full)
    records.put(TASK)
    assert (records.unended(), others.unended()) == ([TASK], [])
