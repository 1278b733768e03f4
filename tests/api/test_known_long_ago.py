"""A host that knows a log as it was long ago refuses nothing for that, while others work with leases."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace

from diskyard import Diskyard, errors
from diskyard.fixes.runner import run_fix
from diskyard.host.identity import new_uuid
from diskyard.log.log import Author
from diskyard.model.fix import CleanVolume, Merge
from diskyard.operations.building import new_ids
from diskyard.planner.building import begin_volume
from diskyard.planner.clean import doom_abandoned
from diskyard.planner.volume_kind import VolumeKind
from tests.api.between import before_look, outcome
from tests.api.helpers import COMMIT_ONLY, SIZE, Rig, picture

ONE = (1, 0, SIZE)
AUTHOR = Author("test", "a test")

pytestmark = pytest.mark.embedded("what a process knows of a log")


def test_an_image_below_that_is_weak_no_more(rig: Rig) -> None:
    """Another host has made it a Snapshot again, and works on it for hours: the guest is started."""
    other, disk = rig.host("two"), rig.disk("a", ONE)
    snapshot = rig.yard.create_snapshot("a", disk)
    rig.yard.remove_image("a", snapshot, options=COMMIT_ONLY)
    theirs = other.service.connections.get("a")
    theirs.commit(
        lambda draft: draft.put_image(replace(draft.state.images[snapshot], visibility="strong")), AUTHOR
    )
    with theirs.work_on([snapshot]):
        assert rig.yard.prepare_image("a", disk).image_id == disk


def test_a_merge_whose_reader_is_another_by_now(rig: Rig) -> None:
    other, disk = rig.host("two"), rig.disk("a", ONE)
    snapshot = rig.yard.create_snapshot("a", disk)
    rig.yard.remove_image("a", snapshot, options=COMMIT_ONLY)
    rig.repository("a").state()
    other.create_snapshot("a", disk)
    with other.service.connections.get("a").work_on([disk]):
        assert run_fix(rig.yard.service.engine, rig.repository("a"), Merge(image_id=snapshot))
    rig.expect("a", disk, picture(SIZE, ONE))


def test_a_volume_that_nobody_makes_any_more(rig: Rig) -> None:
    other, disk = rig.host("two"), rig.disk("a", ONE)
    ids = new_ids()
    theirs = other.service.connections.get("a")
    rig.repository("a").commit(
        lambda draft: begin_volume(draft, ids, VolumeKind("raw"), image_id=disk, size_bytes=SIZE),
        AUTHOR,
    )
    theirs.commit(lambda draft: doom_abandoned(draft, ids.volume_id), AUTHOR)
    with theirs.work_on([disk]):
        assert run_fix(rig.yard.service.engine, rig.repository("a"), CleanVolume(volume_id=ids.volume_id))
    assert ids.volume_id not in rig.repository("a").state().volumes


def test_a_lease_that_is_needed_all_the_same(rig: Rig) -> None:
    other, disk = rig.host("two"), rig.disk("a", ONE)
    snapshot = rig.yard.create_snapshot("a", disk)
    rig.yard.remove_image("a", snapshot, options=COMMIT_ONLY)
    with other.service.connections.get("a").work_on([snapshot]):
        _, error = outcome(lambda: rig.yard.prepare_image("a", disk))
    assert isinstance(error, errors.LeaseHeld)


def test_a_repeated_copy_that_was_made_meanwhile(rig: Rig) -> None:
    """Before each look until it has the lease: its source may be a guest's by then; it answers the copy."""
    other, at = rig.host("two"), 0
    refused: list[errors.LeaseHeld] = []
    while not refused:
        at += 1
        disk, options = rig.disk("a", ONE), {**COMMIT_ONLY, "newImageId": new_uuid()}
        with before_look(rig.yard, at, partial(_copy_and_start, other, disk, options, refused)):
            assert rig.yard.copy_image("b", disk, options=options) == options["newImageId"]
    assert at > 2


def _copy_and_start(other: Diskyard, disk: str, options: Any, refused: list[errors.LeaseHeld]) -> None:
    try:
        other.copy_image("b", disk, options=options)
    except errors.LeaseHeld as error:
        refused.append(error)
    else:
        other.prepare_image("a", disk)
