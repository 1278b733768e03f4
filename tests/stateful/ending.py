"""How every story ends: all is fixed, nothing is left over, every image is what it must be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskyard.model.fix import Fix
from diskyard.repository.repository import volume_name

if TYPE_CHECKING:
    from tests.stateful.machine import ImageMachine

_ROUNDS = 60


def run_fix(machine: ImageMachine, host: int, repo: str, fix: Fix) -> None:
    """Run a fix to its end; only that it must wait is a way to fail."""
    from tests.stateful.machine import WAITS

    yard = machine.yards[host]
    task = yard.fix_storage_repository(repo, fix)
    assert yard.wait_for_tasks(timeout_s=120)
    task = yard.get_task(task.task_id)
    machine.seen_tasks.add(task.task_id)
    assert task.state == "done" or (task.error or {}).get("code") in WAITS, f"{fix} ended as {task}"


def settle(machine: ImageMachine) -> None:
    """Detach, fix until nothing is listed, and compare everything."""
    model = machine.model
    for name in model.names(attached=True):
        repo, image = model.find(name)
        assert image.attached_to is not None
        machine.yards[image.attached_to[0]].teardown_image(repo, image.id, {"owner": "vm"})
        image.attached_to = None
    fix_all(machine)
    # What still waits has a base that never came; taking it back must leave nothing.
    machine.look_at_statuses(0)
    while waiting := model.names(complete=False):
        for name in waiting:
            repo, image = model.find(name)
            if machine.remove_unless_awaited(1, repo, image.id):
                model.remove(repo, image)
            assert machine.yards[1].wait_for_tasks(timeout_s=120)
        assert len(model.names(complete=False)) < len(waiting), "what waits cannot be taken back"
    fix_all(machine)
    for host, repo in enumerate(model.images):
        left = machine.check(host, repo, deep=True)
        assert left == [], f"left in {repo}: {left}"
        _require_clean(machine, host, repo)
    machine.look_at_statuses(1)
    for name in model.names():
        repo, image = model.find(name)
        assert image.complete
        machine.compare(0, repo, image)


def fix_all(machine: ImageMachine) -> None:
    """Run whatever can be run, by the hosts in turn, until nothing can."""
    fixes: list[tuple[str, Fix]] = []
    for turn in range(_ROUNDS):
        fixes = [
            (repo, fix)
            for repo in machine.model.images
            for fix in machine.check(turn % 2, repo, deep=True)
            if fix.runnable
        ]
        if not fixes:
            return
        for repo, fix in fixes:
            run_fix(machine, turn % 2, repo, fix)
    raise AssertionError(f"fixes are listed again and again: {fixes}")


def _require_clean(machine: ImageMachine, host: int, repo: str) -> None:
    """No garbage: every volume is ready, named, there, and read by an image."""
    repository = machine.yards[host].service.connections.get(repo)
    state = repository.state()
    stored = {item.name for item in repository.storage.list_volumes()}
    assert stored == {volume_name(volume) for volume in state.volumes.values()}
    assert all(volume.state == "ready" for volume in state.volumes.values())
    assert all(state.images_on(key) for key in state.volumes)
    assert repository.storage.list_leftovers() == []
    assert not state.attachments
    for image in state.images.values():
        if not image.is_strong:
            assert len(state.dependents(image.id)) > 1 or image.held_for, f"weak {image.id} is left"
