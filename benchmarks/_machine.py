"""On what a benchmark ran: versions, file systems, cores and memory."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from benchmarks._processes import Failed, run
from diskyard.version import version

GiB = 1 << 30


def versions() -> dict[str, str]:
    """Of everything that is compared, and of what it runs on."""
    return {
        "diskyard": version(),
        "Python": platform.python_version(),
        "QEMU": _first_line("qemu-img", "--version").removeprefix("qemu-img version "),
        "nbdcopy": _first_line("nbdcopy", "--version").removeprefix("nbdcopy "),
        "coreutils": _first_line("cp", "--version").rpartition(" ")[2],
        "kernel": platform.release(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GiB:.0f} GiB",
    }


def _first_line(*words: str) -> str:
    try:
        return run(*words).splitlines()[0]
    except (FileNotFoundError, Failed):
        return "not installed"


def file_system_of(folder: Path) -> str:
    """The type and mount options of the file system of a folder, and what it lies on."""
    device = os.stat(folder).st_dev
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        major, _, minor = fields.split()[2].partition(":")
        if os.makedev(int(major), int(minor)) == device:
            kind, source, special = rest.split()
            return f"{kind} on {source} ({fields.split()[5]},{special})"
    return "unknown"
