"""Looking at the disks of running programs, and switching them to overlays."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.host import Commands, Host
from diskyard.live.graph import Disk, Move, Seen
from diskyard.live.monitor import Monitor, NobodyAnswers
from diskyard.live.process import is_alive
from diskyard.live.qmp_graph import QmpGraph
from diskyard.mover.interface import Chain, Layer
from diskyard.testing.fault_injection import Injector, faulty_host
from tests.live.fake_monitor import answering, fake_monitor
from tests.live.running import (
    PATIENCE_S,
    Daemon,
    Graph,
    Qemu,
    Running,
    VirtioQemu,
    graph_of,
    has_node,
    monitor_at,
    node_of,
)
from tests.unit.mover.bench import Bench

MIB = 1 << 20
SIZE_BYTES = 4 * MIB
IDS = ("overlay", "top", "base")


@contextmanager
def live(
    running: Running, *, host: Host | None = None, timeout_s: float = PATIENCE_S
) -> Iterator[tuple[QmpGraph, Monitor]]:
    with monitor_at(running.address, host=host, timeout_s=timeout_s) as monitor:
        yield QmpGraph(monitor), monitor


def layers(bench: Bench) -> tuple[Layer, Layer, Layer]:
    """An overlay that nobody has open yet, and a disk of two layers; the lower one is raw."""
    base = bench.layer("base", "raw", SIZE_BYTES)
    top = bench.layer("top", "qcow2", SIZE_BYTES, (base,))
    return bench.layer("overlay", "qcow2", SIZE_BYTES, (top, base)), top, base


def command(running: Running, name: str, arguments: Graph) -> object:
    """Something that another program tells it."""
    with monitor_at(running.address) as monitor:
        return monitor.command(name, arguments, doing=name)


def look(running: Running, *ids: str, attachment_id: str = "a") -> Seen:
    with live(running) as (graph, _):
        return graph.look(Disk(attachment_id, ids or IDS))


def reads(bench: Bench, chain: Chain, offset_bytes: int) -> int:
    """The byte that a chain has at an offset, read from its files by another program."""
    data = bench.view(chain)
    (found,) = set(data[offset_bytes : offset_bytes + 65536])
    return found


def assert_unchanged(running: Running, bench: Bench, chain: Chain) -> None:
    """No node was left, and the guest writes to the same top."""
    with live(running) as (graph, monitor):
        assert graph.look(Disk("a", IDS)).chain == ("top", "base")
        assert not has_node(monitor, "a", "overlay")
        running.write(monitor, "a", MIB, 7)
    running.end()
    assert reads(bench, chain, MIB) == 7


# -- looking --------------------------------------------------------------------------


def test_a_disk_as_it_is_read(running: Running, bench: Bench) -> None:
    _, top, base = layers(bench)
    assert look(running) == Seen((), (), None, isinstance(running, Daemon))
    running.open(graph_of((top, base), "a"), "a")
    assert look(running) == Seen(("top", "base"), (), None, isinstance(running, Daemon))
    assert look(running, attachment_id="another").chain == ()
    # What the disk is not known to have is somebody else's.
    assert look(running, "top").foreign == (node_of("a", "base"),)
    assert look(running, "base").foreign == (node_of("a", "top"),)


def test_a_guest_stands_still_and_goes_on(bench: Bench) -> None:
    with Qemu(bench.folder) as running, live(running) as (graph, _):
        disk = Disk("a", ())
        graph.go_on()
        assert graph.look(disk).is_running
        graph.stop()
        assert not graph.look(disk).is_running


def test_a_storage_daemon_runs_no_guest(bench: Bench) -> None:
    with Daemon(bench.folder) as running, live(running) as (graph, _):
        for tell in (graph.stop, graph.go_on):
            with pytest.raises(errors.Unsupported) as caught:
                tell()
            assert caught.value.advice


def test_who_is_there(running: Running, bench: Bench) -> None:
    with live(running) as (graph, _):
        first = graph.process
        assert first.pid == running.child.pid
        assert is_alive(Host.real(), first)
        with pytest.raises(errors.LeaseHeld), Monitor(Host.real(), running.address, greeting_timeout_s=0.1):
            pass
    running.kill()
    with pytest.raises(NobodyAnswers), live(running):
        pass
    assert not is_alive(Host.real(), first)
    with type(running)(bench.folder) as again, live(again) as (graph, _):
        assert graph.process.pid == again.child.pid
        assert graph.process != first


# -- switching ------------------------------------------------------------------------


def test_a_disk_is_switched(running: Running, bench: Bench) -> None:
    overlay, top, base = layers(bench)
    running.open(graph_of((top, base), "a"), "a")
    move = Move("a", "top", overlay)
    with live(running) as (graph, monitor):
        running.write(monitor, "a", 0, 1)
        graph.switch([move])
        running.write(monitor, "a", 0, 2)
        assert graph.look(Disk("a", IDS)) == Seen(IDS, (), None, isinstance(running, Daemon))
        # What is frozen can be read at once, and a second switch to the same overlay does nothing.
        assert reads(bench, (top, base), 0) == 1
        graph.switch([move])
        graph.switch([])
        assert graph.look(Disk("a", IDS)).chain == IDS
    running.end()
    assert reads(bench, (top, base), 0) == 1
    assert reads(bench, (overlay, top, base), 0) == 2


def test_two_disks_of_one_snapshot_are_switched_at_once(running: Running, bench: Bench) -> None:
    base = bench.layer("base", "qcow2", SIZE_BYTES)
    tops = {name: bench.layer(f"top-{name}", "qcow2", SIZE_BYTES, (base,)) for name in "ab"}
    moves = []
    for name, top in tops.items():
        running.open(graph_of((top, base), name), name)
        overlay = bench.layer(f"overlay-{name}", "qcow2", SIZE_BYTES, (top, base))
        moves.append(Move(name, top.name, overlay))
    with live(running) as (graph, monitor):
        # One alone first: it is left out when both are asked for.
        graph.switch(moves[:1])
        graph.switch(moves)
        for byte, move in enumerate(moves, 1):
            running.write(monitor, move.attachment_id, 0, byte)
            chain = (move.overlay.name, move.top_id, "base")
            assert graph.look(Disk(move.attachment_id, chain)).chain == chain
            assert graph.look(Disk(move.attachment_id, chain)).foreign == ()
    running.end()
    for byte, move in enumerate(moves, 1):
        top = tops[move.attachment_id]
        assert reads(bench, (move.overlay, top, base), 0) == byte
        assert reads(bench, (top, base), 0) == 0


@pytest.mark.parametrize("name", ["missing", "wrong", "raw"])
def test_a_switch_that_is_refused(running: Running, bench: Bench, name: str) -> None:
    """Also the disk that could be switched is not, and nothing is left open."""
    overlay, top, base = layers(bench)
    running.open(graph_of((top, base), "a"), "a")
    other = bench.layer("other", "qcow2", SIZE_BYTES)
    running.open(graph_of((other,), "b"), "b")
    bad = bench.layer("bad", "qcow2", SIZE_BYTES, (other,))
    if name == "missing":
        Path(str(bad.path)).unlink()
    elif name == "wrong":
        Path(str(bad.path)).write_bytes(b"garbage" * 100_000)
    else:
        bad = replace(bad, format="raw")
    with live(running) as (graph, monitor):
        with pytest.raises(errors.InternalError if name == "raw" else errors.StorageError) as caught:
            graph.switch([Move("a", "top", overlay), Move("b", "other", bad)])
        assert not isinstance(caught.value, errors.UnknownOutcome)
        assert not has_node(monitor, "b", "bad")
    assert_unchanged(running, bench, (top, base))


class Meanwhile(Commands):
    """Does something just before a command is sent."""

    def __init__(self, before: str, do: Callable[[], object]) -> None:
        self._before, self._do = before, do

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        if what == f"qmp {self._before}":
            self._do()
        with super().telling(what):
            yield


def meanwhile(before: str, do: Callable[[], object]) -> Host:
    return replace(Host.real(), commands=Meanwhile(before, do))


def begin_job(monitor: Monitor, device: str, bench: Bench, *, name: str = "theirs") -> None:
    """A copy of somebody else's that does not end by itself."""
    target = {"driver": "null-co", "node-name": f"for-{name}", "size": SIZE_BYTES}
    monitor.command("blockdev-add", target, doing="opening a target")
    job = {"job-id": name, "device": device, "target": f"for-{name}", "sync": "full"}
    monitor.command("blockdev-mirror", job, doing="beginning a job")


def test_a_disk_with_a_job_is_not_switched(running: Running, bench: Bench) -> None:
    overlay, top, base = layers(bench)
    running.open(graph_of((top, base), "a"), "a")
    with live(running) as (graph, monitor):
        begin_job(monitor, node_of("a", "top"), bench)
        seen = graph.look(Disk("a", IDS))
        assert seen.chain == ("top", "base")
        assert seen.foreign == ()
        assert seen.job is not None
        assert seen.job.startswith("mirror theirs (")
        with pytest.raises(errors.LeaseHeld, match="theirs"):
            graph.switch([Move("a", "top", overlay)])
        assert not has_node(monitor, "a", "overlay")
        monitor.command("job-cancel", {"id": "theirs"}, doing="ending it")
        wait_for(lambda: graph.look(Disk("a", IDS)).job is None)
        graph.switch([Move("a", "top", overlay)])
        assert graph.look(Disk("a", IDS)).chain == IDS


def test_a_job_begins_while_a_disk_is_switched(running: Running, bench: Bench) -> None:
    overlay, top, base = layers(bench)
    running.open(graph_of((top, base), "a"), "a")
    used: list[Monitor] = []
    host = meanwhile("transaction", lambda: begin_job(used[0], node_of("a", "top"), bench))
    with live(running, host=host) as (graph, monitor):
        used.append(monitor)
        with pytest.raises(errors.LeaseHeld, match="mirror"):
            graph.switch([Move("a", "top", overlay)])
        assert not has_node(monitor, "a", "overlay")
        assert graph.look(Disk("a", IDS)).chain == ("top", "base")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_own_jobs_that_have_ended_are_dismissed(running: Running, bench: Bench) -> None:
    """A stream of somebody else's holds its nodes until it is dismissed too."""
    _, top, base = layers(bench)
    running.open(graph_of((top, base), "a"), "a")
    with live(running) as (graph, monitor):
        for name, told in (("dy-ours", None), ("theirs", "stream theirs (concluded)")):
            job = {"job-id": name, "device": node_of("a", "top"), "auto-dismiss": False}
            monitor.command("block-stream", job, doing="streaming")
            wait_for_job(monitor, name, "concluded")
            seen = graph.look(Disk("a", IDS))
            assert (seen.chain, seen.job) == (("top",), told)
        assert statuses(monitor) == {"theirs": "concluded"}


def test_a_copy_that_has_taken_the_place_of_a_disk(running: Running, bench: Bench) -> None:
    _, top, base = layers(bench)
    running.open(graph_of((top, base), "a"), "a")
    target = bench.layer("target", "qcow2", SIZE_BYTES)
    ids = (*IDS, "target")
    with live(running) as (graph, monitor):
        monitor.command("blockdev-add", graph_of((target,), "a"), doing="opening the target")
        job: Graph = {"device": node_of("a", "top"), "target": node_of("a", "target"), "sync": "full"}
        job |= {"job-id": "theirs", "auto-finalize": False, "auto-dismiss": False}
        monitor.command("blockdev-mirror", job, doing="copying")
        wait_for_job(monitor, "theirs", "ready")
        monitor.command("job-complete", {"id": "theirs"}, doing="completing")
        wait_for_job(monitor, "theirs", "pending")
        assert graph.look(Disk("a", ids)).chain == ("top", "base")
        monitor.command("job-finalize", {"id": "theirs"}, doing="finalizing")
        wait_for_job(monitor, "theirs", "concluded")
        seen = graph.look(Disk("a", ids))
        assert (seen.chain, seen.foreign, seen.idle) == (("target",), (), ("top",))


def statuses(monitor: Monitor) -> dict[str, str]:
    jobs = monitor.command("query-jobs", doing="looking")
    assert isinstance(jobs, list)
    return {job["id"]: job["status"] for job in jobs}


def wait_for_job(monitor: Monitor, name: str, *wanted: str) -> None:
    wait_for(lambda: statuses(monitor).get(name) in wanted)


def test_jobs_of_ones_own_are_seen_through(running: Running, bench: Bench) -> None:
    """Their filters are nobody's overlay, and the target of a copy is not yet read."""
    overlay, top, base = layers(bench)
    running.open(graph_of((overlay, top, base), "a"), "a")
    target = bench.layer("target", "qcow2", SIZE_BYTES)
    ids = (*IDS, "target")
    with live(running) as (graph, monitor):
        held = {"auto-finalize": False, "auto-dismiss": False}
        device = node_of("a", "overlay")
        monitor.command("blockdev-add", graph_of((target,), "a"), doing="opening the target")
        assert graph.look(Disk("a", ids)).idle == ("target",)
        jobs: dict[str, Graph] = {
            "blockdev-mirror": {"target": node_of("a", "target"), "sync": "full"},
            "block-commit": {"top-node": device, "base-node": node_of("a", "top")},
            "block-stream": {"base-node": node_of("a", "base")},
        }
        for name, arguments in jobs.items():
            monitor.command(name, {"job-id": "dy-job", "device": device, **arguments, **held}, doing=name)
            seen = graph.look(Disk("a", ids))
            assert (seen.chain, seen.foreign) == (IDS, ()), name
            assert seen.job is not None, name
            assert "dy-job" in seen.job
            assert seen.idle == (() if name == "blockdev-mirror" else ("target",))
            wait_for_job(monitor, "dy-job", "ready", "pending")
            monitor.command("job-cancel", {"id": "dy-job"}, doing="ending it")
            wait_for_job(monitor, "dy-job", "concluded")
            assert graph.look(Disk("a", ids)) == Seen(IDS, (), None, isinstance(running, Daemon), ("target",))


# -- what others have done ------------------------------------------------------------


def test_a_foreign_overlay_is_named(running: Running, bench: Bench) -> None:
    overlay, top, base = layers(bench)
    running.open(graph_of((top, base), "a"), "a")
    theirs = bench.layer("theirs", "qcow2", SIZE_BYTES, (top, base))
    node: Graph = {
        "driver": "qcow2",
        "node-name": "theirs",
        "file": {"driver": "file", "filename": str(theirs.path)},
        "backing": None,
    }
    command(running, "blockdev-add", node)
    assert look(running) == Seen(("top", "base"), (), None, isinstance(running, Daemon))
    command(running, "blockdev-snapshot", {"node": node_of("a", "top"), "overlay": "theirs"})
    assert look(running) == Seen(("top", "base"), ("theirs",), None, isinstance(running, Daemon))
    with live(running) as (graph, monitor):
        with pytest.raises(errors.ImageInUse, match="theirs"):
            graph.switch([Move("a", "top", overlay)])
        assert not has_node(monitor, "a", "overlay")


def test_a_top_that_is_not_the_one_named(running: Running, bench: Bench) -> None:
    overlay, top, base = layers(bench)
    running.open(graph_of((top, base), "a"), "a")
    with live(running) as (graph, _):
        for name in ("base", "nothing"):
            with pytest.raises(errors.ImageInUse):
                graph.switch([Move("a", name, overlay)])
    assert_unchanged(running, bench, (top, base))


def test_what_an_interrupted_switch_left(running: Running, bench: Bench) -> None:
    overlay, top, base = layers(bench)
    running.open(graph_of((top, base), "a"), "a")
    with live(running) as (graph, monitor):
        disk = Disk("a", IDS)
        monitor.command("blockdev-add", graph_of((overlay,), "a"), doing="adding")
        assert graph.look(disk) == Seen(("top", "base"), (), None, isinstance(running, Daemon), ("overlay",))
        for _ in range(2):
            graph.forget("a", "overlay")
            assert not has_node(monitor, "a", "overlay")
        # What is used is not forgotten.
        for name in ("top", "base"):
            with pytest.raises(errors.StorageError):
                graph.forget("a", name)
        # One that is there is opened anew.
        monitor.command("blockdev-add", graph_of((overlay,), "a"), doing="adding")
        graph.switch([Move("a", "top", overlay)])
        assert graph.look(disk).chain == IDS
        assert graph.look(disk).idle == ()


def test_another_disk_over_the_same_volumes_is_foreign(running: Running, bench: Bench) -> None:
    _, top, base = layers(bench)
    running.open(graph_of((top, base), "a"), "a")
    theirs = bench.layer("theirs", "qcow2", SIZE_BYTES, (base,))
    node: Graph = {
        "driver": "qcow2",
        "node-name": "theirs",
        "file": {"driver": "file", "filename": str(theirs.path)},
        "backing": node_of("a", "base"),
    }
    running.open(node, "b")
    assert look(running) == Seen(("top", "base"), ("theirs",), None, isinstance(running, Daemon))


# -- a guest's own devices and filters ------------------------------------------------


def test_a_device_that_is_there_from_the_start(bench: Bench) -> None:
    """Under limits of speed, and a filter that copies what is read; a job above them counts."""
    overlay, top, base = layers(bench)
    limits: Graph = {
        "driver": "throttle",
        "node-name": "limited",
        "throttle-group": "limits",
        "file": node_of("a", "top"),
    }
    copies: Graph = {"driver": "copy-on-read", "node-name": "copies", "file": "limited"}
    graph_given = graph_of((top, base), "a")
    with VirtioQemu(bench.folder, graph_given, "a", filters=(limits, copies)) as running:
        with live(running) as (graph, monitor):
            running.write(monitor, "a", 0, 1)
            begin_job(monitor, "copies", bench)
            assert graph.look(Disk("a", IDS)).job is not None
            with pytest.raises(errors.LeaseHeld):
                graph.switch([Move("a", "top", overlay)])
            monitor.command("job-cancel", {"id": "theirs"}, doing="ending it")
            wait_for(lambda: graph.look(Disk("a", IDS)).job is None)
            graph.switch([Move("a", "top", overlay)])
            running.write(monitor, "a", 0, 2)
            assert graph.look(Disk("a", IDS)) == Seen(IDS, (), None, False)
        running.end()
    assert reads(bench, (top, base), 0) == 1
    assert reads(bench, (overlay, top, base), 0) == 2


def test_an_overlay_of_another_size(bench: Bench) -> None:
    _, top, base = layers(bench)
    shorter = bench.layer("shorter", "qcow2", SIZE_BYTES // 2, (top, base))
    with VirtioQemu(bench.folder, graph_of((top, base), "a"), "a") as running:
        with live(running) as (graph, monitor):
            with pytest.raises(errors.StorageError, match="size"):
                graph.switch([Move("a", "top", shorter)])
            assert not has_node(monitor, "a", "shorter")
        assert_unchanged(running, bench, (top, base))


def test_a_guest_does_not_stand_still_for_the_sizes_of_deep_chains(bench: Bench) -> None:
    chain: Chain = ()
    for number in range(40):
        chain = (bench.layer(f"layer {number}", "qcow2", SIZE_BYTES, chain), *chain)
    overlay = bench.layer("overlay", "qcow2", SIZE_BYTES, chain)
    injector = Injector()
    with VirtioQemu(bench.folder, graph_of(chain, "a"), "a") as running:
        injector.begin(None)
        with live(running, host=faulty_host(injector, "counting")) as (graph, _):
            graph.switch([Move("a", chain[0].name, overlay)])
            ids = tuple(layer.name for layer in (overlay, *chain))
            assert graph.look(Disk("a", ids)).chain == ids
    names = {call.name for call in injector.calls}
    assert "qmp transaction" in names
    assert "qmp query-block" not in names


# -- no answer ------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["blockdev-add", "transaction"])
def test_it_is_killed_while_a_disk_is_switched(running: Running, bench: Bench, before: str) -> None:
    overlay, top, base = layers(bench)
    running.open(graph_of((top, base), "a"), "a")
    with (
        pytest.raises(errors.UnknownOutcome) as caught,
        live(running, host=meanwhile(before, running.kill)) as (graph, _),
    ):
        graph.switch([Move("a", "top", overlay)])
    assert isinstance(caught.value, errors.StorageError)


def test_a_switch_that_is_answered_too_late(running: Running, bench: Bench) -> None:
    """It is not undone: the guest may write to the overlay already."""
    overlay, top, base = layers(bench)
    running.open(graph_of((top, base), "a"), "a")

    def suspend() -> None:
        os.kill(running.child.pid, signal.SIGSTOP)

    with live(running, host=meanwhile("transaction", suspend), timeout_s=5.0) as (graph, _):
        with pytest.raises(errors.UnknownOutcome):
            graph.switch([Move("a", "top", overlay)])
        os.kill(running.child.pid, signal.SIGCONT)
        # QEMU answers in order, so that this answer tells.
        assert graph.look(Disk("a", IDS)).chain == IDS


@pytest.mark.parametrize(
    "answers",
    [
        {"query_jobs": [{"id": 1}]},
        {"query_jobs": {}},
        {"x_debug_query_block_graph": []},
        {"x_debug_query_block_graph": {"nodes": [{"id": "1"}], "edges": []}},
        {"x_debug_query_block_graph": {"nodes": [], "edges": []}, "query_status": {"running": "yes"}},
    ],
)
def test_answers_of_another_form(tmp_path: Path, answers: dict[str, object]) -> None:
    with (
        fake_monitor(tmp_path / "m", answering(**answers)) as address,
        monitor_at(address) as monitor,
        pytest.raises(errors.StorageError),
    ):
        QmpGraph(monitor).look(Disk("a", ("top",)))
