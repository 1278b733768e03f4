"""What is read of block graphs that no QEMU of today has, or that none should have."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from diskyard.live.nodes import BlockGraph, GraphAnswer, View

Edges = Sequence[tuple[str, str, str]]
OURS = {"top": "volume top", "base": "volume base"}


def view(edges: Edges, *, alone: Sequence[str] = ()) -> View:
    """The view of a graph whose devices are named ``device…`` and whose jobs ``job…``."""
    names = list(dict.fromkeys([name for parent, _, child in edges for name in (parent, child)] + [*alone]))

    def kind(name: str) -> str:
        return {"d": "block-backend", "j": "block-job"}.get(name[:1], "block-driver")

    nodes = [{"id": number, "type": kind(name), "name": name} for number, name in enumerate(names)]
    told = [
        {"parent": names.index(parent), "name": name, "child": names.index(child), "perm": []}
        for parent, name, child in edges
    ]
    return BlockGraph(msgspec.convert({"nodes": nodes, "edges": told}, GraphAnswer)).view(OURS)


CHAIN = [
    ("device", "root", "top"),
    ("top", "file", "top file"),
    ("top", "backing", "base"),
    ("base", "file", "base file"),
]
VOLUMES = ("volume top", "volume base")


def test_a_chain() -> None:
    assert view(CHAIN) == View(VOLUMES, path=("top", "base"))


def test_nothing() -> None:
    assert view([]) == View()
    assert view([], alone=["top"]) == View(idle=("volume top",))


def test_an_overlay_that_nothing_uses_does_not_hide_the_disk() -> None:
    """Somebody is about to switch to it."""
    added = [("theirs", "file", "their file"), ("theirs", "backing", "top")]
    assert view([*CHAIN, *added]).chain == VOLUMES
    assert view([*CHAIN, *added]).foreign == ()


def test_exports_of_what_is_below_are_no_other_disks() -> None:
    """However many there are of them, the disk is what is above."""
    exports = [(f"device {number}", "root", f"filter {number}") for number in range(50)]
    filters = [(f"filter {number}", "file", f"filter {number + 1}") for number in range(50)]
    above = [("device", "root", "theirs"), ("theirs", "backing", "top"), ("theirs", "file", "their file")]
    below = [("top", "file", "top file"), ("top", "backing", "filter 0"), ("filter 50", "file", "base")]
    found = view([*exports, ("device 0", "root", "base"), *filters, *above, *below])
    assert (found.chain, found.above, found.foreign) == (VOLUMES, ("theirs",), ("theirs",))


def test_two_devices_that_share_a_disk() -> None:
    assert view([*CHAIN, ("device 2", "root", "top")]).chain == VOLUMES


def test_what_is_between_and_below() -> None:
    edges = [
        ("device", "root", "top"),
        *(("top", "file", "top file"), ("top", "backing", "between")),
        *(("between", "file", "f"), ("between", "backing", "filter")),
        *(("filter", "file", "base"), ("base", "file", "base file"), ("base", "backing", "below")),
        *(("below", "file", "f"), ("below", "backing", "lowest"), ("lowest", "file", "g")),
    ]
    found = view(edges)
    assert found.chain == VOLUMES
    assert found.foreign == ("between", "below", "lowest")
    assert found.above == ()


def test_a_node_of_many_children_is_no_filter() -> None:
    edges = [("device", "root", "quorum"), ("quorum", "children.0", "top"), ("quorum", "children.1", "other")]
    found = view([*edges, *CHAIN[1:]])
    assert (found.chain, found.above, found.foreign) == (VOLUMES, ("quorum",), ("quorum",))


def test_jobs_count_wherever_they_are() -> None:
    assert view([*CHAIN, ("job", "main node", "other")]).job_ids == ()
    for place in ("top", "base", "top file", "base file"):
        assert view([*CHAIN, ("job", "anything", place)]).job_ids == ("job",)
    # It has the target of a copy; nothing else does.
    edges = [("device", "root", "other"), ("device 2", "root", "top"), ("job", "target", "top"), *CHAIN[1:]]
    assert view(edges) == View(job_ids=("job",))


def test_disks_without_number_are_all_foreign() -> None:
    many = [
        edge
        for number in range(50)
        for edge in (
            (f"device {number}", "root", f"over {number}"),
            (f"over {number}", "backing", "base"),
            (f"over {number}", "file", "f"),
        )
    ]
    found = view([*CHAIN, *many])
    assert found.chain == VOLUMES
    assert sorted(found.foreign) == sorted(f"over {number}" for number in range(50))


def test_circles() -> None:
    edges = [
        ("device", "root", "top"),
        ("top", "backing", "base"),
        ("base", "backing", "top"),
        ("top", "file", "top"),
    ]
    assert view(edges).chain in ((), VOLUMES)
    assert view([("device", "root", "device"), ("top", "root", "device"), ("base", "x", "base")]).chain == ()


def test_edges_to_nowhere() -> None:
    nodes = [{"id": 1, "type": "block-driver", "name": "top"}, {"id": 2, "type": "block-backend", "name": ""}]
    edges = [{"parent": 2, "child": 1, "name": "root"}, {"parent": 1, "child": 7, "name": "backing"}]
    edges.append({"parent": 8, "child": 1, "name": "backing"})
    graph = BlockGraph(msgspec.convert({"nodes": nodes, "edges": edges}, GraphAnswer))
    assert graph.view(OURS).chain == ("volume top",)


def test_a_chain_of_any_depth() -> None:
    depth = 20_000
    edges = [("device", "root", "n0"), *((f"n{i}", "backing", f"n{i + 1}") for i in range(depth))]
    edges += [(f"n{i}", "file", "f") for i in range(depth)]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(n for p, _, c in edges for n in (p, c)))}
    nodes = [
        {"id": i, "type": "block-backend" if name == "device" else "block-driver", "name": name}
        for name, i in numbers.items()
    ]
    told = [{"parent": numbers[p], "child": numbers[c], "name": name} for p, name, c in edges]
    graph = BlockGraph(msgspec.convert({"nodes": nodes, "edges": told}, GraphAnswer))
    found = graph.view({f"n{depth}": "lowest", "n0": "highest"})
    assert found.chain == ("highest", "lowest")
    assert len(found.foreign) == depth - 1
