"""What a block graph of QEMU's says of one disk: values, without the program that it is from.

``x-debug-query-block-graph`` gives nodes and edges, with names but without drivers. What a node is shows in
its edges: a format's node with something below has "backing" beside "file", a filter has one of the two.
Nothing of it is trusted: it may be in circles, or of any depth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec

_DRIVER, _BACKEND, _JOB = "block-driver", "block-backend", "block-job"
_ROOTS_MOST = 8  # so many are followed down; there is one, or somebody else has made others
_TARGET = "target"  # the edge of a job that copies


class _Node(msgspec.Struct):
    id: int
    type: str
    name: str


class _Edge(msgspec.Struct):
    parent: int
    child: int
    name: str


class GraphAnswer(msgspec.Struct):
    """The answer of ``x-debug-query-block-graph``, as far as it is used."""

    nodes: list[_Node]
    edges: list[_Edge]


@dataclass(frozen=True, slots=True)
class View:
    """How one disk is read.

    :param chain: the volumes that are read, top first.
    :param above: the names of nodes above all of them that are not the disk's, without filters.
    :param foreign: these, and those between, below and beside.
    :param idle: volumes whose nodes nothing uses.
    :param job_ids: the jobs that use any of the nodes.
    :param path: the names of all nodes from the device down, filters too.
    """

    chain: tuple[str, ...] = ()
    above: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    job_ids: tuple[str, ...] = ()
    path: tuple[str, ...] = ()


class BlockGraph:
    """The nodes of a program's block layer, and what uses what.

    :ivar node_count: how many nodes of drivers there are.
    """

    def __init__(self, answer: GraphAnswer) -> None:
        self._nodes = {node.id: node for node in answer.nodes}
        self._below: dict[int, list[_Edge]] = defaultdict(list)
        self._above: dict[int, list[_Edge]] = defaultdict(list)
        for edge in answer.edges:
            if edge.parent in self._nodes and edge.child in self._nodes:
                self._below[edge.parent].append(edge)
                self._above[edge.child].append(edge)
        self._drivers = {node.name: node.id for node in answer.nodes if node.type == _DRIVER}
        self.node_count = len(self._drivers)

    def view(self, volume_of: Mapping[str, str]) -> View:
        """How a disk is read.

        :param volume_of: the disk's volumes by the names of their format nodes.
        """
        ours = {self._drivers[name]: volume for name, volume in volume_of.items() if name in self._drivers}
        over = self._closure(ours, self._drivers_above)
        roots = self._roots(over)
        paths = [self._path(root, over, ours) for root in roots[:_ROOTS_MOST]]
        # What has most of the disk is its chain; there is no second one unless somebody else made it.
        paths.sort(key=lambda path: (-sum(node in ours for node in path), path))
        path = paths[0] if paths else []
        strangers = self._strangers(path, ours, over)
        on_path = frozenset(path)
        others = [*(node for other in paths[1:] for node in other), *roots[_ROOTS_MOST:]]
        beside = dict.fromkeys(node for node in others if node not in on_path)
        first = next((place for place, node in enumerate(path) if node in ours), len(path))
        used = self._closure([*path, *beside, *ours], self._drivers_below)
        return View(
            chain=tuple(ours[node] for node in path if node in ours),
            above=self._names(self._strangers(path[:first], ours, over)),
            foreign=self._names([*strangers, *beside]),
            idle=tuple(volume for node, volume in ours.items() if not self._above[node]),
            job_ids=self._jobs(used),
            path=self._names(path),
        )

    def _roots(self, nodes: Iterable[int]) -> list[int]:
        """The nodes that devices or exports use, without those that are below another of them.

        A job uses nodes too, in the same way. Those that it has in the midst of a chain are below another;
        for the target of a copy it has an edge of its own, until the copy takes the disk's place.
        """
        used = [node for node in nodes if self._has_backend(node) and not self._is_target(node)]
        children = [edge.child for node in used for edge in self._below[node]]
        below = self._closure(children, self._drivers_below)
        return [node for node in used if node not in below]

    def _has_backend(self, node: int) -> bool:
        return any(self._nodes[edge.parent].type == _BACKEND for edge in self._above[node])

    def _is_target(self, node: int) -> bool:
        return any(
            self._nodes[edge.parent].type == _JOB and edge.name == _TARGET for edge in self._above[node]
        )

    def _path(self, root: int, over: Mapping[int, None], ours: Mapping[int, str]) -> list[int]:
        """The nodes from a root down, as far as backings lead."""
        path: dict[int, None] = {}
        node: int | None = root
        while node is not None and node not in path:
            path[node] = None
            node = self._next(node, over, ours)
        return list(path)

    def _next(self, node: int, over: Mapping[int, None], ours: Mapping[int, str]) -> int | None:
        edges = self._below[node]
        backing = next((edge.child for edge in edges if edge.name == "backing"), None)
        if backing is not None or node in ours:
            return backing
        # A filter that has its one child as "file"; below what is no filter that is only a file.
        leads = [edge for edge in edges if edge.child in over]
        return min(leads, key=lambda edge: (edge.name != "file", edge.child)).child if leads else None

    def _is_filter(self, node: int, over: Mapping[int, None]) -> bool:
        edges = self._below[node]
        if any(edge.name == "backing" for edge in edges):
            return len(edges) == 1
        return any(edge.name == "file" and edge.child in over for edge in edges)

    def _strangers(self, path: Iterable[int], ours: Mapping[int, str], over: Mapping[int, None]) -> list[int]:
        return [node for node in path if node not in ours and not self._is_filter(node, over)]

    def _jobs(self, used: Mapping[int, None]) -> tuple[str, ...]:
        jobs = [node for node in self._nodes.values() if node.type == _JOB]
        return tuple(job.name for job in jobs if any(edge.child in used for edge in self._below[job.id]))

    def _drivers_above(self, node: int) -> Iterator[int]:
        parents = (edge.parent for edge in self._above[node])
        return (parent for parent in parents if self._nodes[parent].type == _DRIVER)

    def _drivers_below(self, node: int) -> Iterator[int]:
        return (edge.child for edge in self._below[node])

    def _closure(self, begin: Iterable[int], step: Callable[[int], Iterable[int]]) -> dict[int, None]:
        """Some nodes and all that can be reached from them, in order."""
        found = dict.fromkeys(begin)
        waiting = list(found)
        while waiting:
            for node in step(waiting.pop()):
                if node not in found:
                    found[node] = None
                    waiting.append(node)
        return found

    def _names(self, nodes: Iterable[int]) -> tuple[str, ...]:
        return tuple(self._nodes[node].name for node in nodes)
