"""Statuses, better representations and the sums of space."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from diskyard.model.capabilities import Capabilities
from diskyard.model.records import Image, ImageSource, Pending, Volume
from diskyard.model.space import exclusive_bytes, usage
from diskyard.model.state import State
from diskyard.model.status import (
    CHAIN_DEPTH_LIMIT,
    better_representation,
    merge_dependent,
    why_broken,
)
from tests.unit.model.one_by_one import image_status, lasting_depth
from tests.unit.records import attachment, building, copy_hold, disk, image, state, volume, weak

PLAIN = Capabilities()
RESERVING = Capabilities(preallocation=True)
PENDING = Pending(work_id="w", source=ImageSource(marker="m", image_id="x"))


def chain(depth: int, *, strong: bool = True) -> State:
    """A disk over ``depth`` - 1 images, each with a Snapshot's volume."""
    records: list[Image | Volume] = [disk("d", "v0")]
    for level in range(depth):
        parent = f"s{level + 1}" if level + 1 < depth else None
        records.append(volume(f"v{level}", parent))
        if parent is not None:
            records.append((image if strong else weak)(parent, f"v{level + 1}"))
    return state(*records)


def broken(found: State, missing: frozenset[str] = frozenset()) -> str | None:
    return why_broken(found, found.images["d"], missing)


def test_what_breaks_an_image() -> None:
    assert broken(chain(3)) is None
    assert "missing" in (broken(chain(3), frozenset({"v2"})) or "")
    assert "damaged" in (broken(chain(3).put_volume(volume("v1", "s2", damage="leaks"))) or "")
    assert "building" in (broken(chain(3).put_volume(building("v2", "s2"))) or "")
    assert broken(chain(3).put_image(image("s2", "v2", pending=PENDING))) is not None
    assert broken(chain(3).put_image(disk("d", "v0", pending=PENDING))) is not None
    assert "no data" in (broken(chain(3).put_image(image("s2", None, pending=None))) or "")
    assert broken(chain(3), frozenset({"another"})) is None


def better(found: State, strategy: str, capabilities: Capabilities = PLAIN) -> str | None:
    target = found.images["d"]
    changed = disk("d", target.volume_id, strategy=strategy)
    now = found.put_image(changed)
    return better_representation(now, changed, capabilities, lasting_depth(now, changed))


def test_space_wants_chains_within_the_limit() -> None:
    assert better(chain(CHAIN_DEPTH_LIMIT), "space") is None
    assert better(chain(CHAIN_DEPTH_LIMIT + 1), "space") is not None
    assert better(chain(CHAIN_DEPTH_LIMIT + 9, strong=False), "space") is None  # merging will do it


def test_performance_wants_raw_without_parent_and_reserved() -> None:
    assert better(chain(1), "performance") is None
    assert "reserved" in (better(chain(1), "performance", RESERVING) or "")
    reserved = chain(1).put_volume(volume("v0", preallocated=True))
    assert better(reserved, "performance", RESERVING) is None
    assert "raw" in (better(chain(1).put_volume(volume("v0", format="qcow2")), "performance") or "")
    assert "parent" in (better(chain(2), "performance") or "")


def test_status() -> None:
    found = chain(2).put_image(disk("d", "v0", strategy="performance"))
    d = found.images["d"]
    assert image_status(found, d, PLAIN) == "degraded"
    assert image_status(found, d, PLAIN, {"v1"}) == "broken"
    assert image_status(chain(2), chain(2).images["d"], PLAIN) == "optimized"


MERGEABLE = state(disk("d", "v"), volume("v", "w"), weak("w", "p"), volume("p"))


def test_a_weak_image_with_one_ready_dependent_can_be_merged() -> None:
    assert merge_dependent(MERGEABLE, MERGEABLE.images["w"]) == MERGEABLE.volumes["v"]


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.put_image(image("w", "p")),
        lambda s: s.put_image(weak("w", "p", held_for=(copy_hold(),))),
        lambda s: s.put_image(weak("w", "p", pending=PENDING)),
        lambda s: s.put_image(disk("c", None, pending=replace(PENDING, base_image_id="w"))),
        lambda s: s.put_volume(volume("u", "w")),
        lambda s: s.put_volume(building("v", "d", "w")),
        lambda s: s.remove_image("d"),
        lambda s: s.put_image(weak("x", "p")),
        lambda s: s.put_volume(building("p", "w")),
        lambda s: s.remove_volume("v"),
    ],
)
def test_what_keeps_a_weak_image_from_merging(change: object) -> None:
    found = change(MERGEABLE)  # type: ignore[operator]
    assert merge_dependent(found, found.images["w"]) is None


# -- space --------------------------------------------------------------------------------------

BYTES = st.integers(0, 1 << 40)


@given(
    st.dictionaries(st.sampled_from(["v", "p", "b", "x", "r", "q", "stranger"]), BYTES),
    BYTES,
)
def test_every_allocated_byte_is_counted_exactly_once(allocated: dict[str, int], leftovers: int) -> None:
    found = state(
        disk("d", "v"),
        volume("v", "w"),
        weak("w", "p"),
        volume("p"),
        building("b", "n"),
        volume("x", state="doomed"),
        weak("held", "r", held_for=(copy_hold(),)),
        volume("r"),
        volume("q"),
        attachment("a", "d", "q"),
    )
    sums = usage(found, allocated, leftovers)
    assert sums.total_bytes == sum(allocated.values()) + leftovers
    assert sums.strong_bytes == allocated.get("v", 0)
    assert sums.mergeable_bytes == allocated.get("p", 0)
    assert sums.building_bytes == allocated.get("b", 0)
    assert sums.retained_bytes == allocated.get("r", 0) + allocated.get("q", 0)
    assert sums.reclaimable_bytes == sums.doomed_bytes + sums.garbage_bytes
    assert sums.doomed_bytes == allocated.get("x", 0)
    assert sums.garbage_bytes == allocated.get("stranger", 0) + leftovers


def test_exclusive_is_what_removing_frees() -> None:
    allocated = {"v": 1, "p": 10, "r": 100}
    found = MERGEABLE.put_volume(volume("p", "s")).put_image(image("s", "r")).put_volume(volume("r"))
    d = found.images["d"]
    assert exclusive_bytes(found, found.chain(d), allocated) == 11
    more = found.put_volume(volume("u", "w"))
    assert exclusive_bytes(more, more.chain(d), allocated) == 1
    held = found.put_image(weak("w", "p", held_for=(copy_hold(),)))
    assert exclusive_bytes(held, held.chain(d), allocated) == 1
    awaited = found.put_image(disk("c", None, pending=replace(PENDING, base_image_id="w")))
    assert exclusive_bytes(awaited, awaited.chain(d), allocated) == 1
    read = found.put_volume(volume("u", "d"))
    assert exclusive_bytes(read, read.chain(d), allocated) == 0
    assert exclusive_bytes(found, found.chain(found.images["s"]), allocated) == 0
