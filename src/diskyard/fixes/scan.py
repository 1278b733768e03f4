"""One scan of a repository's storage and log, and of other repositories, for ``find_fixes`` to judge."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from diskyard import errors
from diskyard.fixes.bases import waits_for_base
from diskyard.fixes.importing import import_waits_for
from diskyard.fixes.judge import (
    FoundSource,
    allocated_of,
    find_source,
    judge_holds,
    why_not_read,
)
from diskyard.host import provably_gone_host
from diskyard.log.log import Author
from diskyard.log.replicas import look_at_replicas
from diskyard.model.chains import Chains
from diskyard.model.courtesy import give_way
from diskyard.model.fix import CleanReplica
from diskyard.model.records import AnyHold, FileSource, Image, Volume
from diskyard.model.state import State
from diskyard.model.status import CHAIN_DEPTH_LIMIT, merge_dependent, why_broken
from diskyard.model.volume_name import VolumeName
from diskyard.mover.qemu.inspect import check_volume
from diskyard.operations.engine import Engine
from diskyard.operations.guests import why_not_reachable
from diskyard.operations.writers import has_stranger, is_written, why_unasked
from diskyard.planner.mend import needs_restore, note_damage, users_of
from diskyard.planner.same import why_another
from diskyard.planner.scan import ReplicaFound, Scan, SourceView
from diskyard.planner.sizes import size_lease
from diskyard.repository.foreign import foreign_files, snapshots_wait_for
from diskyard.repository.repository import Repository, volume_name
from diskyard.repository.settled import stored_by_id
from diskyard.repository.volume_files import opening
from diskyard.storage.interface import StoredVolume


def scan(engine: Engine, repo: Repository, *, deep: bool, participating: list[Repository] | None) -> Scan:
    """Scan everything. The storage is listed first, and the log is read after that.

    :param deep: also read every volume's own metadata, and all replicas of the log.
    :param participating: where mends look for sources; None for all that are connected.
    :raises diskyard.errors.RepositoryUnavailable: the storage does not show its log.
    """
    repo.state()
    engine.asked_imports.forget_over(repo)
    engine.known_guests.forget_ended(repo)
    listed = repo.storage.list_volumes()
    leftovers = repo.storage.list_leftovers()
    progress = repo.storage.progress_image_ids()
    state = repo.state().whole()
    if deep and repo.log.read_only_because() is None:
        _look_into_volumes(engine, repo, state)
        state = repo.state().whole()
    by_id = stored_by_id(state, listed)
    allocated = {key: item.allocated_bytes for key, item in by_id.items()}
    unnamed = [item for item in listed if by_id.get(item.name.volume_id) is not item]
    missing = _missing(repo, state, by_id)
    foreign = foreign_files(repo, state)
    over, unknown = _holds(engine, state)
    longer = _longer(repo, state, by_id, missing)
    locked = _locked(repo, state, progress, longer)
    gone = frozenset(
        key
        for key, attachment in state.attachments.items()
        if provably_gone_host(attachment.host, engine.host.identity)
    )
    written, unasked = _written(repo, state, gone, [item.name for item in unnamed], longer, missing)
    return Scan(
        state=state,
        capabilities=repo.storage.capabilities,
        read_only=repo.log.read_only_because(),
        stored={item.name: item.allocated_bytes for item in unnamed},
        made_here=frozenset(item.name for item in unnamed if repo.log.has_entry(item.name.named_by)),
        allocated=allocated,
        missing=missing,
        leftovers={item.name: item.allocated_bytes for item in leftovers},
        foreign={found.name: found.overlay_of for found in foreign},
        snapshotted={
            volume.id: snapshots_wait_for(repo, volume)
            for volume in state.volumes.values()
            # Their headers were read a moment ago, when missing volumes were looked for.
            if volume.id in repo.remembered.snapshotted and volume.id not in missing
        },
        progress=tuple(progress),
        locked=locked,
        written=written,
        unasked=unasked,
        gone_attachments=gone,
        switching=_switching(engine, repo, state),
        holds_over=tuple(over),
        holds_unknown=tuple(unknown),
        replicas=tuple(_replicas(repo, state, deep=deep)),
        stray=repo.log.stray(),
        longer=longer,
        sources=_sources(engine, repo, state, missing, allocated, participating),
        differing=_differing(engine, repo, state),
        workers=_workers(repo, [image_id for image_id in progress if image_id in locked]),
    )


def _switching(engine: Engine, repo: Repository, state: State) -> dict[str, str | None]:
    """The guests that are being moved, each with why that cannot be ended from here."""
    return {
        key: why_not_reachable(engine, repo, attachment)
        for key, attachment in state.attachments.items()
        if attachment.switching is not None
    }


def _missing(repo: Repository, state: State, listed: Mapping[str, StoredVolume]) -> frozenset[str]:
    """The volumes that are recorded as ready, and are not on the storage whole. Each is looked for twice.

    A volume that was not listed may have been made between the listing and the reading of the log. A volume
    that is absent now may have been merged into another one, and deleted, since the state was read.
    """
    missing = [
        volume.id
        for volume in state.volumes.values()
        if repo.is_unreadable(volume, listed.get(volume.id), read_again=True)
        and repo.is_unreadable(volume, repo.stored(volume), read_again=True)
    ]
    newest = repo.state().volumes if missing else state.volumes
    return frozenset(key for key in missing if key in newest and newest[key].state == "ready")


def _longer(
    repo: Repository, state: State, listed: Mapping[str, StoredVolume], missing: Collection[str]
) -> dict[str, int]:
    """The volumes that are longer than their records. Volumes that are attached for writing are left out."""
    found = {}
    for volume in state.volumes.values():
        give_way()
        writers = (state.attachments[key] for key in state.attachments_naming(volume.id))
        if volume.state != "ready" or volume.id in missing:
            continue
        if any(attachment.mode == "read_write" for attachment in writers):
            continue
        longer_bytes = repo.longer_bytes(volume, listed.get(volume.id), as_read=True)
        if longer_bytes is not None:
            found[volume.id] = longer_bytes
    return found


def _locked(repo: Repository, state: State, progress: list[str], longer: Collection[str]) -> frozenset[str]:
    """Which leases somebody holds, among those of the fixes that could be listed."""
    candidates = set(progress)
    candidates |= {a.switching.image_id for a in state.attachments.values() if a.switching is not None}
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
    return repo.locked_among(candidates)


def _written(
    repo: Repository,
    state: State,
    gone_attachments: Iterable[str],
    unnamed: Iterable[VolumeName],
    longer: Iterable[str],
    missing: Collection[str],
) -> tuple[frozenset[str], dict[str, str]]:
    """Which volumes strangers write to, and for which that cannot be known; see :class:`Scan`.

    Only volumes that a fix could be listed for are checked.
    """
    of_work = set(longer)
    of_work.update(volume.id for volume in state.volumes.values() if volume.extending is not None)
    chains = Chains(state, missing)
    for image in state.images.values():
        dependent = None if image.is_strong else merge_dependent(state, image)
        if dependent is not None:
            of_work |= {dependent.id, str(image.volume_id)}
        if image.strategy == "performance" or chains.lasting_depth(image) > CHAIN_DEPTH_LIMIT:
            of_work.update(volume.id for _, volume in chains.links(image))  # an optimize reads all of them
    ended = {key for attachment in gone_attachments for key in state.attachments[attachment].volume_ids}
    unexplained = ended.union(state.unready)  # no attachment and no lease can explain a writer of these
    asked = {key: volume_name(state.volumes[key]) for key in of_work | unexplained}
    asked |= {str(name): name for name in unnamed}
    found, unasked = set(), {}
    for key, name in asked.items():
        why = why_unasked(repo, name)
        if why is not None:
            unasked[key] = why
        elif key in of_work - unexplained:
            if has_stranger(repo, state.volumes[key], wait_s=0):
                found.add(key)
        elif is_written(repo, name):
            found.add(key)
    return frozenset(found), unasked


def _workers(repo: Repository, image_ids: list[str]) -> dict[str, str]:
    """Which host works on each image, if its progress tells."""
    found = {}
    for image_id in image_ids:
        seen = repo.progress(image_id)
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


def _replicas(repo: Repository, state: State, *, deep: bool) -> Iterator[ReplicaFound]:
    """Objects of the log with a bad replica: those that readers need, or with ``deep`` all that are kept."""
    storage = repo.storage
    checkpoints, entries = sorted(storage.numbers("checkpoint")), sorted(storage.numbers("entry"))
    first = 0 if deep or not checkpoints else checkpoints[-1]
    if repo.log.damage is not None:
        yield ReplicaFound(CleanReplica(kind="entry", number=state.version + 1), repo.log.damage)
    for number in checkpoints if deep else checkpoints[-1:]:
        if look_at_replicas(storage, repo.log, "checkpoint", number, records=deep) is not None:
            # The state of a checkpoint is known up to the newest entry. Beyond that, nothing tells it.
            waits_for = None if number <= state.version else "neither replica is whole, nor are its entries"
            yield ReplicaFound(CleanReplica(kind="checkpoint", number=number), waits_for)
    for number in entries:
        if not first <= number <= state.version:
            continue
        trouble = look_at_replicas(storage, repo.log, "entry", number)
        if trouble is not None and trouble.whole is not None:
            yield ReplicaFound(CleanReplica(kind="entry", number=number))
        elif trouble is not None and checkpoints and number >= checkpoints[0]:
            # Nobody reads entries below every checkpoint: a late writer may have put them there.
            waits_for = "neither replica is whole; a checkpoint has its result"
            yield ReplicaFound(CleanReplica(kind="entry", number=number), waits_for)


def _sources(
    engine: Engine,
    repo: Repository,
    state: State,
    missing: frozenset[str],
    allocated: Mapping[str, int],
    participating: list[Repository] | None,
) -> dict[str, SourceView]:
    views = {}
    for image in state.images.values():
        if (image.is_strong and image.pending is not None) or needs_restore(state, image, missing):
            views[image.id] = _source_view(engine, repo, state, image, missing, participating)
    return views


def _differing(engine: Engine, repo: Repository, state: State) -> dict[str, str]:
    """Snapshots for which another connected repository has other bytes under the same id."""
    found = {}
    for other_repo in engine.connections.repositories():
        if other_repo.marker == repo.marker:
            continue
        try:
            others = other_repo.state().images
        except errors.DiskyardError:
            continue  # the next check looks at it, if it answers then
        for image in state.images.values():
            other = others.get(image.id) if image.is_strong and image.kind == "snapshot" else None
            if other is not None and other.is_strong and (why := why_another(image, other)) is not None:
                found[image.id] = f"repository {other_repo.repo_id} has another image under this id ({why})"
    return found


def _source_view(
    engine: Engine,
    repo: Repository,
    state: State,
    image: Image,
    missing: frozenset[str],
    participating: list[Repository] | None,
) -> SourceView:
    waits_for = waits_for_base(repo, state, image)
    if waits_for is not None:
        waits_for += "; with force the whole image is stored, without a base"
    if image.pending is not None and isinstance(image.pending.source, FileSource):
        source = image.pending.source
        return SourceView(waits_for or import_waits_for(engine, repo, image, source), image.size_bytes)
    if image.pending is not None or _parent_is_whole(state, image, missing):
        waits_for = waits_for or why_not_read(repo, state, image, own=1)
    found = find_source(engine.connections, repo, image, participating)
    if not isinstance(found, FoundSource):
        return SourceView(waits_for or found.told(), None)
    waits_for = waits_for or why_not_read(found.repo, found.state, found.image)
    allocated = {
        volume.id: 0 if (stored := found.repo.stored(volume)) is None else stored.allocated_bytes
        for _, volume in found.state.chain(found.image)
    }
    return SourceView(waits_for, allocated_of(found.repo, found.state, found.image, allocated))


def _parent_is_whole(state: State, image: Image, missing: frozenset[str]) -> bool:
    """Whether the lost volume's parent is whole: then a restoration reads it and stores the difference."""
    volume = state.volumes.get(image.volume_id or "")
    parent = None if volume is None else state.images.get(volume.parent_image_id or "")
    return parent is not None and why_broken(state, parent, missing) is None


def _look_into_volumes(engine: Engine, repo: Repository, state: State) -> None:
    """Read every ready volume's own metadata, and record what is wrong with it.

    Volumes that a guest may be writing to are left out, because their metadata changes while it is read. This
    takes no lock that would stop a guest which is given a volume meanwhile. Then the result is not used.
    """
    author: Author = engine.author("checkStorageRepository")
    for volume in state.volumes.values():
        before = repo.stored(volume)
        if before is None:
            continue  # missing: the scan finds that without a record of it
        if volume.state != "ready" or _may_change(repo, volume):
            continue
        try:
            with opening(repo, [volume]) as (layer,):
                damage = check_volume(engine.host, replace(layer, shared=True))
        except errors.UnsafeImage:
            continue  # its file has other names too: whoever opens it is told; nothing is known of its bytes
        except errors.ImageBroken as error:
            damage = error.message
        except errors.LeaseHeld:
            continue  # a job of QEMU is at work in it
        if damage != volume.damage and not _has_changed(repo, volume, before):
            users = users_of(state, volume)
            repo.commit(partial(note_damage, was=volume, users=users, damage=damage), author)


def _may_change(repo: Repository, volume: Volume) -> bool:
    """Whether anybody may be writing to a volume now, including a guest without an attachment."""
    state = repo.state()
    writers = (state.attachments[key] for key in state.attachments_naming(volume.id))
    if any(attachment.mode == "read_write" for attachment in writers):
        return True
    if any(repo.is_locked(key) for key in state.images_on(volume.id)):
        return True
    name = volume_name(volume)
    return why_unasked(repo, name) is not None or is_written(repo, name)


def _has_changed(repo: Repository, volume: Volume, before: StoredVolume) -> bool:
    """Whether a volume may have been written to since ``before``. A writer that has gone left a new stamp."""
    now = repo.stored(volume)
    return now is None or now.stamp != before.stamp or _may_change(repo, volume)
