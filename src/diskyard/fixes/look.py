"""One look at a repository's storage, log and neighbours, for ``find_fixes`` to judge."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from diskyard import errors
from diskyard.fixes.importing import import_waits_for
from diskyard.fixes.judge import (
    FoundSource,
    allocated_of,
    find_source,
    judge_holds,
    waits_for_base,
    why_not_read,
)
from diskyard.foreign import foreign_files, snapshots_wait_for
from diskyard.host import provably_gone_host
from diskyard.log.log import Author
from diskyard.log.twins import look_at_twins
from diskyard.model.chains import Chains
from diskyard.model.courtesy import give_way
from diskyard.model.fix import CleanTwin
from diskyard.model.records import AnyHold, FileSource, Image, Volume
from diskyard.model.state import State
from diskyard.model.status import CHAIN_DEPTH_LIMIT, merge_dependent, why_broken
from diskyard.model.volume_name import VolumeName
from diskyard.mover.inspect import check_volume
from diskyard.opened import Opened, volume_name
from diskyard.operations.engine import Engine
from diskyard.operations.writers import has_stranger, is_written, why_unasked
from diskyard.planner.look import Look, SourceView, TwinFound
from diskyard.planner.mend import needs_restore, note_damage, users_of
from diskyard.planner.same import why_another
from diskyard.planner.sizes import size_lease
from diskyard.repositories.interface import StoredVolume
from diskyard.settled import stored_by_id
from diskyard.volume_files import opening


def look(engine: Engine, opened: Opened, *, deep: bool, places: list[Opened] | None) -> Look:
    """Look at everything; the storage is listed before the log is read, in that order.

    :raises diskyard.errors.RepositoryUnavailable: the storage does not show its log.
    """
    opened.state()
    engine.asked_imports.forget_over(opened)
    listed = opened.storage.list_volumes()
    leftovers = opened.storage.list_leftovers()
    progress = opened.storage.progress_image_ids()
    state = opened.state().whole()
    if deep and opened.log.read_only_because() is None:
        _look_into_volumes(engine, opened, state)
        state = opened.state().whole()
    by_id = stored_by_id(state, listed)
    allocated = {key: item.allocated_bytes for key, item in by_id.items()}
    unnamed = [item for item in listed if by_id.get(item.name.volume_id) is not item]
    missing = _missing(opened, state, by_id)
    foreign = foreign_files(opened, state)
    over, unknown = _holds(engine, state)
    longer = _longer(opened, state, by_id, missing)
    locked = _locked(opened, state, progress, longer)
    gone = frozenset(
        key
        for key, attachment in state.attachments.items()
        if provably_gone_host(attachment.host, engine.host.identity)
    )
    written, unasked = _written(opened, state, gone, [item.name for item in unnamed], longer, missing)
    return Look(
        state=state,
        capabilities=opened.storage.capabilities,
        read_only=opened.log.read_only_because(),
        stored={item.name: item.allocated_bytes for item in unnamed},
        made_here=frozenset(item.name for item in unnamed if opened.log.has_entry(item.name.named_by)),
        allocated=allocated,
        missing=missing,
        leftovers={item.name: item.allocated_bytes for item in leftovers},
        foreign={found.name: found.overlay_of for found in foreign},
        snapshotted={
            volume.id: snapshots_wait_for(opened, volume)
            for volume in state.volumes.values()
            # Their headers were read a moment ago, to tell what is missing.
            if volume.id in opened.remembered.snapshotted and volume.id not in missing
        },
        progress=tuple(progress),
        locked=locked,
        written=written,
        unasked=unasked,
        gone_attachments=gone,
        holds_over=tuple(over),
        holds_unknown=tuple(unknown),
        twins=tuple(_twins(opened, state, deep=deep)),
        stray=opened.log.stray(),
        longer=longer,
        sources=_sources(engine, opened, state, missing, allocated, places),
        differing=_differing(engine, opened, state),
        workers=_workers(opened, [image_id for image_id in progress if image_id in locked]),
    )


def _missing(opened: Opened, state: State, listed: Mapping[str, StoredVolume]) -> frozenset[str]:
    """Volumes named ready that are not on the storage whole; each is looked for once more.

    One that was listed as absent may have been made between the listing and the reading; one that is
    absent now may have been merged into another, and deleted, since the state was read.
    """
    missing = [
        volume.id
        for volume in state.volumes.values()
        if opened.is_unreadable(volume, listed.get(volume.id), read_again=True)
        and opened.is_unreadable(volume, opened.stored(volume), read_again=True)
    ]
    newest = opened.state().volumes if missing else state.volumes
    return frozenset(key for key in missing if key in newest and newest[key].state == "ready")


def _longer(
    opened: Opened, state: State, listed: Mapping[str, StoredVolume], missing: Collection[str]
) -> dict[str, int]:
    """Volumes that are longer than their records; of those that a writer has open nobody knows yet."""
    found = {}
    for volume in state.volumes.values():
        give_way()
        writers = (state.attachments[key] for key in state.attachments_naming(volume.id))
        if volume.state != "ready" or volume.id in missing:
            continue
        if any(attachment.mode == "read_write" for attachment in writers):
            continue
        longer_bytes = opened.longer_bytes(volume, listed.get(volume.id), as_read=True)
        if longer_bytes is not None:
            found[volume.id] = longer_bytes
    return found


def _locked(opened: Opened, state: State, progress: list[str], longer: Collection[str]) -> frozenset[str]:
    """Of the images and volumes that a fix could be listed for, those being worked on."""
    candidates = set(progress)
    for volume in state.volumes.values():
        if volume.extending is not None or volume.id in longer:
            candidates |= {size_lease(image_id) for image_id in state.images_on(volume.id)}
    for volume_id in state.unready:
        volume = state.volumes[volume_id]
        if volume.state == "doomed":
            candidates.add(volume.id)
        elif volume.building is not None:
            candidates.add(volume.building.image_id)
    for image in state.images.values():
        if image.pending is not None or image.strategy == "performance":
            candidates.add(image.id)
        dependent = None if image.is_strong else merge_dependent(state, image)
        if dependent is not None:
            candidates |= {image.id, *state.images_on(dependent.id)}
    return opened.locked_among(candidates)


def _written(
    opened: Opened,
    state: State,
    gone_attachments: Iterable[str],
    unnamed: Iterable[VolumeName],
    longer: Iterable[str],
    missing: Collection[str],
) -> tuple[frozenset[str], dict[str, str]]:
    """What strangers write to, of what a fix could be listed for, and what cannot be asked: as in a Look."""
    of_work = set(longer)
    of_work.update(volume.id for volume in state.volumes.values() if volume.extending is not None)
    chains = Chains(state, missing)
    for image in state.images.values():
        dependent = None if image.is_strong else merge_dependent(state, image)
        if dependent is not None:
            of_work |= {dependent.id, str(image.volume_id)}
        if image.strategy == "performance" or chains.lasting_depth(image) > CHAIN_DEPTH_LIMIT:
            of_work.update(volume.id for _, volume in chains.links(image))  # an optimize reads all of it
    ended = {key for attachment in gone_attachments for key in state.attachments[attachment].volume_ids}
    unexplained = ended.union(state.unready)  # by any attachment, or lease
    asked = {key: volume_name(state.volumes[key]) for key in of_work | unexplained}
    asked |= {str(name): name for name in unnamed}
    found, unasked = set(), {}
    for key, name in asked.items():
        why = why_unasked(opened, name)
        if why is not None:
            unasked[key] = why
        elif key in of_work - unexplained:
            if has_stranger(opened, state.volumes[key], wait_s=0):
                found.add(key)
        elif is_written(opened, name):
            found.add(key)
    return frozenset(found), unasked


def _workers(opened: Opened, image_ids: list[str]) -> dict[str, str]:
    """Who works on images, as far as their progress tells."""
    found = {}
    for image_id in image_ids:
        seen = opened.progress(image_id)
        if seen is not None:
            found[image_id] = seen.host.host_id
    return found


def _holds(engine: Engine, state: State) -> tuple[list[tuple[str, AnyHold]], list[tuple[str, AnyHold, str]]]:
    over: list[tuple[str, AnyHold]] = []
    unknown: list[tuple[str, AnyHold, str]] = []
    holds = [(image_id, hold) for image_id in state.held for hold in state.images[image_id].held_for]
    judged = judge_holds(engine.connections, state, [hold for _, hold in holds])
    for image_id, hold in holds:
        ended, why_unknown = judged[hold]
        if ended:
            over.append((image_id, hold))
        elif why_unknown is not None:
            unknown.append((image_id, hold, why_unknown))
    return over, unknown


def _twins(opened: Opened, state: State, *, deep: bool) -> Iterator[TwinFound]:
    """Objects with a bad copy: those that reading needs, or with ``deep`` all that are kept."""
    storage = opened.storage
    checkpoints, entries = sorted(storage.numbers("checkpoint")), sorted(storage.numbers("entry"))
    first = 0 if deep or not checkpoints else checkpoints[-1]
    if opened.log.damage is not None:
        yield TwinFound(CleanTwin(kind="entry", number=state.version + 1), opened.log.damage)
    for number in checkpoints if deep else checkpoints[-1:]:
        if look_at_twins(storage, opened.log, "checkpoint", number, records=deep) is not None:
            # Up to the newest entry its state is known, and from then on nothing tells it.
            waits_for = None if number <= state.version else "neither replica is whole, nor are its entries"
            yield TwinFound(CleanTwin(kind="checkpoint", number=number), waits_for)
    for number in entries:
        if not first <= number <= state.version:
            continue
        trouble = look_at_twins(storage, opened.log, "entry", number)
        if trouble is not None and trouble.whole is not None:
            yield TwinFound(CleanTwin(kind="entry", number=number))
        elif trouble is not None and checkpoints and number >= checkpoints[0]:
            # What is below every checkpoint nobody reads: a late writer may have put it there.
            waits_for = "neither replica is whole; a checkpoint has its result"
            yield TwinFound(CleanTwin(kind="entry", number=number), waits_for)


def _sources(
    engine: Engine,
    opened: Opened,
    state: State,
    missing: frozenset[str],
    allocated: Mapping[str, int],
    places: list[Opened] | None,
) -> dict[str, SourceView]:
    views = {}
    for image in state.images.values():
        if (image.is_strong and image.pending is not None) or needs_restore(state, image, missing):
            views[image.id] = _source_view(engine, opened, state, image, missing, places)
    return views


def _differing(engine: Engine, opened: Opened, state: State) -> dict[str, str]:
    """Snapshots that another connected repository has under the same id with other bytes."""
    found = {}
    for place in engine.connections.places():
        if place.marker == opened.marker:
            continue
        try:
            others = place.state().images
        except errors.DiskyardError:
            continue  # what it has is looked at when it answers
        for image in state.images.values():
            other = others.get(image.id) if image.is_strong and image.kind == "snapshot" else None
            if other is not None and other.is_strong and (why := why_another(image, other)) is not None:
                found[image.id] = f"repository {place.repo_id} has another image under this id ({why})"
    return found


def _source_view(
    engine: Engine,
    opened: Opened,
    state: State,
    image: Image,
    missing: frozenset[str],
    places: list[Opened] | None,
) -> SourceView:
    waits_for = waits_for_base(opened, state, image)
    if image.pending is not None and isinstance(image.pending.source, FileSource):
        source = image.pending.source
        return SourceView(waits_for or import_waits_for(engine, opened, image, source), image.size_bytes)
    if image.pending is not None or _parent_is_whole(state, image, missing):
        waits_for = waits_for or why_not_read(opened, state, image, own=1)
    found = find_source(engine.connections, opened, image, places)
    if not isinstance(found, FoundSource):
        return SourceView(waits_for or found.told(), None)
    waits_for = waits_for or why_not_read(found.opened, found.state, found.image)
    allocated = {
        volume.id: 0 if (stored := found.opened.stored(volume)) is None else stored.allocated_bytes
        for _, volume in found.state.chain(found.image)
    }
    return SourceView(waits_for, allocated_of(found.opened, found.state, found.image, allocated))


def _parent_is_whole(state: State, image: Image, missing: frozenset[str]) -> bool:
    """Whether a restoration writes the difference to what the lost volume reads, and so reads that too."""
    volume = state.volumes.get(image.volume_id or "")
    parent = None if volume is None else state.images.get(volume.parent_image_id or "")
    return parent is not None and why_broken(state, parent, missing) is None


def _look_into_volumes(engine: Engine, opened: Opened, state: State) -> None:
    """Read every ready volume's own metadata, and note in its record what is wrong with it.

    Volumes that a guest may be writing to are left out: their metadata changes under us. No lock is
    taken that would keep a guest from one that it is given meanwhile; what was seen of that one says nothing.
    """
    author: Author = engine.author("checkStorageRepository")
    for volume in state.volumes.values():
        before = opened.stored(volume)
        if before is None:
            continue  # missing: found without a note
        if volume.state != "ready" or _may_change(opened, volume):
            continue
        try:
            with opening(opened, [volume]) as (layer,):
                damage = check_volume(engine.host, replace(layer, shared=True))
        except errors.UnsafeImage:
            continue  # it has other names too: who opens it is told, and nothing is known of its bytes
        except errors.ImageBroken as error:
            damage = error.message
        except errors.LeaseHeld:
            continue  # a job of QEMU's is at work in it
        if damage != volume.damage and not _has_changed(opened, volume, before):
            users = users_of(state, volume)
            opened.commit(partial(note_damage, was=volume, users=users, damage=damage), author)


def _may_change(opened: Opened, volume: Volume) -> bool:
    """Whether somebody may be writing to a volume now, be it a guest that nobody told of."""
    state = opened.state()
    writers = (state.attachments[key] for key in state.attachments_naming(volume.id))
    if any(attachment.mode == "read_write" for attachment in writers):
        return True
    if any(opened.is_locked(key) for key in state.images_on(volume.id)):
        return True
    name = volume_name(volume)
    return why_unasked(opened, name) is not None or is_written(opened, name)


def _has_changed(opened: Opened, volume: Volume, before: StoredVolume) -> bool:
    """Whether a volume may have been written to since; who came and has gone left its mark."""
    now = opened.stored(volume)
    return now is None or now.stamp != before.stamp or _may_change(opened, volume)
