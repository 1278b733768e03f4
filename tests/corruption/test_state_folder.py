"""What a host remembers, damaged: a clear error, or nothing remembered."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.service import Service, call
from diskyard.testing.corruption import DAMAGES, Damage, Outside
from diskyard.testing.survey import watchdog
from diskyard.testing.world import World, host_named
from tests.conftest import Tally
from tests.corruption.cases import Bench


def folder_of(world: World) -> Path:
    """The state folder of a host that has connections and tasks."""
    service = world.service(host_named("keeper"))
    asked = {"repositoryId": "a", "imageId": world.names["d"], "strategy": "performance"}
    call(service, "setStrategy", asked)
    fix = next(f for f in call(service, "checkStorageRepository", {"repositoryId": "a"}) if f["runnable"])
    task = call(service, "fixStorageRepository", {"repositoryId": "a", "fix": fix})
    while call(service, "getTask", {"taskId": task["taskId"]})["state"] in ("queued", "running"):
        service.host.clock.sleep(0.02)
    service.close()
    return world.folder / "state-keeper"


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_connections(bench: Bench, outside: Outside, tally: Tally, damage: Damage) -> None:
    """The file is named, or nothing is known."""
    tally("corruption")
    folder = bench.folder / "state"
    folder.mkdir()
    path = folder / "connections.json"
    path.write_bytes(b'{"a":{"format":"localfs-1.0","parameters":{"path":"/nowhere"}}}')
    try:
        damage.apply(path, outside)
        with watchdog(30):
            _expect_named(folder, path)
    finally:
        shutil.rmtree(folder)
    tally("corruption", cases=1, runs=1)


def _expect_named(folder: Path, path: Path) -> None:
    words = None
    try:
        service = Service(host_named("keeper"), str(folder))
        call(service, "listStorageRepositories", {})
        service.close()
    except errors.StorageError as error:
        words = error.message
    assert words is None or str(path) in words


#: JSON that is right, and says what no Diskyard wrote.
STRANGE = (
    b'{"a":{"format":"unknown","parameters":{}}}',
    b'{"a":{"format":"localfs-1.0","parameters":{"path":"relative"}}}',
    b'{"a":{"format":"localfs-1.0","parameters":{"path":"/proc/self/mem"}}}',
    b'{"a\\u0000":{"format":"localfs-1.0","parameters":{"path":[1]}}}',
    b'{"a":{"format":"localfs-1.0","parameters":' + b'{"path":' * 500 + b"1" + b"}" * 500 + b"}}",
    b"[" * 100_000,
    b"[]",
)


@pytest.mark.parametrize("data", STRANGE, ids=range(len(STRANGE)))
def test_strange_connections(tmp_path: Path, tally: Tally, data: bytes) -> None:
    """The same."""
    tally("corruption")
    (tmp_path / "host").mkdir()
    path = tmp_path / "host" / "connections.json"
    path.write_bytes(data)
    with watchdog(30):
        _expect_named(path.parent, path)
    tally("corruption", cases=1, runs=1)


def test_tasks(bench: Bench, outside: Outside, tally: Tally) -> None:
    """A task that cannot be read is not shown; the others are, and nothing is made elsewhere."""
    tally("corruption")
    with bench.world() as world:
        folder = folder_of(world) / "tasks"
        (path,) = folder.glob("*.task")
        whole = path.read_bytes()
        for number, damage in enumerate(DAMAGES):
            copy = folder / f"copy-{number}.task"
            copy.write_bytes(whole)
            damage.apply(copy, outside)
        (folder / "elsewhere.task").write_bytes(whole.replace(path.stem.encode(), b"../../outside"))
        (folder / "deep.task").write_bytes(b"[" * 100_000)
        service = Service(host_named("keeper"), str(folder.parent))
        assert [task["taskId"] for task in call(service, "listTasks", {})] == [path.stem]
        for name in ("elsewhere", "copy-0", "deep"):
            for verb in ("getTask", "stopTask"):
                with pytest.raises(errors.TaskNotFound):
                    call(service, verb, {"taskId": name})
        service.close()
    tally("corruption", cases=len(DAMAGES) + 2, runs=1)


def _file(folder: Path) -> None:
    folder.write_bytes(b"")


def _link(folder: Path) -> None:
    folder.symlink_to(folder.parent / "nowhere")


@pytest.mark.parametrize("make", [_file, _link], ids=["file", "link"])
@pytest.mark.parametrize("name", ["", "tasks", "nbd"])
def test_folders(tmp_path: Path, tally: Tally, name: str, make: Callable[[Path], None]) -> None:
    """An error of the table, if anything."""
    tally("corruption")
    folder = tmp_path / "host"
    if name:
        folder.mkdir()
    make(folder / name if name else folder)
    with watchdog(30), contextlib.suppress(errors.StorageError):
        service = Service(host_named("keeper"), str(folder))
        try:
            call(service, "listTasks", {})
        finally:
            service.close()
    tally("corruption", cases=1, runs=1)
