"""Freezing: a copy reads one moment of its source, however often it is resumed."""

from __future__ import annotations

from dataclasses import replace

from diskyard import errors
from diskyard.host.identity import new_uuid
from diskyard.log.log import Author
from diskyard.model.records import AnyHold, CopyHold, Image, entry_id
from diskyard.model.state import State
from diskyard.opened import Opened
from diskyard.operations.engine import seal
from diskyard.operations.writers import require_no_stranger
from diskyard.planner import change, switch
from diskyard.planner.common import virtual_disk
from diskyard.planner.create_disk import NewVolume
from diskyard.planner.switch import Switch, SwitchAgain


def switch_disk(opened: Opened, asked: Switch, author: Author) -> None:
    """Freeze a disk's bytes as an image, durable on return; the caller has that image's lease.

    A crash between the intent and the seal leaves a weak image and an overlay that is
    building, which check lists; the disk is as it was.
    """
    while not _switch_once(opened, asked, author):
        # Extended meanwhile. The next intent discards this one.
        asked = replace(asked, volume_id=new_uuid(), work_id=new_uuid())


def _switch_once(opened: Opened, asked: Switch, author: Author) -> bool:
    missing = opened.missing_below(opened.state(), asked.disk_id)
    require_no_stranger(opened, opened.state(), asked.disk_id)
    overlay = opened.commit(lambda draft: switch.begin(draft, asked, missing), author)
    if overlay is None:
        return True
    opened.make_empty(overlay)
    require_no_stranger(opened, opened.state(), asked.disk_id)
    try:
        seal(opened, lambda draft: switch.seal(draft, asked, missing), author)
    except SwitchAgain:
        return False
    return True


def freeze_disk(opened: Opened, disk_id: str, hold: AnyHold, author: Author) -> Image:
    """A held image with the disk's bytes of now; the disk can be used at once.

    From the cheapest: the freeze point that is there if nothing was written since; a
    clone, where the disk is one raw volume and storage can share its bytes; a switch.
    """
    state = opened.state()
    disk = virtual_disk(state, disk_id)
    require_no_stranger(opened, state, disk_id)  # it may have its tables of an overlay in its memory
    frozen = _hold_unwritten(opened, state, disk, hold, author)
    if frozen is None:
        frozen_id = new_uuid()
        asked = Switch(
            disk_id=disk_id,
            image_id=frozen_id,
            volume_id=new_uuid(),
            work_id=new_uuid(),
            now=opened.host.clock.now(),
            hold=hold,
        )
        with opened.work_on([frozen_id]):
            if _can_clone(opened, state, disk):
                _freeze_by_clone(opened, asked, disk.data_generation, author)
            else:
                switch_disk(opened, asked, author)
        frozen = opened.state().images[frozen_id]
    return frozen


def _hold_unwritten(opened: Opened, state: State, disk: Image, hold: AnyHold, author: Author) -> Image | None:
    found = switch.reusable_freeze_point(state, disk)
    if found is None or not opened.is_unwritten(found[1]):
        return None
    frozen, overlay = found
    held = opened.commit(
        lambda draft: switch.hold_again(draft, disk.id, frozen.id, overlay.id, disk.data_generation, hold),
        author,
    )
    return opened.state().images[frozen.id] if held else None


def _can_clone(opened: Opened, state: State, disk: Image) -> bool:
    if not opened.storage.capabilities.reflink or disk.volume_id is None:
        return False
    volume = state.volumes[disk.volume_id]
    return volume.format == "raw" and volume.parent_image_id is None


def _freeze_by_clone(opened: Opened, asked: Switch, generation: str, author: Author) -> None:
    """``generation``: of the disk's data before its bytes are shared."""
    missing = opened.missing_below(opened.state(), asked.disk_id)
    clone, source = opened.commit(lambda draft: switch.begin_clone(draft, asked, missing), author)
    opened.make(NewVolume(clone, source))
    require_no_stranger(opened, opened.state(), asked.disk_id)
    seal(
        opened,
        lambda draft: switch.seal_clone(draft, asked, source, generation, missing),
        author,
    )


def copy_hold(target: Opened, copy_id: str, work_id: str) -> CopyHold:
    """The hold of a copy, which names the very place and history that the copy is in.

    A marker is not enough: a copy of the target's bytes has it as well, and knows nothing of the copy.
    """
    known = target.log.newest_known()
    return CopyHold(
        target_marker=target.marker,
        copy_id=copy_id,
        work_id=work_id,
        target_place=target.storage.place_identity,
        target_entry=entry_id(known.version, known.nonce),
    )


def is_hold_of(hold: AnyHold, target: Opened, copy_id: str) -> bool:
    """Whether a hold is for this copy, in this very place."""
    return (
        isinstance(hold, CopyHold)
        and (hold.target_marker, hold.copy_id) == (target.marker, copy_id)
        and hold.target_place in ("", target.storage.place_identity)
    )


def hold_snapshot(home: Opened, image_id: str, hold: CopyHold, author: Author) -> None:
    """Hold a Snapshot for a copy, before the copy's record is written in the target.

    Where nothing can be written it is not held: see :func:`require_unchanged`.
    """
    if home.is_read_only:
        return
    missing = home.missing_below(home.state(), image_id)
    home.commit(lambda draft: switch.hold(draft, image_id, hold, missing), author)


def require_hold(
    home: Opened, image_id: str, hold: AnyHold, target: Opened, copy_id: str, author: Author
) -> None:
    """The look after publishing a copy: its hold must still stand before the caller is told.

    A cleaner could have released it in between only if this process had lost its lease.

    :raises diskyard.errors.LeaseHeld: it does not; the copy is taken back.
    """
    image = home.state().images.get(image_id)
    if image is not None and (hold in image.held_for or (home.is_read_only and image.is_strong)):
        return
    target.commit(lambda draft: change.remove(draft, copy_id), author)
    raise errors.LeaseHeld(
        f"The data that copy {copy_id} reads was released by another host meanwhile.",
        advice="The copy was taken back; copy the image again.",
        imageId=copy_id,
    )


def require_held(home: Opened, image_id: str, hold: AnyHold) -> None:
    """The look after reading an image: what was read is its bytes only if the hold stood all the time.

    A hold that was released never comes back: it names work of its own.

    :raises diskyard.errors.LeaseHeld: it does not stand: what was read must not be used.
    """
    image = home.state().images.get(image_id)
    home.log.require_whole()
    if image is None or hold not in image.held_for:
        raise errors.LeaseHeld(
            f"The data of image {image_id} was released by another host while it was read.",
            advice="What was read is not used. Run the fix again, or copy the image again.",
            imageId=image_id,
        )


def require_unchanged(home: Opened, seen: Image) -> None:
    """The look after reading an image where nothing can be written, and so nothing held.

    Who may write there, or a mount made writable in between, could have let its bytes change: only
    after an entry that shows here.

    :param seen: the image before it was read.
    :raises diskyard.errors.LeaseHeld: it is not as it was: what was read must not be used.
    """
    state = home.state()
    home.log.require_whole()
    image = state.images.get(seen.id)
    same = image is not None and (image.volume_id, image.data_generation, image.consumed_by) == (
        seen.volume_id,
        seen.data_generation,
        seen.consumed_by,
    )
    if not same or (image is not None and (not image.is_strong or state.writer_of(image.id) is not None)):
        raise errors.LeaseHeld(
            f"Image {seen.id} was changed while it was read from read-only storage.",
            advice="What was read is not used. Try again.",
            imageId=seen.id,
        )


def release_hold(home: Opened, image_id: str, hold: AnyHold, author: Author) -> bool:
    """End a hold; False if it is gone already, or nothing can be written: check lists it then."""
    if home.is_read_only:
        return False
    return home.commit(lambda draft: switch.release(draft, image_id, hold), author)
