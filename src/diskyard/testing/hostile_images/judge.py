"""Importing a case in a process of its own, under limits, and judging the result."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from diskyard.errors import CODES
from diskyard.repository.repository import Repository
from diskyard.service import Service, call
from diskyard.testing.hostile_images.cases import Case
from diskyard.testing.hostile_images.picture import Picture, picture_of_volume
from diskyard.testing.hostile_images.site import SECRET, Site
from diskyard.testing.hostile_images.trial import REPO
from diskyard.testing.world import host_named

ADDRESS_SPACE_BYTES = 3 << 29
PEAK_BYTES = 256 << 20
TIMEOUT_S = 60.0
_MODULE = "diskyard.testing.hostile_images.trial"
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one import.

    :param code: of the error that refused it; None if it was imported.
    :param committed: it was refused only when its bytes were to be read.
    :param wrong: everything that is wrong, in words.
    """

    code: str | None
    committed: bool
    wrong: list[str]


class ImportJudge:
    """A repository, a process that imports into it under limits, and the judge of both.

    :param trial: the program that imports. It can be another than Diskyard's own, to show that the judge
        notices a missing guard.
    :param address_space_bytes: how much memory that program, and each that it starts, may have.
    :ivar timeout_s: how long one import may take.
    :ivar peak_bytes: the most memory that any process had.
    """

    def __init__(
        self,
        folder: Path,
        *,
        format: str = "localfs-1.0",
        trial: Sequence[str] = ("-m", _MODULE),
        address_space_bytes: int = ADDRESS_SPACE_BYTES,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.site = Site(folder / "site")
        self.peak_bytes = 0
        self._folder = folder
        self.timeout_s = TIMEOUT_S
        self._trial = trial
        self._address_space_bytes = address_space_bytes
        self._parameters: Mapping[str, Any] = {"path": str(folder / "repository")}
        self._format = format
        asked = {"repoFormat": format, "connectionParameters": self._parameters}
        self._service = Service(host_named("judge"), str(folder / "state-judge"))
        call(self._service, "createStorageRepository", asked)
        call(self._service, "connectStorageRepository", {"repoId": REPO, **asked})
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()
        self._service.close()
        self.site.close()

    # -- the process ----------------------------------------------------------------------

    def _start(self) -> subprocess.Popen[bytes]:
        task = {
            "parameters": self._parameters,
            "repoFormat": self._format,
            "state": str(self._folder / "state-importer"),
            "address_space_bytes": self._address_space_bytes,
        }
        with (self._folder / "stderr").open("ab") as stderr:
            return subprocess.Popen(
                [sys.executable, "-W", "error", *self._trial, json.dumps(task)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )

    def _end(self) -> None:
        """End the process, and with it all that it has started."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def _ask(self, do: str, **words: object) -> dict[str, Any]:
        """Send the process a request; raise :class:`TimeoutError` if it does not answer."""
        if self._child is None:
            self._child = self._start()
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps({"do": do, **words}).encode() + b"\n")
        self._child.stdin.flush()
        readable, _, _ = select.select([self._child.stdout], [], [], self.timeout_s)
        line = self._child.stdout.readline() if readable else b""
        if not line:
            self._end()
            printed = (self._folder / "stderr").read_text()[-2000:]
            raise TimeoutError(f"{do} does not end" if not readable else f"{do} died: {printed}")
        answer: dict[str, Any] = json.loads(line)
        self.peak_bytes = max(self.peak_bytes, answer["peak_bytes"])
        return answer

    # -- judging --------------------------------------------------------------------------

    def judge(self, case: Case, *, stepwise: bool) -> Outcome:
        """Import a case, judge everything, and remove the image again."""
        path = self.site.new("itself")
        case.make(self.site, path)
        self.site.touched()
        try:
            return self.judge_file(case, path, stepwise=stepwise)
        finally:
            if path.is_symlink() or not path.is_dir():
                path.unlink(missing_ok=True)
            else:
                path.rmdir()

    def judge_file(self, case: Case, path: Path, *, stepwise: bool) -> Outcome:
        """The same for a file that exists already, and stays."""
        try:
            answer = self._ask("import_image", path=str(path), format=case.format, stepwise=stepwise)
            error, image = answer["error"], answer["image"]
            wrong = list(self._wrong(case, answer))
            if image is not None:
                wrong += self._listed(self._ask("remove", images=[image]))
            wrong += self._left()
        except TimeoutError as failure:
            self._clear()
            return Outcome(None, False, [str(failure)])
        return Outcome(None if error is None else error["code"], image is not None, wrong)

    def _wrong(self, case: Case, answer: dict[str, Any]) -> Iterator[str]:
        error, image = answer["error"], answer["image"]
        if touched := self.site.touched():
            yield f"touched: {touched}"
        if answer["children"]:
            yield f"processes left running: {answer['children']}"
        if answer["peak_bytes"] > PEAK_BYTES:
            yield f"{answer['peak_bytes'] >> 20} MiB of memory"
        if self._holds_secret():
            yield "the secret is in the repository"
        if error is None:
            yield from self._wrong_bytes(case, image, answer["status"]["status"])
            return
        if error["code"] not in case.codes or error["code"] not in CODES or not error["message"]:
            yield f"refused with {error}"
        if case.holds is not None and not case.may_be_refused:
            yield f"refused: {error['message']}"
        if image is not None:
            status = answer["status"]
            if status["status"] != "broken" or status["last_error"] != error["message"]:
                yield f"refused with {error}, and then its status is {status}"

    def _wrong_bytes(self, case: Case, image_id: str, status: str) -> Iterator[str]:
        if status == "broken":
            yield "imported, and broken"
            return
        if case.holds is None:
            yield f"imported: {self._picture(image_id).size_bytes} bytes"
            return
        if difference := case.holds.difference(self._picture(image_id)):
            yield f"imported with other bytes: {difference}"

    def _opened(self) -> Repository:
        return self._service.connections.get(REPO)

    def _picture(self, image_id: str) -> Picture:
        repo = self._opened()
        state = repo.state()
        (layer,) = repo.chain(state, state.images[image_id])
        return picture_of_volume(layer)

    def _holds_secret(self) -> bool:
        """Whether any file of the repository contains the secret."""
        for folder, _, names in os.walk(self._parameters["path"]):
            for name in names:
                path = os.path.join(folder, name)
                if os.stat(path).st_blocks and _contains(path, SECRET):
                    return True
        return False

    def _clear(self) -> None:
        """Remove what is left of an import that had to be killed."""
        images = [image.id for image in self._opened().state().images.values() if image.is_strong]
        self._ask("remove", images=images)

    def _listed(self, left: dict[str, Any]) -> Iterator[str]:
        if left["fixes"]:
            yield f"left to fix: {left['fixes']}"

    def _left(self) -> Iterator[str]:
        state, storage = self._opened().state(), self._opened().storage
        if state.images or state.volumes:
            yield f"left in the log: {list(state.images)} {list(state.volumes)}"
        names = [str(item.name) for item in storage.list_volumes()]
        names += [item.name for item in storage.list_leftovers()]
        names += storage.progress_image_ids()
        for _, _, files in os.walk(self._parameters["path"]):
            names += [name for name in files if name.startswith("tmp.")]
        if names:
            yield f"left on the storage: {names}"


def _contains(path: str, token: bytes) -> bool:
    """Whether the data of a sparse file contains some bytes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        end_bytes, offset, before = os.fstat(fd).st_size, 0, b""
        while offset < end_bytes:
            try:
                data_start = os.lseek(fd, offset, os.SEEK_DATA)
            except OSError:
                return False  # ENXIO: a hole up to the end
            before = before if data_start == offset else b""
            data = os.pread(fd, _PIECE_BYTES, data_start)
            if token in before + data:
                return True
            offset, before = data_start + len(data), data[-len(token) :]
        return False
    finally:
        os.close(fd)
