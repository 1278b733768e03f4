"""A guest is started again with the graph that it was first given, whatever became of its disk since."""

from __future__ import annotations

import random

from diskyard import errors
from diskyard.service import Service, call
from diskyard.testing.live_runs import LiveRun
from diskyard.testing.running_guest import StorageDaemonGuest, judge
from diskyard.testing.scenarios.live import guest_folder, make_known
from diskyard.testing.world import PLACES

_MORE_WRITES = 3


def start_as_before(run: LiveRun) -> bool:
    """Start another guest with the first graph, tell Diskyard of it, and return whether it is refused.

    :param run: its guest has ended.
    """
    run.guest = StorageDaemonGuest(
        guest_folder(run.world), [run.first_graph], after=run.guest.acknowledged()
    ).__enter__()
    run.guest.wait_for(_MORE_WRITES)
    service = run.service()
    try:
        make_known(run.world, service)
    except errors.ImageInUse:
        return True
    finally:
        service.close()
    return False


def judge_refused(run: LiveRun, chance: random.Random) -> int:
    """End a guest that was refused, and fix all. What it may have spoilt is broken, all else is as it was.

    :returns: how many images are broken: at least the disk.
    """
    run.guest.kill()
    world, service = run.world, run.service()
    run.tear_down(service)
    world.fix_all([service], chance)
    broken = {key for key in _images(service) if not _is_right(run, service, key)}
    assert ("a", world.names["d"]) in broken, "the disk reads what a guest wrote beside the log"
    service.close()
    return len(broken)


def _images(service: Service) -> list[tuple[str, str]]:
    return [
        (place, image.id)
        for place in PLACES
        for image in service.connections.get(place).state().images.values()
        if image.is_strong
    ]


def _is_right(run: LiveRun, service: Service, key: tuple[str, str]) -> bool:
    """Whether an image can be read. Then it has its bytes, or those of the guest's disk at one moment."""
    place, image_id = key
    asked = {"repositoryId": place, "imageId": image_id}
    if call(service, "getImageStatus", asked)["status"] == "broken":
        return False
    data = run.world.read(service, place, image_id)
    if key in run.world.images and key != ("a", run.world.names["d"]):
        assert data == run.world.images[key], f"the bytes of {image_id} in {place}"
    else:
        judge(data, 0)
    return True
