"""What listing and checking ask of storage, counted at the host's door."""

from __future__ import annotations

from collections import Counter

import pytest

from diskyard.model import requests as ask
from diskyard.model.options import CreateDiskOptions
from tests.unit.queries.bench import LATER_S, Bench, Calls

DISKS, SNAPSHOTS, OF_PERFORMANCE = 12, 3, 4


def fill(bench: Bench) -> None:
    """Disks, of which each reads a chain of its Snapshots."""
    for _ in range(DISKS):
        disk = bench.disk()
        for _ in range(SNAPSHOTS):
            bench.snapshot(disk)
    options = CreateDiskOptions(strategy="performance")
    for _ in range(OF_PERFORMANCE):
        bench.disk(options=options)


@pytest.mark.parametrize("limit", [1, 5])
def test_a_page_looks_at_what_its_images_read(bench: Bench, limit: int) -> None:
    """Each file once, whoever else reads it; nothing is listed, and no other file touched."""
    fill(bench)
    cursor = None
    for _ in range(3):
        with bench.counted() as calls:
            page = bench.page(limit=limit, cursor=cursor)
        cursor = page.next_cursor
        expected = set().union(*(bench.names_below(info.image_id) for info in page.images))
        assert sorted(calls.looked) == sorted(expected)
        assert len(expected) <= limit * (SNAPSHOTS + 1)
        assert sorted(calls.read) == sorted(name for name in expected if name.endswith("qcow2"))
        assert "volumes" not in calls.listed


def test_of_one_status_only_so_many_are_looked_at_as_it_takes(bench: Bench) -> None:
    """All of them at most once for a page, also where none is found."""
    fill(bench)
    with bench.counted() as calls:
        assert bench.page(status="broken", limit=2).images == ()
    assert len(calls.looked) == len(set(calls.looked)) == len(bench.repository.state().volumes)


def test_a_chain_is_looked_at_once_for_all_images_on_it(bench: Bench) -> None:
    disk = bench.disk()
    for _ in range(40):
        bench.snapshot(disk)
    with bench.counted() as calls:
        assert len(bench.page(limit=100).images) == 41
    assert len(calls.looked) == len(set(calls.looked)) == 41


def test_a_header_is_read_once_while_nothing_is_written_to_it(bench: Bench) -> None:
    """Not so soon after the last write that a second one could go unseen."""
    fill(bench)
    qcow2 = DISKS * SNAPSHOTS

    def headers_read() -> int:
        with bench.counted() as calls:
            bench.page(limit=1000)
        return len(calls.read)

    assert [headers_read(), headers_read()] == [qcow2, qcow2]
    bench.clock.ahead_s = LATER_S
    assert [headers_read(), headers_read(), headers_read()] == [qcow2, 0, 0]


def test_check_looks_at_everything_once(bench: Bench) -> None:
    """Every file in one listing, every header once, and the leases of all images in one question."""
    fill(bench)
    bench.clock.ahead_s = LATER_S
    bench.page(limit=1000)
    calls = checked(bench)
    headers = [str(name) for name in calls.read]
    assert Counter(headers) == Counter(set(headers))
    assert len(headers) == DISKS * SNAPSHOTS
    assert calls.looked == []
    assert max(Counter(calls.listed).values()) <= 5
    assert calls.others.count("locked_bytes") == 1
    assert "byte_is_locked" not in calls.others


def test_all_else_of_a_check_does_not_grow_with_the_images(bench: Bench) -> None:
    bench.disk()
    few = checked(bench)
    fill(bench)
    many = checked(bench)
    entries = (DISKS * (1 + SNAPSHOTS) + OF_PERFORMANCE) * 2 * 2  # a verb's entries, and their copies
    assert len(many.others) - entries <= len(few.others)
    assert Counter(many.listed) == Counter(few.listed)


def checked(bench: Bench) -> Calls:
    with bench.counted() as calls:
        fixes = bench.check()
    assert {fix.type for fix in fixes} <= {"optimize"}
    return calls


def test_the_status_of_an_image_looks_at_its_chain(bench: Bench) -> None:
    fill(bench)
    image_id = next(info.image_id for info in bench.page(limit=1000, kind="snapshot").images)
    for request in (ask.GetImageStatus, ask.GetImageInfo):
        with bench.counted() as calls:
            assert bench.run(request(repository_id="r", image_id=image_id)).status == "optimized"
        assert sorted(calls.looked) == sorted(bench.names_below(image_id))
