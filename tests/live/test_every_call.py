"""Every call of a switch fails once, before QEMU has acted and after it: what is told is how things stand."""

from __future__ import annotations

import errno
from pathlib import Path

from diskyard import errors
from diskyard.host import Host
from diskyard.live.graph import Disk, Move
from diskyard.live.qmp_graph import QmpGraph
from diskyard.mover.interface import Layer
from diskyard.testing.fault_injection import Call, Fault, Injector, faulty_host
from tests.conftest import Tally
from tests.live.running import Daemon, graph_of, has_node, monitor_at
from tests.unit.mover.bench import Bench

SIZE_BYTES = 1 << 20
DISK = Disk("a", ("overlay", "top", "base"))


def layers(folder: Path) -> tuple[Layer, Layer, Layer]:
    bench = Bench(folder, Host.real())
    base = bench.layer("base", "qcow2", SIZE_BYTES)
    top = bench.layer("top", "qcow2", SIZE_BYTES, (base,))
    return bench.layer("overlay", "qcow2", SIZE_BYTES, (top, base)), top, base


def switch_with(fault: Fault | None, folder: Path) -> list[Call]:
    """Switch a disk of a new program, and compare what is told with how the disk is read afterwards."""
    folder.mkdir()
    overlay, top, base = layers(folder)
    injector = Injector()
    told: errors.DiskyardError | None = None
    with Daemon(folder) as running:
        running.open(graph_of((top, base), "a"), "a")
        injector.begin(fault)
        try:
            with monitor_at(running.address, host=faulty_host(injector, "faulty")) as monitor:
                QmpGraph(monitor).switch([Move("a", "top", overlay)])
        except errors.DiskyardError as error:
            told = error
        injector.end()
        assert injector.failed == (fault is not None)
        with monitor_at(running.address) as monitor:
            chain = QmpGraph(monitor).look(DISK).chain
            is_left = has_node(monitor, "a", "overlay")
            # Whatever had happened, it can be repeated.
            QmpGraph(monitor).switch([Move("a", "top", overlay)])
            assert QmpGraph(monitor).look(DISK).chain == DISK.volume_ids
    if told is None:
        assert chain == DISK.volume_ids
    elif isinstance(told, errors.UnknownOutcome):
        assert told.advice
        assert fault is not None
        assert fault.afterwards
    else:
        assert told.code in ("NoSpace", "StorageError")
        assert chain == ("top", "base")
        assert not is_left
    return injector.calls


def test_every_call_of_a_switch_fails(quick_folder: Path, tally: Tally) -> None:
    calls = switch_with(None, quick_folder / "well")
    names = [call.name for call in calls if call.name.startswith("qmp ")]
    assert names == [
        *("qmp connect", "qmp query-version", "qmp query-commands", "qmp query-jobs"),
        *("qmp x-debug-query-block-graph", "qmp query-block", "qmp blockdev-add", "qmp transaction"),
    ]
    for at, call in enumerate(calls):
        for afterwards in (False, True)[: 1 + call.may_fail_afterwards()]:
            number = errno.EIO if call.reads or afterwards else errno.ENOSPC
            switch_with(Fault(at, number, afterwards), quick_folder / f"{at} {afterwards}")
            tally("faults", runs=1, faults=1)
    tally("faults", calls=len(calls))
