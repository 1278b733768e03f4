"""What each entry of a log changes in images for callers; for the stream of events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

from diskyard.model.capabilities import Capabilities
from diskyard.model.chains import Chains
from diskyard.model.options import wire_name
from diskyard.model.records import ImageKind, TrackHold
from diskyard.model.state import State, awaited_base
from diskyard.model.status import Status, merge_dependent
from diskyard.model.transaction import Changes, Entry


class ImageEvent(msgspec.Struct, frozen=True, kw_only=True, rename=wire_name):
    """An image that verbs return has changed.

    :param status: according to the log, without the storage. None if the image was removed.
    :param entry: the number of the entry. If entries were skipped, it is the last one's, and ``verb`` and
        ``host_id`` are not known.
    :param verb: the verb or type of fix that changed the image.
    """

    repository_id: str
    image_id: str
    change: Literal["created", "changed", "removed"]
    status: Status | None
    kind: ImageKind
    entry: int
    verb: str | None
    host_id: str | None


def image_events(
    repository_id: str, capabilities: Capabilities, entry: Entry | None, before: State, after: State
) -> list[ImageEvent]:
    """The images that verbs return and whose record or status an entry has changed.

    :param entry: the entry between the two states. None if entries were skipped: then all images are
        compared, which takes long if there are many.
    """
    verbs = _verbs(entry, before, after)
    looks = [(state, Chains(state), _trackers(state, verbs)) for state in (before, after)]
    events = []
    for image_id, verb in verbs.items():
        was, now = (_seen(*look, image_id, capabilities) for look in looks)
        if was == now:
            continue
        image = before.images[image_id] if now is None else after.images[image_id]
        events.append(
            ImageEvent(
                repository_id=repository_id,
                image_id=image_id,
                change="created" if was is None else "removed" if now is None else "changed",
                status=None if now is None else now[0],
                kind=image.kind,
                entry=after.version,
                verb=verb,
                host_id=None if entry is None else entry.host.host_id,
            )
        )
    return events


_Seen = tuple[Status, Any]


def _seen(
    state: State, chains: Chains, trackers: dict[str, list[str]], image_id: str, capabilities: Capabilities
) -> _Seen | None:
    """The status of an image and everything else that callers see of it, according to the log."""
    image = state.images.get(image_id)
    if image is None or not image.is_strong:
        return None
    return chains.status(image, capabilities), (
        image.kind,
        image.size_bytes,
        image.strategy,
        image.created_at,
        image.captured_at,
        image.user_data,
        image.revision,
        image.last_error,
        [(found.id, found.mode) for found in state.attachments_of(image_id)],
        trackers.get(image_id),
    )


def _trackers(state: State, image_ids: Iterable[str]) -> dict[str, list[str]]:
    """By disk, the copies with these ids since which the disk's changes are tracked."""
    found: dict[str, list[str]] = {}
    for image_id in sorted(image_id for image_id in image_ids if image_id in state.held):
        for hold in state.images[image_id].held_for:
            if isinstance(hold, TrackHold):
                found.setdefault(hold.disk_id, []).append(hold.copy_id)
    return {disk_id: sorted(copy_ids) for disk_id, copy_ids in found.items()}


# -- which images to compare ------------------------------------------------------------


def _verbs(entry: Entry | None, before: State, after: State) -> dict[str, str | None]:
    """The images that an entry may have changed for callers, each with the verb that changed it."""
    if entry is None:
        return {image_id: None for state in (before, after) for image_id in state.images}
    found: dict[str, str | None] = {}
    for part in entry.parts():
        for image_id in _affected(part.changes, before, after):
            found.setdefault(image_id, part.verb)
    for part in entry.parts():
        # An image is named by one part alone, though other parts may affect it.
        found.update(dict.fromkeys(_named(part.changes, before), part.verb))
    return found


def _named(changes: Changes, before: State) -> Iterator[str]:
    """The images whose record or attachments are changed."""
    for image in changes.put_images:
        yield image.id
    yield from changes.remove_images
    for attachment in changes.put_attachments:
        yield attachment.image_id
    for attachment_id in changes.remove_attachments:
        yield before.attachments[attachment_id].image_id


def _affected(changes: Changes, before: State, after: State) -> dict[str, None]:
    """The images that the changes name, those whose volumes read these, and the disks that track them."""
    found = dict.fromkeys(_named(changes, before))
    volumes = {volume.id: None for volume in changes.put_volumes} | dict.fromkeys(changes.remove_volumes)
    bases: dict[str, None] = {}
    for state in (before, after):
        for image_id in found:
            image = state.images.get(image_id)
            if image is not None and image.volume_id is not None:
                volumes[image.volume_id] = None
            if image is not None and (base_id := awaited_base(image)) is not None:
                bases[base_id] = None  # it cannot be merged while a copy waits for it
    links = {image_id: None for state in (before, after) for image_id in _links(state, volumes)} | bases
    changed = [key for key in (*found, *links) if _link(before, key) != _link(after, key)]
    for volume_id in volumes:
        if _volume(before, volume_id) != _volume(after, volume_id):
            changed += [*before.images_on(volume_id), *after.images_on(volume_id)]
    found.update(dict.fromkeys(changed))
    while changed:
        image_id = changed.pop()
        for state in (before, after):
            for volume_id in state.dependents(image_id):
                readers = [key for key in state.images_on(volume_id) if key not in found]
                found.update(dict.fromkeys(readers))
                changed += readers
    for state in (before, after):
        found.update(dict.fromkeys(_trackers(state, _named(changes, before))))
    return found


def _links(state: State, volume_ids: Iterable[str]) -> Iterator[str]:
    """The images on some volumes, and the images that these volumes read."""
    for volume_id in volume_ids:
        yield from state.images_on(volume_id)
        volume = state.volumes.get(volume_id)
        if volume is not None and volume.parent_image_id is not None:
            yield volume.parent_image_id


def _link(state: State, image_id: str) -> object:
    """What matters of an image to the status of the images that read it."""
    image = state.images.get(image_id)
    if image is None:
        return None
    return image.pending is None, image.volume_id, merge_dependent(state, image) is None


def _volume(state: State, volume_id: str) -> object:
    """What matters of a volume to the status of the images that read it."""
    volume = state.volumes.get(volume_id)
    if volume is None:
        return None
    return volume.state, volume.damage, volume.parent_image_id, volume.format, volume.preallocated
