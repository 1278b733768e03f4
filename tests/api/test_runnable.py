"""What check lists as runnable can be run, and is not listed again; else it is said what it waits for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from diskyard import KiB, MiB, errors
from diskyard.model.records import IMAGE_SIZE_LIMIT_BYTES
from diskyard.operations import sizes
from tests.api.helpers import (
    COMMIT_ONLY,
    SIZE,
    Rig,
    code_of,
    fixes,
    intercept,
    kill,
    picture,
    run,
    run_fix,
    settle,
)
from tests.live_qemu import LiveQemu

ONE, TWO, THREE = (1, 0, MiB), (2, MiB, MiB), (3, 2 * MiB, 64 * KiB)


@contextmanager
def attached_for_reading(rig: Rig, disk: str) -> Iterator[str]:
    rig.yard.prepare_image("a", disk, options={"read_only": True, "owner": "reader"})
    yield "attached on host one for reader"
    rig.yard.teardown_image("a", disk, options={"owner": "reader"})


@contextmanager
def written_by_a_stranger(rig: Rig, disk: str) -> Iterator[str]:
    with LiveQemu(rig.volume_path("a", disk), "raw"):
        yield "running QEMU"


def expect_waiting(rig: Rig, repo: str, kind: str, words: str) -> None:
    """It is listed, once, as waiting; all that is listed as runnable runs, and is not listed again."""
    (fix,) = fixes(rig.yard, repo, kind)
    assert not fix.runnable
    assert words in (fix.waits_for or "")
    ran = set()
    for other in fixes(rig.yard, repo):
        if other.runnable:
            run_fix(rig.yard, repo, other)
            ran.add(other.fix_id)
    assert not ran & {other.fix_id for other in fixes(rig.yard, repo) if other.runnable}


@pytest.mark.parametrize("keeps", [attached_for_reading, written_by_a_stranger])
def test_a_longer_disk(rig: Rig, keeps: Callable[[Rig, str], AbstractContextManager[str]]) -> None:
    disk = rig.raw_disk("a", ONE)
    path = rig.volume_path("a", disk)
    with keeps(rig, disk) as words:
        os.truncate(path, 2 * SIZE)
        expect_waiting(rig, "a", "clean", words)
    settle(rig.yard, "a")
    rig.expect("a", disk, picture(2 * SIZE, ONE))
    rig.clean_slate("a")


def test_an_extend_that_was_cut_under_a_stranger(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = rig.disk("a", ONE)
    with monkeypatch.context() as patch:
        intercept(patch, sizes, "grow", after=kill)
        assert code_of(lambda: rig.yard.extend_virtual_disk("a", disk, 2 * SIZE)) == "InternalError"
    with written_by_a_stranger(rig, disk) as words:
        expect_waiting(rig, "a", "clean", words)
    settle(rig.yard, "a")
    rig.expect("a", disk, picture(SIZE, ONE))


def test_a_disk_longer_than_one_can_be(rig: Rig) -> None:
    """Nothing but cutting it helps, and Diskyard does not cut what a guest may have written."""
    disk = rig.disk("a", ONE)
    yard = rig.yard
    yard.create_snapshot("a", disk)
    node = {"driver": "qcow2", "file": {"driver": "file", "filename": str(rig.volume_path("a", disk))}}
    run(
        "qemu-io",
        "-c",
        f"truncate {IMAGE_SIZE_LIMIT_BYTES + MiB}",
        "json:" + json.dumps({**node, "backing": None}),
    )
    expect_waiting(rig, "a", "clean", "longer than a disk can be")


def test_a_merge_over_a_volume_that_is_lost(rig: Rig) -> None:
    """Not one of the two that it is about: bytes that may be wrong are not written into what is right."""
    yard = rig.yard
    disk = rig.disk("a", ONE)
    first = yard.create_snapshot("a", disk)
    rig.write("a", disk, TWO)
    second = yard.create_snapshot("a", disk)
    rig.write("a", disk, THREE)
    path = rig.volume_path("a", first)
    aside = rig.folder / "aside"
    path.rename(aside)
    yard.remove_image("a", second, options=COMMIT_ONLY)
    expect_waiting(rig, "a", "merge", "missing")
    aside.rename(path)
    settle(yard, "a")
    rig.expect("a", disk, picture(SIZE, ONE, TWO, THREE))
    rig.clean_slate("a")


@pytest.mark.parametrize("kind", ["optimize", "mend"])
def test_what_reads_volumes_that_a_stranger_writes(rig: Rig, kind: str) -> None:
    """Of all of its source's volumes, not of the top alone."""
    yard = rig.yard
    disk = rig.disk("a", ONE)
    first = yard.create_snapshot("a", disk)
    rig.write("a", disk, TWO)
    second = yard.create_snapshot("a", disk)
    repo, image = "a", disk
    if kind == "optimize":
        yard.set_strategy("a", disk, "performance")
    else:
        repo, image = "b", yard.copy_image("b", second, options=COMMIT_ONLY)
    with written_by_a_stranger(rig, first) as words:
        expect_waiting(rig, repo, kind, words)
    settle(yard, "a", "b")
    rig.expect(repo, image, picture(SIZE, ONE, TWO))
    rig.clean_slate("a", "b")


def test_a_difference_to_a_base_that_a_stranger_writes(rig: Rig) -> None:
    """The base in the target is read too."""
    yard = rig.yard
    disk = rig.disk("b", ONE)
    base = yard.create_snapshot("b", disk)
    yard.copy_image("a", base)
    rig.wait()
    rig.write("b", disk, TWO)
    copy = yard.copy_image("a", disk, base, options=COMMIT_ONLY)
    with written_by_a_stranger(rig, base) as words:
        expect_waiting(rig, "a", "mend", words)
    settle(yard, "a", "b")
    rig.expect("a", copy, picture(SIZE, ONE, TWO))


@pytest.mark.parametrize("kind", ["optimize", "merge", "mend"])
def test_what_would_show_the_end_of_a_volume(rig: Rig, kind: str) -> None:
    """A frozen qcow2 volume that somebody made longer stands between, until it is cut off by force."""
    yard = rig.yard
    disk = rig.disk("a", ONE)
    yard.create_snapshot("a", disk)
    rig.write("a", disk, TWO)
    frozen = yard.create_snapshot("a", disk)
    yard.extend_virtual_disk("a", disk, 2 * SIZE)
    rig.write("a", disk, THREE)
    middle = yard.create_snapshot("a", disk)
    rig.write("a", disk, (4, SIZE, KiB))
    repo, image, wanted = "a", disk, picture(2 * SIZE, ONE, TWO, THREE, (4, SIZE, KiB))
    if kind == "optimize":
        yard.set_strategy("a", disk, "performance")
    elif kind == "merge":
        yard.remove_image("a", middle, options=COMMIT_ONLY)
    else:
        repo, image = "b", yard.copy_image("b", middle, options=COMMIT_ONLY)
        wanted = picture(2 * SIZE, ONE, TWO, THREE)
    _lengthen(rig.volume_path("a", frozen))
    (clean,) = fixes(yard, "a", "clean")
    expect_waiting(rig, repo, kind, "longer")
    yard.wait_for_task(yard.fix_storage_repository("a", clean, options={"force": True}).task_id, 60)
    settle(yard, "a", "b")
    rig.expect(repo, image, wanted)


def _lengthen(path: Path) -> None:
    node = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}, "backing": None}
    run("qemu-io", "-c", f"truncate {2 * SIZE}", "json:" + json.dumps(node))


def test_nothing_is_cut_off_by_force_under_a_writer(rig: Rig) -> None:
    """Who writes to a frozen volume goes on with what it has there."""
    yard = rig.yard
    disk = rig.raw_disk("a", ONE)
    frozen = yard.create_snapshot("a", disk)
    path = rig.volume_path("a", frozen)
    os.truncate(path, 2 * SIZE)
    (fix,) = fixes(yard, "a", "clean")
    with LiveQemu(path, "raw"), pytest.raises(errors.ImageInUse, match="running QEMU has"):
        yard.wait_for_task(yard.fix_storage_repository("a", fix, options={"force": True}).task_id, 60)
    assert path.stat().st_size == 2 * SIZE
