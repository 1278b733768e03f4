"""What a killed daemon was writing in its state folder is not left there for good."""

from __future__ import annotations

import time
from pathlib import Path

from msgspec.structs import replace

from diskyard.host import Host
from diskyard.host.identity import new_nonce, this_process
from diskyard.host.temporary import temporary_name
from diskyard.testing.daemon_process import DaemonProcess


def test_temporary_files_of_dead_processes_go(quick_folder: Path) -> None:
    daemon = DaemonProcess(quick_folder / "d")
    myself = this_process(Host.real().identity)
    dead, living = temporary_name(replace(myself, boot_id=new_nonce()), 0), temporary_name(myself, 0)
    folders = [daemon.state_folder, daemon.state_folder / "imports", daemon.state_folder / "tasks"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (dead, living, "tmp.somebody's"):
            (folder / name).write_text("half of a record")
    with daemon:
        deadline_s = time.monotonic() + 10
        while any((folder / dead).exists() for folder in folders) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        left = [(folder / name).exists() for folder in folders for name in (dead, living, "tmp.somebody's")]
    assert left == [False, True, True] * len(folders)
