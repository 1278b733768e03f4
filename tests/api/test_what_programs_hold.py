"""What each of QEMU's programs holds while it does its work: printed, and checked."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from pathlib import Path
from typing import Any

import pytest

from diskyard import MiB
from diskyard.testing.fake_programs import FakePrograms
from tests.api.helpers import Rig, picture, settle

_DAC_OVERRIDE = 1 << 1
_SECRETS = {"DISKYARD_TOKEN": "dy_secret", "AWS_SECRET_ACCESS_KEY": "secret", "LD_LIBRARY_PATH": "/nowhere"}
_UNTRUSTED = ("Max address space", "Max cpu time")
#: Runs in a program's place, with all that it was given, and then becomes it.
_TELLS = """
import json, os, sys
with open("/proc/self/status") as file:
    status = {line.partition(":")[0]: line.partition(":")[2].strip() for line in file}
with open("/proc/self/environ") as file:
    environment = dict(word.split("=", 1) for word in file.read().split("\\0") if word)
with open("/proc/self/limits") as file:
    limits = {line[:25].strip(): line[25:].split()[0] for line in file}
descriptors = {}
for name in os.listdir("/proc/self/fd"):
    try:
        descriptors[name] = os.readlink("/proc/self/fd/" + name)
    except FileNotFoundError:
        pass
told = {"words": ["NAME", *sys.argv[1:]], "status": status, "environment": environment,
        "limits": limits, "descriptors": descriptors}
with open(FOLDER + "/" + str(os.getpid()) + ".json", "w") as file:
    json.dump(told, file)
os.execv(TRUE_PROGRAM, ["NAME", *sys.argv[1:]])
"""


@pytest.fixture
def told(short_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where each program that is started tells what it holds."""
    folder = short_rig.folder / "told"
    folder.mkdir()
    programs = FakePrograms(short_rig.folder / "bin")
    for name in ("qemu-img", "qemu-storage-daemon"):
        programs.wrap(name, _TELLS.replace("NAME", name).replace("FOLDER", repr(str(folder))))
    monkeypatch.setenv("PATH", programs.path)
    for name, value in _SECRETS.items():
        monkeypatch.setenv(name, value)
    return folder


def _use(rig: Rig, disk: str, image: Path) -> None:
    """What starts each program for each of its uses."""
    yard = rig.yard
    snapshot = yard.create_snapshot("a", disk)
    rig.write("a", disk, (2, MiB, MiB))
    _give_to_somebody_else(rig)
    yard.copy_image("b", disk)
    yard.import_image("a", str(image), "qcow2")
    exports = rig.folder / "exports"
    exports.mkdir()
    exported = yard.export_image("a", disk, str(exports / "out.vmdk"), "vmdk")
    yard.wait_for_task(exported.task_id, 60)
    yard.prepare_image("a", disk, options={"serve": "nbd"})
    yard.teardown_image("a", disk)
    yard.remove_image("a", snapshot)
    for repository in ("a", "b"):
        settle(yard, repository)
    yard.check_storage_repository("a", {"deep": True})


def _give_to_somebody_else(rig: Rig) -> None:
    """As libvirt does with the files of a guest that runs: root still reads and writes them."""
    if os.geteuid() == 0:
        for path in (Path(rig.place("a")["path"]) / "volumes").iterdir():
            os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)
            path.chmod(0o600)


def test_what_programs_hold(short_rig: Rig, told: Path, tmp_path: Path) -> None:
    rig = short_rig
    image = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M"], check=True)
    disk = rig.disk("a", (1, 0, MiB))
    for path in told.iterdir():
        path.unlink()  # of what the test itself has started
    _use(rig, disk, image)
    holdings = [json.loads(path.read_text()) for path in sorted(told.iterdir())]
    ours = [held for held in holdings if held["environment"].keys().isdisjoint(_SECRETS)]
    uses = {_use_of(held) for held in ours}
    assert uses >= {"qemu-img map", "qemu-img info", "qemu-img check", "qemu-img convert"}
    assert "qemu-storage-daemon" in uses
    for held in sorted(ours, key=_use_of):
        _print(held)
        _require_little(held)
    rig.expect("a", disk, picture(4 * MiB, (1, 0, MiB), (2, MiB, MiB)))


def _use_of(held: dict[str, Any]) -> str:
    name, *words = held["words"]
    return f"{name} {words[0]}" if name == "qemu-img" else name


def _print(held: dict[str, Any]) -> None:
    status, limits = held["status"], held["limits"]
    print(_use_of(held))
    print("  user", status["Uid"].split()[1], "capabilities", status["CapEff"], "of", status["CapBnd"])
    print("  no new privileges", status["NoNewPrivs"], "seccomp", status["Seccomp"])
    print("  environment", " ".join(sorted(held["environment"])))
    print("  descriptors", "; ".join(f"{fd}: {path}" for fd, path in sorted(held["descriptors"].items())))
    print("  limits", ", ".join(f"{name[4:]} {limits[name]}" for name in (*_UNTRUSTED, "Max open files")))


def _require_little(held: dict[str, Any]) -> None:
    status, limits = held["status"], held["limits"]
    assert {int(text) for text in status["Uid"].split()} == {os.geteuid()}
    allowed = _DAC_OVERRIDE if os.geteuid() == 0 else 0
    assert not int(status["CapEff"], 16) & ~allowed, held
    assert not int(status["CapPrm"], 16) & ~allowed, held
    assert int(status["CapAmb"], 16) == int(status["CapInh"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    environment = held["environment"]
    # glibc takes its own variable apart where it stands.
    told = {name for name in environment if not name.startswith(("GLIBC_TUNABLES", "glibc.malloc."))}
    assert told == {"PATH", "LC_ALL"}
    assert environment["LC_ALL"] == "C"
    assert limits["Max core file size"] == "0"
    assert int(limits["Max open files"]) <= 65_536
    if _use_of(held) in ("qemu-img info", "qemu-img check"):
        assert all(limits[name].isdigit() for name in _UNTRUSTED), limits
    _require_meant(held["descriptors"])


def _require_meant(descriptors: dict[str, str]) -> None:
    """Nothing, what it prints, the monitor, leases, volumes, and the folder that it is to write into."""
    assert descriptors["0"] == "/dev/null"
    assert descriptors["1"].startswith(("pipe:", "/dev/null"))
    assert descriptors["2"].startswith("pipe:")
    for fd, path in descriptors.items():
        is_storage = path.endswith(("/locks", "/exports")) or "/volumes/" in path or "tmp." in path
        assert int(fd) <= 2 or path.startswith("socket:") or is_storage, descriptors
