"""A storage that stops answering, and the others, which do not notice."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from diskyard.testing.daemon_process import DaemonProcess
from tests.conftest import Tally

MiB = 1 << 20
_TIMEOUT_S = 2.0
_BULKHEAD = 4
_LONG_S = 60.0


def ask(daemon: DaemonProcess, verb: str, **parameters: object) -> tuple[str, float]:
    """What came of a verb, and how long that took."""
    began_s = time.monotonic()
    with daemon.client() as client:
        answer = client.post(f"/v1/{verb}", json=parameters)
    took_s = time.monotonic() - began_s
    return ("ok" if answer.status_code == 200 else str(answer.json()["code"])), took_s


def at_once(works: list[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_LONG_S)
        assert not thread.is_alive()


def test_storage_that_hangs_keeps_nobody_else_waiting(frozen: Path, short_folder: Path, tally: Tally) -> None:
    tally("hangs")
    daemon = DaemonProcess(
        short_folder / "d",
        {"limits": {"concurrent_per_repository": _BULKHEAD}},
        {"DISKYARD_STORAGE_TIMEOUT_S": str(_TIMEOUT_S)},
    )
    with daemon:
        for name, folder in (("frozen", frozen / "repo"), ("well", short_folder / "repo")):
            asked = {"repoFormat": "localfs-1.0", "connectionParameters": {"path": str(folder)}}
            daemon.call("createStorageRepository", **asked)
            daemon.call("connectStorageRepository", repoId=name, **asked)
        base = daemon.call("createVirtualDisk", targetRepoId="well", size=MiB)
        daemon.call("createVirtualDisk", targetRepoId="frozen", size=MiB)
        threads_before = len(os.listdir(f"/proc/{daemon.pid}/task"))
        subprocess.run(["fsfreeze", "--freeze", str(frozen)], check=True)
        of_frozen: list[tuple[str, float]] = []
        of_well: list[tuple[str, float]] = []
        of_health: list[tuple[str, float]] = []

        def use_frozen() -> None:
            of_frozen.append(ask(daemon, "createVirtualDisk", targetRepoId="frozen", size=MiB))

        def use_well() -> None:
            for _ in range(5):
                of_well.append(ask(daemon, "createSnapshot", targetRepoId="well", baseVirtualDiskId=base))

        def look() -> None:
            for _ in range(20):
                began_s = time.monotonic()
                with daemon.client() as client:
                    status = client.get("/healthz").status_code
                of_health.append((str(status), time.monotonic() - began_s))
                time.sleep(0.05)

        at_once([*[use_frozen] * 20, use_well, use_well, look])
        assert {code for code, _ in of_frozen} <= {"RepositoryUnavailable", "TooManyRequests"}
        assert {code for code, _ in of_well} == {"ok"}
        assert {status for status, _ in of_health} == {"200"}
        # They do not wait for the storage: that would have taken its whole time-out.
        assert max(took_s for _, took_s in of_well + of_health) < _TIMEOUT_S
        # A time later who asks for it is told at once, and no threads are heaped up.
        code, took_s = ask(daemon, "createVirtualDisk", targetRepoId="frozen", size=MiB)
        assert (code, took_s < _TIMEOUT_S) == ("RepositoryUnavailable", True)
        # Four in the lane, each a thread; what asks about all repositories has one of its own for each.
        assert len(os.listdir(f"/proc/{daemon.pid}/task")) - threads_before <= 4 * _BULKHEAD
        listed = daemon.call("listStorageRepositories")
        assert [found["health"] == "ok" for found in listed] == [False, True]
        subprocess.run(["fsfreeze", "--unfreeze", str(frozen)], check=True)
        deadline_s = time.monotonic() + _LONG_S
        while ask(daemon, "createVirtualDisk", targetRepoId="frozen", size=MiB)[0] != "ok":
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        tally("hangs", runs=len(of_frozen), hangs=len(of_frozen))


def test_it_ends_though_storage_hangs(frozen: Path, short_folder: Path) -> None:
    """Who waits for an answer then is told, as of any error."""
    daemon = DaemonProcess(short_folder / "d", None, {"DISKYARD_STORAGE_TIMEOUT_S": str(_LONG_S)})
    daemon.start()
    asked = {"repoFormat": "localfs-1.0", "connectionParameters": {"path": str(frozen / "repo")}}
    daemon.call("createStorageRepository", **asked)
    daemon.call("connectStorageRepository", repoId="frozen", **asked)
    subprocess.run(["fsfreeze", "--freeze", str(frozen)], check=True)
    told: list[str] = []
    asking = threading.Thread(
        target=lambda: told.append(ask(daemon, "createVirtualDisk", targetRepoId="frozen", size=MiB)[0])
    )
    asking.start()
    began_s = time.monotonic()
    while not _hangs(daemon.pid):
        assert time.monotonic() - began_s < _LONG_S
        time.sleep(0.05)
    began_s = time.monotonic()
    # The kernel lets no process end that is in a call that no signal ends: its end is seen by its socket.
    daemon.send_signal()
    while daemon.socket_path.exists():
        assert time.monotonic() - began_s < _LONG_S
        time.sleep(0.05)
    asking.join(_LONG_S)
    subprocess.run(["fsfreeze", "--unfreeze", str(frozen)], check=True)
    assert daemon.wait() == 0
    assert told == ["RepositoryUnavailable"]


def _hangs(pid: int) -> bool:
    """Whether a thread of a process is in a call that no signal ends."""
    states = [
        path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")
    ]
    return "D" in states
