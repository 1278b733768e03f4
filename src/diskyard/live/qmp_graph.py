"""The disks of a guest whose QEMU is asked and told over QMP; of a storage daemon in the same way."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence

import msgspec

from diskyard import errors
from diskyard.live.graph import Disk, Move, Seen
from diskyard.live.monitor import Monitor
from diskyard.live.nodes import BlockGraph, GraphAnswer, View
from diskyard.live.process import Process
from diskyard.mover.qemu.failures import brief, expected
from diskyard.mover.qemu.graphs import guest_nodes, guest_overlay

OWN_JOBS = "dy-"  # what the ids of Diskyard's own jobs begin with
_NO_NODE = "Failed to find node"
#: QEMU 7.2 needs time that grows with more than the square of a chain's depth to tell a disk's size, and the
#: guest stands still meanwhile: 2 ms for 10 layers of two nodes each, 75 ms for 50, 8 s for 200.
_SIZED_NODES_MOST = 64


class _Job(msgspec.Struct):
    id: str
    type: str
    status: str


class _Status(msgspec.Struct):
    running: bool


class _ImageInfo(msgspec.Struct, rename="kebab"):
    virtual_size: int


class _Inserted(msgspec.Struct, rename="kebab"):
    image: _ImageInfo
    node_name: str | None = None


class _Device(msgspec.Struct):
    inserted: _Inserted | None = None


class QmpGraph:
    """The disks of one running program; a :class:`~diskyard.live.graph.LiveGraph`.

    Nodes are listed with ``x-debug-query-block-graph`` alone: ``query-named-block-nodes`` ends QEMU 7.2 while
    a stream has concluded and is not dismissed.

    :param monitor: in whose context this object is used.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    @property
    def process(self) -> Process:
        """See :attr:`LiveGraph.process`."""
        return self._monitor.process

    # -- looking ------------------------------------------------------------------------

    def look(self, disk: Disk) -> Seen:
        """See :meth:`LiveGraph.look`."""
        jobs, graph = self._jobs(), self._graph()
        view = graph.view(_volume_of(disk.attachment_id, disk.volume_ids))
        return Seen(view.chain, view.foreign, _job_words(view, jobs), self._is_running(), view.idle)

    def _jobs(self) -> dict[str, _Job]:
        """The jobs of the program by their ids, once Diskyard's own that have ended are dismissed."""
        doing = "looking for jobs of the guest's QEMU"
        jobs = expected(self._monitor.command("query-jobs", doing=doing), list[_Job], doing)
        for job in jobs:
            if job.id.startswith(OWN_JOBS) and job.status == "concluded":
                self._monitor.command("job-dismiss", {"id": job.id}, doing="dismissing a job that has ended")
                jobs = [other for other in jobs if other is not job]
        return {job.id: job for job in jobs}

    def _graph(self) -> BlockGraph:
        doing = "looking at the disks of the guest's QEMU"
        answer = self._monitor.command("x-debug-query-block-graph", doing=doing)
        return BlockGraph(expected(answer, GraphAnswer, doing))

    def _is_running(self) -> bool:
        if not self._monitor.offers("query-status"):
            return True  # a storage daemon
        doing = "asking whether the guest runs"
        return expected(self._monitor.command("query-status", doing=doing), _Status, doing).running

    # -- switching ----------------------------------------------------------------------

    def switch(self, moves: Sequence[Move]) -> None:
        """See :meth:`LiveGraph.switch`.

        The overlays' sizes are compared with what the guest sees only where that costs the guest nothing
        worth mentioning: not in a storage daemon, which does not tell, nor if the program has many layers
        open. QEMU itself takes an overlay of any size. So callers must know that the sizes are the same.

        :raises diskyard.errors.InternalError: an overlay is not qcow2.
        :raises diskyard.errors.StorageError: an overlay has another size than the disk.
        """
        jobs, graph = self._jobs(), self._graph()
        wanted = [move for move in moves if not _is_switched(graph, move)]
        if not wanted:
            return
        for move in wanted:
            _check(_around(graph, move), move, jobs)
        self._check_sizes(graph, wanted)
        added: list[Move] = []
        try:
            for move in wanted:
                if move.overlay.name in _around(graph, move).idle:  # an interrupted switch has left it
                    self.forget(move.attachment_id, move.overlay.name)
                node = guest_overlay(self._monitor.host, move.overlay, attachment_id=move.attachment_id)
                self._monitor.command("blockdev-add", node, doing=f"opening volume {move.overlay.name}")
                added.append(move)
            actions = [{"type": "blockdev-snapshot", "data": _snapshot(move)} for move in wanted]
            self._monitor.command(
                "transaction", {"actions": actions}, doing="switching a disk to its overlay"
            )
        except errors.UnknownOutcome:
            raise  # what was added may be the disk by now
        except errors.DiskyardError:
            for move in added:
                # The refusal matters more than a node that cannot be closed, which look() calls idle.
                with contextlib.suppress(errors.DiskyardError):
                    self.forget(move.attachment_id, move.overlay.name)
            raise

    def _check_sizes(self, graph: BlockGraph, moves: Sequence[Move]) -> None:
        if not self._monitor.offers("query-block") or graph.node_count > _SIZED_NODES_MOST:
            return
        doing = "asking for the sizes of the guest's disks"
        devices = expected(self._monitor.command("query-block", doing=doing), list[_Device], doing)
        inserted = [device.inserted for device in devices if device.inserted is not None]
        for move in moves:
            path = _around(graph, move).path
            for size_bytes in (told.image.virtual_size for told in inserted if told.node_name in path):
                if size_bytes != move.overlay.size_bytes:
                    raise errors.StorageError(
                        f"The guest's disk has {size_bytes} bytes, and its overlay {move.overlay.name} "
                        f"{move.overlay.size_bytes}: another program has changed the disk's size.",
                        advice="Stop the guest, tear its attachment down, then run checkStorageRepository.",
                    )

    def forget(self, attachment_id: str, volume_id: str) -> None:
        """See :meth:`LiveGraph.forget`. The file node goes with its format node."""
        format_node, _ = guest_nodes(attachment_id, volume_id)
        try:
            self._monitor.command(
                "blockdev-del", {"node-name": format_node}, doing=f"closing volume {volume_id}"
            )
        except errors.StorageError as error:
            if isinstance(error, errors.UnknownOutcome) or _NO_NODE not in error.message:
                raise

    # -- standing still -----------------------------------------------------------------

    def stop(self) -> None:
        """See :meth:`LiveGraph.stop`."""
        self._tell_guest("stop", "letting the guest stand still")

    def go_on(self) -> None:
        """See :meth:`LiveGraph.go_on`."""
        self._tell_guest("cont", "letting the guest go on")

    def _tell_guest(self, name: str, doing: str) -> None:
        if not self._monitor.offers(name):
            raise errors.Unsupported(
                f"The program of the disk runs no guest: it does not know {name}.",
                advice="Stop the guest in the program that runs it.",
            )
        self._monitor.command(name, doing=doing)


def _volume_of(attachment_id: str, volume_ids: Collection[str]) -> dict[str, str]:
    return {guest_nodes(attachment_id, volume_id)[0]: volume_id for volume_id in volume_ids}


def _around(graph: BlockGraph, move: Move) -> View:
    """How a disk is read, as far as a move knows it; below the top are volumes that it does not name."""
    return graph.view(_volume_of(move.attachment_id, (move.overlay.name, move.top_id)))


def _is_switched(graph: BlockGraph, move: Move) -> bool:
    view = _around(graph, move)
    return view.chain[:1] == (move.overlay.name,) and not view.above


def _check(view: View, move: Move, jobs: dict[str, _Job]) -> None:
    job = _job_words(view, jobs)
    if job is not None:
        raise errors.LeaseHeld(
            f"A block job of the guest's QEMU uses volume {move.top_id}: {job}.",
            advice="Try again when the job is done, or end it where it was started.",
        )
    if view.chain[:1] != (move.top_id,) or view.above:
        found = brief(", ".join((*view.above, *view.chain[:1]))) or "nothing of it"
        raise errors.ImageInUse(
            f"The guest does not write to volume {move.top_id}, but to {found}: the chain of its disk was "
            "changed by another program.",
            advice="Do not change the disks of a guest that Diskyard manages in any other way.",
        )


def _job_words(view: View, jobs: dict[str, _Job]) -> str | None:
    if not view.job_ids:
        return None
    words = [
        f"{jobs[job_id].type} {job_id} ({jobs[job_id].status})" if job_id in jobs else job_id
        for job_id in view.job_ids
    ]
    return brief(", ".join(words))


def _snapshot(move: Move) -> dict[str, str]:
    return {
        "node": guest_nodes(move.attachment_id, move.top_id)[0],
        "overlay": guest_nodes(move.attachment_id, move.overlay.name)[0],
    }
