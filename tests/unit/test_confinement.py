"""What the door to programs leaves them, whoever Diskyard runs as."""

from __future__ import annotations

import os
import pwd
import resource
import subprocess
import sys

import pytest

from diskyard.host import Host, Limits
from tests.rights import skip_unless_readable

_DAC_OVERRIDE, _SETPCAP = 1 << 1, 1 << 8
_CHOWN_AND_FOWNER = 1 << 0 | 1 << 3
_ASK = """
from diskyard.host import Host
finished = Host.real().commands.run(["cat", "/proc/self/status"], timeout_s=60)
print(finished.stdout.decode(), finished.stderr)
"""
_NOBODY = ("--reuid=nobody", f"--regid={pwd.getpwnam('nobody').pw_gid}", "--clear-groups")
_root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives powers away")


def _status(text: str) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def _held_below(*words: str) -> dict[str, int]:
    """What a program holds that is started by a Diskyard which ``setpriv`` has given these rights."""
    skip_unless_readable(("setpriv", *words))
    done = subprocess.run(
        ["setpriv", *words, sys.executable, "-c", _ASK], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done
    found = _status(done.stdout)
    assert found["NoNewPrivs"] == "1", done
    return {name: int(value, 16) for name, value in found.items() if name.startswith("Cap")}


@_root_only
def test_root_leaves_a_program_one_power() -> None:
    held = _held_below()
    assert held["CapEff"] == held["CapPrm"] == held["CapBnd"] == _DAC_OVERRIDE
    assert held["CapInh"] == held["CapAmb"] == 0


@_root_only
@pytest.mark.parametrize(
    ("given", "held"),
    [
        ("+dac_override,+chown,+fowner,+setpcap", _DAC_OVERRIDE),  # the daemon's unit
        ("+chown,+setpcap", 0),
        # Who may not take powers away leaves what it has, and no program gets another.
        ("+dac_override,+chown,+fowner", _DAC_OVERRIDE | _CHOWN_AND_FOWNER),
    ],
)
def test_root_with_few_powers(given: str, held: int) -> None:
    assert _held_below(f"--bounding-set=-all,{given}")["CapEff"] == held


@_root_only
def test_an_ordinary_user() -> None:
    held = _held_below(*_NOBODY)
    assert held["CapEff"] == held["CapPrm"] == held["CapInh"] == held["CapAmb"] == 0


@_root_only
def test_a_user_with_one_power_keeps_it_for_its_programs() -> None:
    given = "+dac_override,+fowner"
    held = _held_below(*_NOBODY, f"--inh-caps={given}", f"--ambient-caps={given}")
    assert held["CapEff"] == held["CapAmb"] == _DAC_OVERRIDE


def test_limits_that_are_lower_already_stay() -> None:
    """A limit cannot be raised, and that one is lower is no reason for a program not to start."""
    code = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))\n"
    code += "from diskyard.host import Host, Limits\n"
    code += "said = Host.real().commands.run(['cat', '/proc/self/limits'], timeout_s=60, limits=Limits())\n"
    code += "print(said.stdout.decode(), said.stderr)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"Max address space         {1 << 29} " in done.stdout


def test_limits_of_what_reads_untrusted_files() -> None:
    limits = Limits(address_space_bytes=1 << 30, cpu_s=7, file_size_bytes=1 << 20, descriptors=64)
    finished = Host.real().commands.run(["cat", "/proc/self/limits"], timeout_s=60, limits=limits)
    lines = {line[:25].strip(): line[25:].split()[:2] for line in finished.stdout.decode().splitlines()}
    assert lines["Max address space"] == [str(1 << 30)] * 2
    assert lines["Max cpu time"] == ["7", "7"]
    assert lines["Max file size"] == [str(1 << 20)] * 2
    assert lines["Max open files"] == ["64", "64"]
    assert lines["Max core file size"] == ["0", "0"]


def test_descriptors_suffice_for_deep_chains() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    finished = Host.real().commands.run(["cat", "/proc/self/limits"], timeout_s=60)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    assert f"Max open files            {wanted} " in finished.stdout.decode()
