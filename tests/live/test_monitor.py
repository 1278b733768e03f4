"""The monitor of a running guest: who is there, and every way in which a monitor can misbehave."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.host import Host
from diskyard.live.monitor import Monitor, NobodyAnswers
from diskyard.live.process import Process, is_alive, process_with
from tests.live.fake_monitor import (
    ANSWERS,
    COMMANDS,
    GREETING,
    Talk,
    answering,
    asked,
    fake_monitor,
    say,
    wait_for_the_end,
)

MIB = 1 << 20
EVENT = {"event": "BLOCK_IO_ERROR", "data": {}, "timestamp": {"seconds": 1, "microseconds": 1}}
TIMEOUT_S = 0.3
LONG_S = 60.0  # for what ends by itself, on however slow a machine


def open_monitor(address: str, *, greeting_timeout_s: float = LONG_S, timeout_s: float = LONG_S) -> Monitor:
    return Monitor(Host.real(), address, greeting_timeout_s=greeting_timeout_s, timeout_s=timeout_s)


def refused(monitor: Monitor) -> errors.DiskyardError:
    """The error with which a monitor cannot be opened."""
    with pytest.raises(errors.DiskyardError) as caught, monitor:
        pass
    assert caught.value.advice
    return caught.value


# -- who is there ---------------------------------------------------------------------


def test_the_process_is_known(tmp_path: Path) -> None:
    with fake_monitor(tmp_path / "m", answering()) as address, open_monitor(address) as monitor:
        assert monitor.process == process_with(Host.real(), os.getpid())
        assert is_alive(Host.real(), monitor.process)
        assert monitor.offers("stop")
        assert not monitor.offers("cont")
        assert monitor.command("query-jobs", doing="asking") == []


def test_a_monitor_serves_another_when_one_has_done(tmp_path: Path) -> None:
    with fake_monitor(tmp_path / "m", answering()) as address:
        for _ in range(2):
            with open_monitor(address):
                error = refused(open_monitor(address, greeting_timeout_s=TIMEOUT_S))
                assert type(error) is errors.LeaseHeld


def test_nobody_answers(tmp_path: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "stale"))
    stale.close()
    (tmp_path / "file").touch()
    for name in ("nothing", "stale", "file", "no folder/nothing"):
        error = refused(open_monitor(str(tmp_path / name)))
        assert isinstance(error, NobodyAnswers), name
        assert error.to_json()["code"] == "StorageError"


@pytest.mark.parametrize("name", ["file/below", "x" * 120])
def test_what_cannot_be_reached_may_be_somebody(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    assert type(refused(open_monitor(str(tmp_path / name)))) is errors.StorageError


def test_more_wait_than_may_wait(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(tmp_path / "m"))
        listener.listen(0)
        waiting.connect(str(tmp_path / "m"))
        assert type(refused(open_monitor(str(tmp_path / "m")))) is errors.LeaseHeld


def test_a_process_that_cannot_be_told(tmp_path: Path) -> None:
    """Another one listens for it, as libvirt does, and has ended."""
    ours, theirs = socket.socketpair()
    listens = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[2]); s.listen(1); "
        "socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b'x'], [s.fileno()])"
    )
    path = tmp_path / "m"
    words = [sys.executable, "-c", listens, str(theirs.fileno()), str(path)]
    subprocess.run(words, pass_fds=[theirs.fileno()], check=True)
    _, [fd], _, _ = socket.recv_fds(ours, 1, 1)
    ours.close()
    theirs.close()
    with fake_monitor(path, answering(), listener=socket.socket(fileno=fd)) as address:
        error = refused(open_monitor(address))
    assert type(error) is errors.StorageError
    assert "process" in error.message


def test_a_process_that_has_ended_is_not_alive() -> None:
    host = Host.real()
    with subprocess.Popen(["sleep", "600"]) as child:
        process = process_with(host, child.pid)
        assert process is not None
        assert is_alive(host, process)
        child.kill()
        child.wait()
        assert not is_alive(host, process)
    myself = process_with(host, os.getpid())
    assert myself is not None
    boot, namespace, ticks = myself.started.split("/")
    later = f"{boot}/{namespace}/{int(ticks) + 1}"
    assert not is_alive(host, Process(myself.pid, later))
    assert not is_alive(host, Process(myself.pid, f"{'0' * 32}/{namespace}/{ticks}"))
    # Of another namespace nothing is known.
    assert is_alive(host, Process(myself.pid, f"{boot}/1/{ticks}"))


@pytest.mark.parametrize("started", ["", "1", "b/1", "b/1/x", "b/-1/2", "b/1/2/3", "b/1/²"])
def test_a_start_without_meaning(started: str) -> None:
    with pytest.raises(errors.CorruptRecord):
        is_alive(Host.real(), Process(1, started))


# -- monitors that misbehave ----------------------------------------------------------


def without_end(piece: bytes) -> Talk:
    def talk(connection: socket.socket, _id: object = None) -> None:
        while True:
            connection.sendall(piece)

    return talk


def garbage(connection: socket.socket, _id: object = None) -> None:
    say(connection, b"][ garbage \xff")
    wait_for_the_end(connection)


def closes(connection: socket.socket, _id: object = None) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def closes_midway(connection: socket.socket, _id: object = None) -> None:
    connection.sendall(json.dumps(GREETING).encode()[:20])
    connection.shutdown(socket.SHUT_RDWR)


def nests(connection: socket.socket, _id: object = None) -> None:
    say(connection, b"[" * 100_000)
    wait_for_the_end(connection)


def greets_with(value: object) -> Talk:
    def talk(connection: socket.socket) -> None:
        say(connection, value)
        wait_for_the_end(connection)

    return talk


def says(value: object) -> Talk:
    """Says something instead of an answer, and nothing more."""

    def talk(connection: socket.socket, _id: object = None) -> None:
        say(connection, value)

    return talk


VERSIONS: list[object] = [None, [], {"qemu": {"major": "7", "minor": 2}}]
LISTS: list[object] = [{}, 7, [7], [{"name": 7}]]
MISBEHAVING: dict[str, Talk] = {
    "garbage": garbage,
    "closes": closes,
    "closes midway": closes_midway,
    "a line without end": without_end(b"x" * 65536),
    "nests": nests,
    "greets with a list": greets_with([]),
    "greets with another form": greets_with({"QMP": []}),
    "greets with no capabilities": greets_with({"QMP": {"version": {}}}),
    "greets with an id of another type": greets_with({**GREETING, "id": {}}),
    **{
        f"{command}: {name}": answering(**{command: talk})
        for command in ("qmp_capabilities", "query_version", "query_commands")
        for name, talk in {
            "garbage": garbage,
            "closes": closes,
            "closes midway": closes_midway,
            "a line without end": without_end(b"x" * 65536),
            "nests": nests,
            "an error without words": says({"error": {}}),
            "an id of another type": says({"return": {}, "id": [1]}),
        }.items()
    },
    **{f"version {wrong}": answering(query_version=wrong) for wrong in VERSIONS},
    **{f"commands {wrong}": answering(query_commands=wrong) for wrong in LISTS},
}


@pytest.mark.parametrize("name", MISBEHAVING)
def test_what_is_no_monitor_is_an_error(tmp_path: Path, name: str) -> None:
    tracemalloc.start()
    try:
        with fake_monitor(tmp_path / "m", MISBEHAVING[name]) as address:
            error = refused(open_monitor(address))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert type(error) is errors.StorageError
    assert len(error.message) < 1000
    assert peak_bytes < 64 * MIB


@pytest.mark.parametrize("command", ["qmp_capabilities", "query_version", "query_commands"])
@pytest.mark.parametrize(
    "talk",
    [
        wait_for_the_end,
        says({"return": {}, "id": "another"}),
        says({"return": {}}),
        without_end(json.dumps(EVENT).encode() + b"\n"),
    ],
)
def test_no_answer_in_time(tmp_path: Path, command: str, talk: Talk) -> None:
    with fake_monitor(tmp_path / "m", answering(**{command: talk})) as address:
        error = refused(open_monitor(address, timeout_s=TIMEOUT_S))
    assert type(error) is errors.StorageError
    assert "did not answer within" in error.message


@pytest.mark.parametrize(
    "talk", [wait_for_the_end, without_end(json.dumps(EVENT).encode()[:-1] + b" ")], ids=["silent", "slow"]
)
def test_no_greeting_in_time(tmp_path: Path, talk: Talk) -> None:
    with fake_monitor(tmp_path / "m", talk) as address:
        error = refused(open_monitor(address, greeting_timeout_s=0.001))
    assert type(error) is errors.LeaseHeld


def test_a_flood_of_events_is_let_go(tmp_path: Path) -> None:
    event = json.dumps({**EVENT, "data": {"reason": "x" * 100_000}}).encode() + b"\n"

    def flooding(connection: socket.socket, id: object) -> None:
        for _ in range(2000):
            connection.sendall(event)
        say(connection, {"return": ANSWERS["query-version"], "id": id})

    tracemalloc.start()
    try:
        with (
            fake_monitor(tmp_path / "m", answering(query_version=flooding)) as address,
            open_monitor(address) as monitor,
        ):
            assert monitor.offers("stop")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64 * MIB


@pytest.mark.parametrize("version", [{"major": 7, "minor": 1}, {"major": 6, "minor": 9}])
def test_an_old_qemu(tmp_path: Path, version: dict[str, int]) -> None:
    with fake_monitor(tmp_path / "m", answering(query_version={"qemu": version})) as address:
        assert type(refused(open_monitor(address))) is errors.Unsupported


def test_a_qemu_that_cannot_show_its_graph(tmp_path: Path) -> None:
    with fake_monitor(tmp_path / "m", answering(query_commands=COMMANDS[1:])) as address:
        error = refused(open_monitor(address))
    assert type(error) is errors.Unsupported
    assert "x-debug-query-block-graph" in error.message


# -- whether something was done -------------------------------------------------------


NO_ANSWER = [(wait_for_the_end, 4.0), (closes, LONG_S), (garbage, LONG_S)]


@pytest.mark.parametrize(("talk", "timeout_s"), NO_ANSWER)
def test_a_change_without_an_answer_may_have_been_made(tmp_path: Path, talk: Talk, timeout_s: float) -> None:
    with (
        fake_monitor(tmp_path / "m", answering(stop=talk)) as address,
        pytest.raises(errors.UnknownOutcome) as caught,
        open_monitor(address, timeout_s=timeout_s) as monitor,
    ):
        monitor.command("stop", doing="stopping the guest")
    assert isinstance(caught.value, errors.StorageError)


@pytest.mark.parametrize(("talk", "timeout_s"), NO_ANSWER)
def test_a_question_without_an_answer_has_changed_nothing(
    tmp_path: Path, talk: Talk, timeout_s: float
) -> None:
    with (
        fake_monitor(tmp_path / "m", answering(query_jobs=talk)) as address,
        pytest.raises(errors.StorageError) as caught,
        open_monitor(address, timeout_s=timeout_s) as monitor,
    ):
        monitor.command("query-jobs", doing="looking at the disk")
    assert not isinstance(caught.value, errors.UnknownOutcome)


def test_a_refusal_has_the_words_of_qemu(tmp_path: Path) -> None:
    def refusing(connection: socket.socket, id: object) -> None:
        say(connection, {"error": {"class": "GenericError", "desc": "out of luck"}, "id": id})

    with (
        fake_monitor(tmp_path / "m", answering(stop=refusing)) as address,
        pytest.raises(errors.StorageError, match="out of luck") as caught,
        open_monitor(address) as monitor,
    ):
        monitor.command("stop", doing="stopping the guest")
    assert not isinstance(caught.value, errors.UnknownOutcome)


def test_the_fake_asks_as_a_client_does() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b'{"execute": "a"}{"execute": "b"}')
        commands = asked(theirs)
        assert [next(commands)["execute"] for _ in range(2)] == ["a", "b"]
