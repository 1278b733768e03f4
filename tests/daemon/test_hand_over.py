"""Root's own command imports and exports what the daemon could not open by itself, and nobody else does."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from diskyard import AsyncDiskyard, Diskyard, errors
from diskyard.client.handing import HANDED_HEADER
from diskyard.daemon import hand_over as module
from diskyard.daemon.hand_over import HandOver, hand_over_path
from diskyard.host import Host
from diskyard.host.clock import Clock
from diskyard.host.sockets import peer_user_id
from diskyard.testing.daemon_process import DaemonProcess

SIZE_BYTES = 1 << 20
_AT_MOST_S = 20.0
_LOOK_S = 0.02
ME = "user:" + (subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip())


@pytest.fixture
def daemon(quick_folder: Path) -> Iterator[DaemonProcess]:
    """One that has no transfer folders, with a repository ``a``.

    It collects no garbage, of which nobody knows when it would: what is let go of late is kept.
    """
    (quick_folder / "sitecustomize.py").write_text("import gc\ngc.disable()\n")
    with DaemonProcess(quick_folder / "d", environment={"PYTHONPATH": str(quick_folder)}) as started:
        place = started.place("a")
        started.call("createStorageRepository", repoFormat="localfs-1.0", connectionParameters=place)
        started.call(
            "connectStorageRepository", repoId="a", repoFormat="localfs-1.0", connectionParameters=place
        )
        yield started


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "outside.raw"
    path.write_bytes(os.urandom(SIZE_BYTES))
    return path


def _command(daemon: DaemonProcess, *words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "diskyard.cli", "--url", daemon.url, *words]
    return subprocess.run(program, check=False, capture_output=True, text=True)


def _handed(daemon: DaemonProcess, fd: int) -> str:
    """The ticket of a descriptor."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(hand_over_path(str(daemon.socket_path)))
        socket.send_fds(connection, [b"diskyard 1"], [fd])
        return str(json.loads(connection.recv(4096))["ticket"])


def _asked(daemon: DaemonProcess, verb: str, ticket: str, **parameters: object) -> tuple[int, object]:
    with daemon.client(headers={HANDED_HEADER: ticket}) as client:
        answer = client.post(f"/v1/{verb}", json=parameters)
    return answer.status_code, answer.json()


def test_the_command_imports_and_exports_any_path(daemon: DaemonProcess, file: Path) -> None:
    done = _command(daemon, "image", "import", "a", str(file), "--format", "raw", "--name", "outside")
    assert done.returncode == 0, done.stderr
    back = file.with_name("back.raw")
    done = _command(daemon, "image", "export", "a/outside", str(back), "--format", "raw")
    assert done.returncode == 0, done.stderr
    assert back.read_bytes() == file.read_bytes()
    assert sorted(path.name for path in file.parent.iterdir()) == ["back.raw", "outside.raw"]
    again = _command(daemon, "image", "export", "a/outside", str(back), "--format", "raw")
    assert again.returncode != 0
    assert f"{back} exists" in again.stderr


def test_the_command_hands_over_nothing_to_other_users(daemon: DaemonProcess, file: Path) -> None:
    """As to who has made a socket where an older daemon makes none."""
    if os.geteuid() != 0:
        # Only root can listen as another user, and no ordinary user can show this at all.
        pytest.skip("a socket of another user's needs root")
    path = Path(hand_over_path(str(daemon.socket_path)))
    path.unlink()
    got: list[int] = []

    def steal() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.settimeout(30)
            listener.bind(str(path))
            user_id = os.geteuid()
            os.seteuid(65534)  # as which it listens, and so is known
            try:
                listener.listen()
            finally:
                os.seteuid(user_id)
            listening.set()
            connection, _ = listener.accept()
            with connection:
                got.extend(socket.recv_fds(connection, 256, 4)[1])

    listening = threading.Event()
    thief = threading.Thread(target=steal)
    thief.start()
    assert listening.wait(30)
    done = _command(daemon, "image", "import", "a", str(file), "--format", "raw")
    thief.join(30)
    assert "outside the transfer directories" in done.stderr
    assert got == []


def test_programs_hand_over_only_if_they_say_so(daemon: DaemonProcess, file: Path) -> None:
    """A manager of virtual machines may run as root, and pass on paths of its own callers."""
    with Diskyard(daemon.url) as yard, pytest.raises(errors.PathNotAllowed) as refused:
        yard.import_image("a", str(file), "raw")
    assert "Root" in refused.value.advice

    async def by_asyncio() -> str:
        async with AsyncDiskyard(daemon.url, hands_over=True) as yard:
            return await yard.import_image("a", str(file), "raw", options={"as_": "snapshot"})

    snapshot = asyncio.run(by_asyncio())
    with Diskyard(daemon.url, hands_over=True) as yard:
        target = file.with_name("copy.qcow2")
        yard.export_image("a", snapshot, str(target), "qcow2")
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(file), str(target)], check=True)


def test_what_was_handed_over_is_what_counts(daemon: DaemonProcess, file: Path) -> None:
    """The names change places before the request comes: nothing is read or written by them."""
    secret = file.with_name("secret.raw")
    secret.write_bytes(b"s" * SIZE_BYTES)
    wanted = file.read_bytes()
    fd = os.open(file, os.O_RDONLY)
    ticket = _handed(daemon, fd)
    os.close(fd)
    file.rename(file.with_name("moved.raw"))
    file.symlink_to(secret)
    asked = {"targetRepoId": "a", "path": str(file), "format": "raw"}
    # A changed name alone changes the file's times: it must not change after the request.
    status, image = _asked(daemon, "importImage", ticket, **asked)
    assert status == 200, image
    assert daemon.wait_for_image("a", str(image)) == "optimized"
    folder = file.with_name("folder")
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY)
    ticket = _handed(daemon, fd)
    os.close(fd)
    folder.rename(folder.with_name("its-new-name"))
    folder.symlink_to("/etc")
    target = folder / "diskyard-must-not-be-here.raw"
    asked = {"repositoryId": "a", "imageId": str(image), "path": str(target), "format": "raw"}
    status, task = _asked(daemon, "exportImage", ticket, **asked)
    assert status == 200, task
    assert isinstance(task, dict)
    ended = daemon.wait_for_task(task["taskId"])
    assert ended["state"] == "done", ended
    assert not target.exists()
    assert (file.with_name("its-new-name") / target.name).read_bytes() == wanted


def test_what_may_not_be_imported_by_its_path_may_not_be_handed_over(
    daemon: DaemonProcess, file: Path
) -> None:
    pipe, replica = file.with_name("pipe"), file.with_name("twin.raw")
    os.mkfifo(pipe)
    replica.hardlink_to(file)
    for path, flags in (
        (pipe, os.O_RDONLY | os.O_NONBLOCK),
        (file.parent, os.O_RDONLY),
        (replica, os.O_RDONLY),
    ):
        fd = os.open(path, flags)
        ticket = _handed(daemon, fd)
        os.close(fd)
        asked = {"targetRepoId": "a", "path": str(path), "format": "raw"}
        status, problem = _asked(daemon, "importImage", ticket, **asked)
        assert isinstance(problem, dict)
        assert (status, problem["code"]) == (422, "UnsafeImage"), (path, problem)
    fd = os.open(file, os.O_RDONLY)
    ticket = _handed(daemon, fd)
    os.close(fd)
    disk = daemon.call("createVirtualDisk", targetRepoId="a", size=SIZE_BYTES)
    asked = {"repositoryId": "a", "imageId": disk, "path": str(file.with_name("new.raw")), "format": "raw"}
    status, problem = _asked(daemon, "exportImage", ticket, **asked)
    assert isinstance(problem, dict)
    assert (status, problem["code"]) == (422, "InvalidParameter"), problem
    assert not file.with_name("new.raw").exists()


def test_the_command_follows_no_link_that_others_may_make(
    daemon: DaemonProcess, file: Path, tmp_path: Path, quick_folder: Path
) -> None:
    """Anybody may make one in /dev/shm, and have it lead to what root alone may read."""
    (quick_folder / "link.raw").symlink_to(file)
    (tmp_path / "other.raw").symlink_to(file)
    for path in (f"{quick_folder}/link.raw", f"/dev/..{tmp_path}/other.raw"):
        with Diskyard(daemon.url, hands_over=True) as yard, pytest.raises(errors.PathNotAllowed):
            yard.import_image("a", path, "raw")


def test_a_ticket_is_for_one_request(daemon: DaemonProcess, file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    ticket = _handed(daemon, fd)
    os.close(fd)
    asked = {"targetRepoId": "a", "path": str(file), "format": "raw"}
    for ticket_sent, wanted in ((ticket, 200), (ticket, 422), ("f" * 32, 422), ("", 422)):
        status, answer = _asked(daemon, "importImage", ticket_sent, **asked)
        assert status == wanted, answer


def test_nothing_stays_open_when_a_request_and_its_tasks_have_ended(
    daemon: DaemonProcess, file: Path
) -> None:
    """Be it refused or done: a file system could not be unmounted, nor a device removed."""

    def are_open() -> list[str]:
        found = []
        for number in Path(f"/proc/{daemon.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # it is closed just now
                found.append(os.readlink(number))
        return [path for path in found if path.startswith(str(file.parent))]

    with Diskyard(daemon.url, hands_over=True) as yard:
        image = yard.import_image("a", str(file), "raw")
        assert yard.wait_for_tasks(_AT_MOST_S)
        yard.export_image("a", image, str(file.with_name("new.raw")), "raw")
        assert yard.wait_for_tasks(_AT_MOST_S)
        for _ in range(3):
            with pytest.raises(errors.UnsafeImage):
                yard.import_image("a", str(file), "qcow2")
            with pytest.raises(errors.NotEmpty):
                yard.export_image("a", image, str(file.with_name("new.raw")), "raw")
        yard.import_image("a", str(file), "raw", options={"auto_fix": False})
        deadline_s = time.monotonic() + _AT_MOST_S
        while left := are_open():
            assert time.monotonic() < deadline_s, left
            time.sleep(_LOOK_S)


# -- in this process ---------------------------------------------------------------------------------


class _Late(Clock):
    """A clock that can be set forward."""

    ahead_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.ahead_s


def _serving(folder: Path, work: Callable[[HandOver], Awaitable[None]], clock: Clock | None = None) -> None:
    async def run() -> None:
        over = HandOver(replace(Host.real(), clock=clock or Clock()), str(folder / "s"))
        serving = asyncio.create_task(over.serve())
        try:
            await work(over)
        finally:
            serving.cancel()
            over.close()
        assert not os.path.lexists(over.path)

    asyncio.run(run())


async def _say(over: HandOver, message: bytes, fds: list[int]) -> dict[str, str]:
    def say() -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(30)
            connection.connect(over.path)
            socket.send_fds(connection, [message], fds)
            return connection.recv(4096)

    answer: dict[str, str] = json.loads(await asyncio.to_thread(say))
    return answer


def _open_on(path: Path) -> int:
    """How many descriptors of this process are open on a file."""
    numbers = Path("/proc/self/fd").iterdir()
    return sum(os.path.lexists(number) and os.readlink(number) == str(path) for number in numbers)


def test_only_whole_messages_are_taken(quick_folder: Path, file: Path) -> None:
    """What is refused is not left open; nor is what was taken, once its ticket is over."""

    async def work(over: HandOver) -> None:
        assert os.stat(over.path).st_mode & 0o777 == 0o600
        fd = os.open(file, os.O_RDONLY)
        for message, fds in ((b"diskyard 1", [fd, fd]), (b"diskyard 2", [fd]), (b"x" * 9000, [fd])):
            assert "refused" in await _say(over, message, fds), message
        ticket = (await _say(over, b"diskyard 1", [fd]))["ticket"]
        os.close(fd)
        assert _open_on(file) == 1
        assert over.take(ticket, "user:somebody-else") is None
        taken = over.take(ticket, ME)
        assert taken is not None
        assert os.pread(taken.fd, SIZE_BYTES, 0) == file.read_bytes()
        assert over.take(ticket, ME) is None
        del taken
        assert _open_on(file) == 0

    _serving(quick_folder, work)


def test_only_so_many_wait_and_not_for_long(
    quick_folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEPT_MOST", 2)
    monkeypatch.setattr(module, "_ROOM_MOST_S", 0.1)
    clock = _Late()

    async def work(over: HandOver) -> None:
        with ExitStack() as stack:
            fd = os.open(file, os.O_RDONLY)
            stack.callback(os.close, fd)
            tickets = [(await _say(over, b"diskyard 1", [fd]))["ticket"] for _ in range(2)]
            assert "refused" in await _say(over, b"diskyard 1", [fd])
            clock.ahead_s = 61.0
            assert over.take(tickets[0], ME) is None
        assert _open_on(file) == 0

    _serving(quick_folder, work, clock)


def test_many_at_once_wait_for_each_other(
    quick_folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of many commands that a shell starts: none is turned away for others, or for one that is silent."""
    monkeypatch.setattr(module, "_TALKING_MOST", 1)
    monkeypatch.setattr(module, "_KEPT_MOST", 1)

    async def work(over: HandOver) -> None:
        with ExitStack() as stack:
            silent, *others = [
                stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) for _ in range(4)
            ]
            silent.connect(over.path)
            fd = os.open(file, os.O_RDONLY)
            stack.callback(os.close, fd)
            for other in others:
                other.connect(over.path)
                socket.send_fds(other, [b"diskyard 1"], [fd])
                other.setblocking(False)
            await asyncio.sleep(0.1)
            silent.close()
            for other in others:
                told = await asyncio.get_running_loop().sock_recv(other, 4096)
                assert over.take(json.loads(told)["ticket"], ME) is not None

    _serving(quick_folder, work)


def test_other_users_hand_over_nothing(
    quick_folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket's mode keeps them away; whoever gets there all the same is asked who it is."""

    def somebody(connection: socket.socket) -> int:
        return peer_user_id(connection) + 12345

    async def work(over: HandOver) -> None:
        fd = os.open(file, os.O_RDONLY)
        answer = await _say(over, b"diskyard 1", [fd])
        os.close(fd)
        assert "root" in answer["refused"]
        assert _open_on(file) == 0

    monkeypatch.setattr(module, "peer_user_id", somebody)
    _serving(quick_folder, work)
