"""Which processes are provably gone, and whose temporary files are whose."""

from __future__ import annotations

import os

import pytest
from msgspec.structs import replace

from diskyard.host import identity
from diskyard.host.identity import provably_gone, this_host, this_process
from diskyard.host.temporary import temporary_name, temporary_owner

HOST = this_host()
MYSELF = this_process(HOST)
#: No process has it: the kernel's limit is 2^22.
NOBODY = 1 << 30


def test_this_process_is_not_gone() -> None:
    assert not provably_gone(MYSELF, HOST)
    assert MYSELF.pid == os.getpid()


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"pid": NOBODY}, True),
        ({"start_ticks": 1}, True),
        ({"boot_id": "0" * 32}, True),
        ({"machine_id": "0" * 32, "boot_id": "0" * 32}, False),
        ({"pid_namespace": 1, "pid": NOBODY}, False),
        ({"pid_namespace": 1, "start_ticks": 1}, False),
        ({"pid_namespace": 1, "boot_id": "0" * 32}, True),
    ],
)
def test_what_can_be_known(changes: dict[str, int | str], gone: bool) -> None:
    """Of another namespace of this boot nothing can: its numbers mean other processes here."""
    assert provably_gone(replace(MYSELF, **changes), HOST) is gone


def test_a_process_that_proc_hides_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With hidepid, proc(5) shows nobody the processes of others."""
    monkeypatch.setattr(identity, "_start_ticks", lambda pid: None)

    def refuse(pid: int, number: int) -> None:
        assert (pid, number) == (MYSELF.pid, 0)
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert not provably_gone(MYSELF, HOST)


def test_a_namespace_has_a_number() -> None:
    assert f"pid:[{MYSELF.pid_namespace}]" == os.readlink("/proc/self/ns/pid")
    assert identity._pid_namespace() == MYSELF.pid_namespace


def test_names_of_temporary_files() -> None:
    """They tell their process; anything else is nobody's, and is left alone."""
    name = temporary_name(MYSELF, 7)
    assert temporary_owner(name) == MYSELF
    for other in (name.removeprefix("tmp."), name + ".1", name.rpartition(".")[0], "tmp.", "tmp.a.b.c.d.e.f"):
        assert temporary_owner(other) is None
