"""What was true at one look is not relied on at the next: another host acts before each of them.

Whenever it does, a verb or fix ends with the right bytes, or with an error that is true. Nothing
is broken in these scenes: no image may be said to be, nothing is a defect, and no storage fails.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from diskyard import Diskyard, KiB, errors
from diskyard.testing.effort import Effort
from tests.api.between import before_look, outcome
from tests.api.helpers import COMMIT_ONLY, Rig, clean_up, fixes, graph, picture, run_fix, settle
from tests.conftest import Tally

SIZE = 256 * KiB
ONE = (1, 0, 64 * KiB)
TWO = (2, 64 * KiB, 64 * KiB)
THREE = (3, 128 * KiB, 512)
OTHER = (4, 0, 192 * KiB)
OLD, NOW, LATER = picture(SIZE, ONE), picture(SIZE, ONE, TWO), picture(SIZE, ONE, TWO, THREE)
TRIED_OF_EACH, MORE_OF_SOME, THOROUGH_ROUNDS = 2, 6, 8

#: True whatever the other host did: somebody works on it, uses it, or has removed it.
TRUE_ERRORS = {"LeaseHeld", "ImageInUse", "ImageNotFound"}


class Scene:
    """A disk of repository ``a`` whose bytes are known, and what another host may do to it.

    :ivar base: a Snapshot that the disk reads, which is a raw volume otherwise.
    """

    def __init__(self, rig: Rig, other: Diskyard, *, chain: bool) -> None:
        self.rig, self.yard, self.other = rig, rig.yard, other
        self.disk = rig.disk("a", ONE, size=SIZE)
        self.base = rig.yard.create_snapshot("a", self.disk) if chain else None
        rig.write("a", self.disk, TWO)
        self.more = [self.disk, self.base]

    def clean(self) -> None:
        clean_up(self.other, "a")()
        clean_up(self.other, "b")()

    def is_there(self, repo: str, image: str | None) -> bool:
        return image is not None and bool(self.yard.list_images(repo, image_ids=[image]).images)

    def end(self) -> None:
        """Run what is left to do, see that the disk is whole, and remove everything."""
        settle(self.other, "b", "a")
        if self.is_there("a", self.disk):
            assert self.rig.read("a", self.disk, yard=self.other) in self.disk_may_be
        for repo in ("a", "b"):
            for image in self.yard.list_images(repo).images:
                self.yard.remove_image(repo, image.image_id, options=COMMIT_ONLY)
        settle(self.other, "b", "a")
        for repo in ("a", "b"):
            assert not self.rig.repository(repo).state().images
        self.rig.clean_slate("a", "b")

    disk_may_be: tuple[bytes, ...] = (NOW, LATER)

    # -- what the other host does --------------------------------------------------------

    def snapshot(self) -> None:
        self.other.create_snapshot("a", self.disk)

    def there_and_back(self) -> None:
        """The disk goes on in an overlay and comes back from it."""
        made = self.other.create_snapshot("a", self.disk)
        self.other.remove_image("a", made, options=COMMIT_ONLY)
        self.clean()

    def merge(self) -> None:
        """What the disk reads becomes one with it."""
        if self.base is not None:
            self.other.remove_image("a", self.base, options=COMMIT_ONLY)
        self.clean()

    def merge_below(self) -> None:
        """The disk reads a Snapshot of now, and what that reads becomes one with it."""
        self.snapshot()
        self.merge()

    def write(self) -> None:
        self.rig.write("a", self.disk, THREE, yard=self.other)

    def copy(self) -> None:
        """A freeze point comes, and goes when the copy is whole."""
        self.other.copy_image("b", self.disk, options=COMMIT_ONLY)
        self.clean()

    def optimize(self) -> None:
        self.other.set_strategy("a", self.disk, "performance")
        self.clean()

    def remove(self) -> None:
        self.other.remove_image("a", self.disk, options=COMMIT_ONLY)
        self.clean()


ACTIONS = ("snapshot", "there_and_back", "merge", "merge_below", "write", "copy", "optimize", "remove")


# -- what the first host does: each answers with bytes, and those they may be ----------------

Made = tuple[bytes, tuple[bytes, ...]]


def a_copy(scene: Scene) -> Callable[[], Made]:
    copy = scene.yard.copy_image("b", scene.disk, options=COMMIT_ONLY)
    return lambda: (seen(scene, "b", copy), (NOW, LATER))


def a_copy_that_is_made(scene: Scene) -> Callable[[], Made]:
    copy = scene.yard.copy_image("b", scene.disk, options=COMMIT_ONLY)
    for fix in fixes(scene.yard, "b", "mend"):
        run_fix(scene.yard, "b", fix)
    assert scene.yard.get_image_status("b", copy).status != "broken"
    return lambda: (seen(scene, "b", copy), (NOW, LATER))


def a_copy_onto_it(scene: Scene) -> Callable[[], Made]:
    source = scene.rig.disk("b", OTHER, size=SIZE)
    copy = scene.yard.copy_image("a", source, scene.disk, options=COMMIT_ONLY)
    return lambda: (seen(scene, "a", copy), (picture(SIZE, OTHER),))


def a_copy_of_its_base(scene: Scene) -> Callable[[], Made]:
    assert scene.base is not None
    copy = scene.yard.copy_image("b", scene.base, options=COMMIT_ONLY)
    return lambda: (seen(scene, "b", copy), (OLD,))


def a_snapshot(scene: Scene) -> Callable[[], Made]:
    snapshot = scene.yard.create_snapshot("a", scene.disk)
    return lambda: (seen(scene, "a", snapshot), (NOW, LATER))


def a_disk_from_its_base(scene: Scene) -> Callable[[], Made]:
    disk = scene.yard.create_virtual_disk("a", SIZE, scene.base)
    return lambda: (seen(scene, "a", disk), (OLD,))


def a_disk_from_its_base_elsewhere(scene: Scene) -> Callable[[], Made]:
    disk = scene.yard.create_virtual_disk("b", SIZE, scene.base, options=COMMIT_ONLY)
    return lambda: (seen(scene, "b", disk), (OLD,))


def a_revert(scene: Scene) -> Callable[[], Made]:
    assert scene.base is not None
    # Its end is not known to who is answered with an error.
    scene.disk_may_be = (NOW, LATER, OLD, picture(SIZE, ONE, THREE))
    scene.yard.revert_virtual_disk("a", scene.disk, scene.base, options=COMMIT_ONLY)
    return lambda: (seen(scene, "a", scene.disk), (OLD, picture(SIZE, ONE, THREE)))


def an_export(scene: Scene) -> Callable[[], Made]:
    path = scene.rig.folder / f"{scene.disk}.raw"
    task = scene.yard.export_image("a", scene.disk, str(path), "raw")
    scene.yard.wait_for_task(task.task_id, 60)
    return lambda: (path.read_bytes(), (NOW, LATER))


def an_attachment(scene: Scene) -> Callable[[], Made]:
    owner = {"owner": "first"}
    attached = scene.yard.prepare_image("a", scene.disk, options={"read_only": True, **owner})
    data = scene.rig.convert(graph(attached))
    scene.yard.teardown_image("a", scene.disk, options=owner)
    return lambda: (data, (NOW, LATER))


def an_optimize(scene: Scene) -> Callable[[], Made]:
    scene.yard.set_strategy("a", scene.disk, "performance")
    for fix in fixes(scene.yard, "a", "optimize"):
        run_fix(scene.yard, "a", fix)
    return lambda: (seen(scene, "a", scene.disk), (NOW, LATER))


def a_merge(scene: Scene) -> Callable[[], Made]:
    assert scene.base is not None
    with contextlib.suppress(errors.ImageNotFound):
        scene.yard.remove_image("a", scene.base, options=COMMIT_ONLY)
    for fix in fixes(scene.yard, "a", "merge"):
        run_fix(scene.yard, "a", fix)
    return lambda: (seen(scene, "a", scene.disk), (NOW, LATER))


def seen(scene: Scene, repo: str, image: str) -> bytes:
    settle(scene.other, "b", "a")
    return scene.rig.read(repo, image, yard=scene.other)


WORKS = {
    found.__name__: found
    for found in (
        a_copy,
        a_copy_that_is_made,
        a_copy_onto_it,
        a_copy_of_its_base,
        a_snapshot,
        a_disk_from_its_base,
        a_disk_from_its_base_elsewhere,
        a_revert,
        an_export,
        an_attachment,
        an_optimize,
        a_merge,
    )
}
NEEDS_BASE = {
    "a_copy_of_its_base",
    "a_disk_from_its_base",
    "a_disk_from_its_base_elsewhere",
    "a_revert",
    "a_merge",
}


#: What the work made is removed with the disk.
GOES = {("remove", work) for work in ("a_revert", "an_optimize", "a_merge")}

#: More of these: there wrong bytes, a defect, or a false word once came of it.
ALWAYS = {
    ("snapshot", "a_copy"),
    ("snapshot", "an_export"),
    ("merge_below", "a_copy"),
    ("merge", "a_copy_onto_it"),
    ("remove", "a_copy_onto_it"),
}


def sweep(rig: Rig, work: str, *, chain: bool, effort: Effort) -> int:
    """Do the work again and again, with something done before one of its looks: a sample of all there are."""
    other = rig.host("two")
    scene = Scene(rig, other, chain=chain)
    with before_look(scene.yard, 0, lambda: None) as looks:
        WORKS[work](scene)
    scene.end()
    every = [(action, at) for action in ACTIONS for at in range(1, looks.seen + 1)]
    points = effort.sample(every, TRIED_OF_EACH, work, chain, rounds=THOROUGH_ROUNDS)
    always = [(action, at) for action, at in every if (action, work) in ALWAYS]
    points += effort.sample(always, MORE_OF_SOME, work, chain, "always", rounds=THOROUGH_ROUNDS)
    points = list(dict.fromkeys(points))
    for action, at in points:
        scene = Scene(rig, other, chain=chain)

        def act() -> None:
            with contextlib.suppress(errors.LeaseHeld, errors.ImageInUse, errors.ImageNotFound):
                getattr(scene, action)()  # noqa: B023 - within the round

        with before_look(scene.yard, at, act):
            made, error = outcome(lambda: WORKS[work](scene))  # noqa: B023 - within the round
        assert error is None or error.code in TRUE_ERRORS, (action, at, error.code, error.message)
        if made is not None and (action, work) not in GOES:
            found, wanted = made()
            assert found in wanted, (action, at, found[:8])
        scene.end()
    return len(points)


@pytest.mark.parametrize("work", WORKS)
def test_on_a_chain(rig: Rig, effort: Effort, tally: Tally, work: str) -> None:
    tally("between looks", runs=sweep(rig, work, chain=True, effort=effort))


@pytest.mark.parametrize("work", [name for name in WORKS if name not in NEEDS_BASE])
def test_on_a_raw_volume_that_can_be_cloned(reflink: Rig, effort: Effort, tally: Tally, work: str) -> None:
    tally("between looks", runs=sweep(reflink, work, chain=False, effort=effort))


@pytest.mark.parametrize("work", sorted(NEEDS_BASE))
def test_on_a_base_that_can_be_cloned(reflink: Rig, effort: Effort, tally: Tally, work: str) -> None:
    tally("between looks", runs=sweep(reflink, work, chain=True, effort=effort))
