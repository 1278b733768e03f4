"""A libvirtd of a test's own, set up as Debian does, in namespaces that end with the test."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

_PROGRAMS = ("libvirtd", "virsh", "qemu-system-x86_64", "unshare", "nsenter")
#: What libvirtd and the test write to is in memory and seen by nobody else. The user of QEMU is made where
#: only the programs of libvirt are installed: libvirt-daemon-system would make it, and needs systemd.
_SET_UP = """
for folder in /run /srv /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt; do
    mkdir -p $folder
    mount -t tmpfs -o mode=755 none $folder
done
cp /etc/passwd /etc/group /run
getent passwd libvirt-qemu >/dev/null || echo 'libvirt-qemu:x:64055:64055::/:/bin/false' >>/run/passwd
getent group libvirt-qemu >/dev/null || echo 'libvirt-qemu:x:64055:' >>/run/group
mount --bind /run/passwd /etc/passwd
mount --bind /run/group /etc/group
echo 'auth_unix_rw = "none"' >/etc/libvirt/libvirtd.conf
echo 'stdio_handler = "file"' >/etc/libvirt/qemu.conf
mkdir /run/work
libvirtd >/run/libvirtd.log 2>&1 &
echo started
wait
"""
_POLL_S = 0.05
_AT_MOST_S = 240.0  # only a failure takes so long


class LibvirtHost:
    """A context manager: libvirtd answers within, and what it has started is gone afterwards.

    Commands see an empty ``/srv``, and their working folder is one of their own.
    """

    def __enter__(self) -> Self:
        lacking = [name for name in _PROGRAMS if shutil.which(name) is None]
        assert not lacking, f"{', '.join(lacking)} is not installed: scripts/setup --dev installs it"
        if os.geteuid() != 0:
            pytest.skip("a libvirtd of its own needs root")
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        tried = subprocess.run([*words, "true"], check=False, capture_output=True, text=True)
        if tried.returncode:
            pytest.skip(f"this process may not have namespaces of its own: {tried.stderr.strip()}")
        self._child = subprocess.Popen(
            [*words, "sh", "-e", "-c", _SET_UP], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            self._pid = self._wait_for_child()
            self._wait_for_libvirtd()
        except BaseException:
            self._end()
            raise
        return self

    def _wait_for_child(self) -> int:
        """The first process in the namespaces, once all is set up."""
        assert self._child.stdout is not None
        said = ""
        for line in self._child.stdout:
            if line == "started\n":
                children = Path(f"/proc/{self._child.pid}/task/{self._child.pid}/children")
                return int(children.read_text())
            said += line
        raise AssertionError(f"libvirtd does not start: {said}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        # With the first process of its namespace all others end, guests as well.
        self._child.send_signal(signal.SIGKILL)
        self._child.communicate()

    @property
    def root(self) -> Path:
        """The host's files as this process sees them."""
        return Path(f"/proc/{self._pid}/root")

    def run(self, script: str, *, fails: bool = False) -> str:
        """Run a script of shell as root of this host; what it printed.

        :param fails: whether it is meant to.
        """
        words = ["nsenter", "--target", str(self._pid), "--mount", "--pid", "--root", "--wd"]
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DISKYARD_STATE_DIR": "/run/state",
            "LIBVIRT_DEFAULT_URI": "qemu:///system",
        }
        done = subprocess.run(
            [*words, "sh", "-e", "-c", f"cd /run/work\n{script}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=2 * _AT_MOST_S,
        )
        assert (done.returncode != 0) is fails, f"{script}\n{done.stdout}"
        return done.stdout

    def _wait_for_libvirtd(self) -> None:
        asks = f"until virsh list >/dev/null 2>&1; do sleep {_POLL_S}; done"
        self.run(f"timeout {_AT_MOST_S} sh -c '{asks}' || {{ cat /run/libvirtd.log; exit 1; }}")
