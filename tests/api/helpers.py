"""What the tests of the API share: hosts with two repositories, and bytes seen by QEMU's tools."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from diskyard import Diskyard, KiB, MiB, errors
from diskyard.log.codec import decode
from diskyard.model.fix import Fix
from diskyard.model.results import Attached, Task
from diskyard.model.transaction import Entry
from diskyard.planner.mend import set_damage
from diskyard.repository.repository import Repository, volume_name
from diskyard.testing import pathless
from diskyard.testing import rounded as rounded  # so that its format is known
from tests.transports import served

SIZE = 4 * MiB
UNLIMITED = 1 << 40
COMMIT_ONLY = {"auto_fix": False}
_WAIT_S = 60.0
_ROUNDS = 50

#: A stretch of one byte: pattern, offset, length.
Stretch = tuple[int, int, int]


class Killed(Exception):
    """Raised by a test in the middle of an operation, as if the process had ended there."""


def picture(size_bytes: int, *stretches: Stretch) -> bytes:
    """The bytes of a disk that was written so, one stretch after the other."""
    data = bytearray(size_bytes)
    for pattern, offset_bytes, length_bytes in stretches:
        data[offset_bytes : offset_bytes + length_bytes] = bytes([pattern]) * length_bytes
    return bytes(data)


def run(*words: str, env: Mapping[str, str] | None = None, check: bool = True) -> str:
    """Run a program and return what it printed on stdout."""
    done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
    assert not check or done.returncode == 0, (words[:3], done.stdout, done.stderr)
    return done.stdout


def graph(attached: Attached) -> str:
    """The file name with which QEMU's tools open an attachment."""
    return "json:" + json.dumps(attached.blockdev)


def qemu_io(attached: Attached, *commands: str) -> str:
    """Run commands of qemu-io on an attachment."""
    read_only = ["-r"] if attached.mode == "read_only" else []
    words = [word for command in commands for word in ("-c", command)]
    out = run("qemu-io", *read_only, *words, graph(attached))
    assert "failed" not in out, out
    return out


class Rig:
    """A host with the empty repositories ``a`` and ``b``, and more hosts on the same ones.

    :ivar yard: the first host.
    :ivar format: of the repositories.
    """

    def __init__(
        self, folder: Path, repository_folder: Path | None = None, format: str = "localfs-1.0"
    ) -> None:
        self.folder, self.format = folder, format
        self.repositories = repository_folder or folder
        self._hosts: list[Diskyard] = []
        self.yard = self.host("one", connect=())
        for name in ("a", "b"):
            self.yard.create_storage_repository(self.format, self.place(name))
            self.yard.connect_storage_repository(name, self.format, self.place(name))

    def place(self, name: str) -> dict[str, str]:
        """The connection parameters of a repository."""
        path = str(self.repositories / f"repo-{name}")
        return pathless.parameters(path) if self.format == pathless.FORMAT else {"path": path}

    def environment(self, name: str) -> dict[str, str]:
        """The environment of a process of a host."""
        words = {"DISKYARD_HOST_ID": name, "DISKYARD_STATE_DIR": str(self.folder / f"state-{name}")}
        return {**os.environ, **words}

    def host(self, name: str, connect: tuple[str, ...] = ("a", "b")) -> Diskyard:
        """Another host, connected to the same repositories."""
        before = os.environ.get("DISKYARD_HOST_ID")
        os.environ["DISKYARD_HOST_ID"] = name
        try:
            yard = served(Diskyard(state_folder=str(self.folder / f"state-{name}")))
        finally:
            del os.environ["DISKYARD_HOST_ID"]
            if before is not None:
                os.environ["DISKYARD_HOST_ID"] = before
        self._hosts.append(yard)
        for repo in connect:
            yard.connect_storage_repository(repo, self.format, self.place(repo))
        return yard

    def close(self) -> None:
        """End all hosts."""
        for yard in self._hosts:
            yard.close()

    def call(self, verb: str, **parameters: Any) -> Any:
        """Call a verb of the first host as the wire does."""
        return json.loads(json.dumps(self.yard.call(verb, parameters)))

    def refusal(self, verb: str, **parameters: Any) -> str:
        """The code of the error with which a verb refuses parameters."""
        return code_of(lambda: self.call(verb, **parameters))

    def repository(self, repo: str, yard: Diskyard | None = None) -> Repository:
        """A host's connection to a repository."""
        return (yard or self.yard).service.connections.get(repo)

    # -- bytes ---------------------------------------------------------------------------

    def write(self, repo: str, image: str, *stretches: Stretch, yard: Diskyard | None = None) -> None:
        """Write to a disk as a guest does."""
        yard = yard or self.yard
        attached = yard.prepare_image(repo, image)
        try:
            qemu_io(
                attached, *(f"write -P {p} {offset} {length}" for p, offset, length in stretches), "flush"
            )
        finally:
            yard.teardown_image(repo, image)

    def read(self, repo: str, image: str, yard: Diskyard | None = None) -> bytes:
        """All bytes of an image, as QEMU reads them."""
        yard = yard or self.yard
        attached = yard.prepare_image(repo, image, options={"read_only": True, "owner": "reader"})
        try:
            return self.convert(graph(attached))
        finally:
            yard.teardown_image(repo, image, options={"owner": "reader"})

    def convert(self, source: str, source_format: str | None = None) -> bytes:
        """All bytes of what qemu-img opens."""
        out = self.folder / "converted.raw"
        given = ["-f", source_format] if source_format else []
        run("qemu-img", "convert", *given, "-O", "raw", source, str(out))
        data = out.read_bytes()
        out.unlink()
        return data

    def expect(self, repo: str, image: str, wanted: bytes, yard: Diskyard | None = None) -> None:
        """The image holds exactly these bytes."""
        same_bytes(self.read(repo, image, yard), wanted)

    def expect_in_use(self, repo: str, image: str) -> None:
        """Another owner cannot attach the image."""
        attach = {"owner": "somebody else"}
        assert code_of(lambda: self.yard.prepare_image(repo, image, options=attach)) == "ImageInUse"

    def allocated(self, repo: str, image: str) -> int:
        """Bytes that the image's own top volume occupies, by the file system."""
        repository = self.repository(repo)
        state = repository.state()
        stored = repository.stored(state.volumes[state.images[image].volume_id or ""])
        assert stored is not None
        return stored.allocated_bytes

    def volume_path(self, repo: str, image: str) -> Path:
        """The file that has the bytes of an image's own volume, also where Diskyard knows of none."""
        state = self.repository(repo).state()
        volume = state.volumes[state.images[image].volume_id or ""]
        return Path(self.place(repo)["path"]) / "volumes" / str(volume_name(volume))

    def damage(self, repo: str, image: str) -> None:
        """Record that an image's own volume is damaged, as a deep check does."""
        repository, author = self.repository(repo), self.yard.service.engine.author("checkStorageRepository")
        volume_id = str(repository.state().images[image].volume_id)
        repository.commit(lambda draft: set_damage(draft, volume_id, "for a test"), author)

    def files(self, repo: str) -> list[Path]:
        """The volumes on the storage."""
        return sorted((Path(self.place(repo)["path"]) / "volumes").iterdir())

    # -- work -----------------------------------------------------------------------------

    def wait(self) -> None:
        """Until the first host's tasks have ended; none may have failed."""
        assert self.yard.wait_for_tasks(_WAIT_S)
        assert [task.error for task in self.yard.list_tasks() if task.error] == []

    def disk(self, repo: str, *stretches: Stretch, size: int = SIZE, **options: Any) -> str:
        """A new disk that was written so."""
        image = self.yard.create_virtual_disk(repo, size, options=options)
        if stretches:
            self.write(repo, image, *stretches)
        return image

    def raw_disk(self, repo: str, *stretches: Stretch) -> str:
        """The same, of one raw volume: as a new disk is where new volumes are zero, and a copy everywhere."""
        disk = self.disk(repo, *stretches)
        if self.repository(repo).storage.capabilities.zeroed:
            return disk
        copy = self.yard.copy_image(repo, disk)
        self.wait()
        self.yard.remove_image(repo, disk)
        self.wait()
        return copy

    def clean_slate(self, *repos: str) -> None:
        """Nothing is left to do, and the storage has just what the log names."""
        for repo in repos:
            assert self.yard.check_storage_repository(repo, options={"deep": True}) == []
            assert len(self.files(repo)) == len(self.repository(repo).state().volumes)


def same_bytes(found: bytes, wanted: bytes) -> None:
    """Compare, and say where the difference is rather than what it is."""
    assert len(found) == len(wanted)
    if found != wanted:
        step = 4 * KiB
        offsets = [o for o in range(0, len(wanted), step) if found[o : o + step] != wanted[o : o + step]]
        first = next(o for o in range(offsets[0], len(wanted)) if found[o] != wanted[o])
        pytest.fail(f"{len(offsets)} blocks differ, from {first}: {found[first]} for {wanted[first]}")


def run_fix(yard: Diskyard, repo: str, fix: Fix) -> Task:
    """Run a fix to its end, as fast as it goes, however slow its operation was to be."""
    task = yard.fix_storage_repository(repo, fix, options={"rate_limit": UNLIMITED})
    return yard.wait_for_task(task.task_id, _WAIT_S)


def settle(yard: Diskyard, *repos: str) -> None:
    """Run fixes until none can be run; each must end well, or find that it is done."""
    found: list[tuple[str, Fix]] = []
    for _ in range(_ROUNDS):
        found = [(repo, fix) for repo in repos for fix in yard.check_storage_repository(repo) if fix.runnable]
        if not found:
            return
        for repo, fix in found:
            run_fix(yard, repo, fix)
    raise AssertionError(f"still to do: {[fix.description for _, fix in found]}")


def wait_until(happens: Callable[[], bool]) -> None:
    """Until something has happened that must."""
    deadline_s = time.monotonic() + _WAIT_S
    while not happens():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def fixes(yard: Diskyard, repo: str, kind: str | None = None) -> list[Fix]:
    """What check lists, or what of a type."""
    return yard.check_storage_repository(repo, options={"types": [kind]} if kind else None)


def actors(repository: Repository, verb: str) -> set[str]:
    """Who has committed something by a verb or type of fix, as the log names them."""
    storage = repository.storage
    copies = (copy for number in storage.numbers("entry") for copy in storage.get("entry", number))
    entries = [decode(copy, Entry)[0] for copy in copies if copy is not None]
    return {entry.actor for entry in entries if entry.verb == verb}


def intercept(
    patch: pytest.MonkeyPatch,
    target: object,
    name: str,
    times: int = 1,
    /,
    **actions: Callable[[], object],
) -> list[int]:
    """Do something ``before`` or ``after`` the next calls of a method; the list counts them."""
    original = getattr(target, name)
    calls: list[int] = []

    def wrapper(*arguments: Any, **words: Any) -> Any:
        mine = len(calls) < times
        calls.append(1)
        if mine and "before" in actions:
            actions["before"]()
        result = original(*arguments, **words)
        if mine and "after" in actions:
            actions["after"]()
        return result

    patch.setattr(target, name, wrapper)
    return calls


def kill() -> None:
    """End what is running, here."""
    raise Killed


def python(rig: Rig, host: str, program: str) -> subprocess.Popen[str]:
    """Start a process of a host that runs a program with a ``yard``."""
    head = f"""
from diskyard import *
from diskyard.testing import pathless, rounded
yard = Diskyard()
for name, place in {[(name, rig.place(name)) for name in "ab"]!r}:
    yard.connect_storage_repository(name, {rig.format!r}, place)
"""
    return subprocess.Popen(
        [sys.executable, "-c", head + program],
        env=rig.environment(host),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def code_of(action: Callable[[], object]) -> str:
    """The code of the error that an action raises."""
    with pytest.raises(errors.DiskyardError) as caught:
        action()
    assert caught.value.message
    assert caught.value.advice
    return caught.value.code


def clean_up(yard: Diskyard, repo: str) -> Callable[[], None]:
    """Check and run all that can be run, from another host: what is held by a lease is refused."""

    def run() -> None:
        for fix in fixes(yard, repo):
            try:
                run_fix(yard, repo, fix)
            except (errors.LeaseHeld, errors.ImageInUse, errors.ImageBroken):
                continue

    return run


def fix_module(name: str) -> Any:
    """A module of the fixes: what it imported is replaced there."""
    return importlib.import_module(f"diskyard.fixes.{name}")
