"""The work that is left in a repository: a pure function of the repository's state and one scan of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from diskyard.model.chains import Chains
from diskyard.model.courtesy import give_way
from diskyard.model.fix import (
    CleanChanged,
    CleanGarbage,
    CleanLeftover,
    CleanSize,
    CleanStray,
    CleanVolume,
    Fix,
    FixData,
    Mend,
    Merge,
    NameForeign,
    NameSnapshots,
    Optimize,
    fix_id,
    fix_type,
)
from diskyard.model.records import Image, Volume, split_entry_id
from diskyard.model.state import State
from diskyard.model.status import merge_dependent
from diskyard.model.volume_name import VolumeName
from diskyard.planner.clean import wanted
from diskyard.planner.find_bookkeeping import bookkeeping
from diskyard.planner.found import WRITTEN, Found, holder, not_idle
from diskyard.planner.mend import needs_restore
from diskyard.planner.merge import merge_in_the_way, merge_lease_images, merge_too_long, plan_merge
from diskyard.planner.optimize import OptimizePlan, optimize_waits_for, plan_optimize
from diskyard.planner.running import was_changed
from diskyard.planner.scan import Scan, SourceView
from diskyard.planner.sizes import size_fix

_FOREIGN_NAMED_MOST = 100
_TYPE_ORDER = {"mend": 0, "merge": 1, "optimize": 2, "clean": 3}


def find_fixes(scan: Scan) -> list[Fix]:
    """All fixes, mends first, then merges, optimizes and cleans.

    Among fixes of one type, those that move least come first: merges that are nearly free make chains short,
    and QEMU's cost of opening a chain grows with the square of its depth.
    """
    fixes = []
    for found in _found(scan):
        data = FixData(scan.state.marker, found.action)
        # A stray entry is the reason why the log cannot be written.
        is_why = isinstance(found.action, CleanStray)
        waits_for = found.waits_for if is_why else scan.read_only or found.waits_for
        fixes.append(
            Fix(
                fix_id=fix_id(data),
                type=fix_type(found.action),
                description=found.description,
                image_id=found.image_id,
                runnable=not (waits_for or found.held_by),
                waits_for=waits_for,
                held_by=found.held_by,
                frees_bytes=found.frees_bytes,
                moves_bytes=found.moves_bytes,
                needs_bytes=found.needs_bytes,
                data=data,
            )
        )
    return sorted(fixes, key=lambda fix: (_TYPE_ORDER[fix.type], fix.moves_bytes or 0, fix.fix_id))


def _found(scan: Scan) -> Iterator[Found]:
    chains = Chains(scan.state, scan.missing, scan.allocated)
    for image in scan.state.images.values():
        give_way()
        yield from _of_image(scan, image, chains)
    for volume in scan.state.volumes.values():
        give_way()
        if volume.state != "ready":
            yield from _of_unready_volume(scan, volume)
        elif volume.extending is not None or volume.id in scan.longer:
            yield from _of_size(scan, volume)
        if was_changed(volume):
            yield _changed_by_others(scan, volume)
    yield from _garbage(scan)
    yield from _of_others(scan)
    yield from bookkeeping(scan)


def _changed_by_others(scan: Scan, volume: Volume) -> Found:
    return Found(
        CleanChanged(volume_id=volume.id),
        f"accept the bytes of volume {volume.id} as they are, although {volume.damage}",
        _visible_on(scan.state, volume.id),
        "only a person can decide what they are worth; force accepts them",
    )


def _of_image(scan: Scan, image: Image, chains: Chains) -> Iterator[Found]:
    visible = image.id if image.is_strong else None
    if image.is_strong and image.pending is not None:
        source = scan.sources.get(image.id, SourceView("its source is not known", None))
        yield Found(
            Mend(image_id=image.id),
            f"complete image {image.id}",
            visible,
            source.waits_for,
            holder(scan, [image.id]),
            0,
            source.moves_bytes,
            source.moves_bytes,
        )
    elif needs_restore(scan.state, image, scan.missing):
        source = scan.sources.get(image.id, SourceView("no repository has it whole", None))
        yield Found(
            Mend(image_id=image.id),
            f"restore Snapshot {image.id} from another repository",
            visible,
            source.waits_for,
            holder(scan, [image.id]),
            0,
            source.moves_bytes,
            source.moves_bytes,
        )
    elif image.is_strong and (why := chains.why_broken(image)) is not None:
        # No repository has its bytes, or an image that it reads must be mended first. List it all the same.
        yield Found(
            Mend(image_id=image.id),
            f"mend image {image.id}",
            visible,
            f"{why}; mend the images that it reads, restore the volume from a backup, or remove the image",
            None,
            0,
            None,
            None,
        )
    elif image.id in scan.differing:
        # No fix can change either image: only people know which one is meant.
        yield Found(
            Mend(image_id=image.id),
            f"two images have the id {image.id}",
            visible,
            f"{scan.differing[image.id]}: neither is used for the other; remove the one that you do not need",
        )
    if not image.is_strong and merge_dependent(scan.state, image) is not None:
        yield from _merge(scan, image, chains)
    elif (plan := plan_optimize(scan.state, image.id, scan.capabilities, chains)) is not None:
        yield _optimize(scan, plan, chains)


def _merge(scan: Scan, image: Image, chains: Chains) -> Iterator[Found]:
    plan = plan_merge(scan.state, image.id, scan.allocated, scan.capabilities)
    if plan is None:
        return
    shown = sorted(key for key in scan.state.images_on(plan.dependent.id) if scan.state.images[key].is_strong)
    waits_for = merge_in_the_way(scan.state, plan) or merge_too_long(plan, scan.capabilities)
    for volume in (plan.parent, plan.dependent):
        waits_for = waits_for or scan.snapshotted.get(volume.id)
        if volume.id in scan.missing or volume.damage is not None:
            waits_for = f"volume {volume.id} cannot be read"
        waits_for = waits_for or not_idle(scan, volume.id)
    # Bytes that may be wrong are not merged into a sound volume, however far down the chain they are.
    waits_for = waits_for or chains.why_broken(plan.image) or _shows_more(scan, plan.parent)
    yield Found(
        Merge(image_id=image.id),
        f"merge a removed image {plan.direction} with the volume that reads it",
        shown[0] if shown else None,
        waits_for,
        holder(scan, merge_lease_images(scan.state, plan)),
        min(scan.allocated.get(plan.parent.id, 0), scan.allocated.get(plan.dependent.id, 0)),
        plan.moves_bytes,
        plan.moves_bytes,
    )


def _optimize(scan: Scan, plan: OptimizePlan, chains: Chains) -> Found:
    image = plan.image
    moves_bytes = chains.allocated_bytes(image)
    words = {
        "reserve": "reserve the blocks of",
        "flatten": "give its own raw volume to",
        "shorten": "shorten the chain of",
    }
    return Found(
        Optimize(image_id=image.id),
        f"{words[plan.kind]} image {image.id}",
        image.id,
        optimize_waits_for(scan.state, plan, scan.capabilities)
        or scan.snapshotted.get(plan.volume.id)
        or (None if plan.kind == "reserve" else _not_read(scan, image, chains)),
        holder(scan, [image.id]),
        0,
        0 if plan.kind == "reserve" else moves_bytes,
        moves_bytes if plan.kind == "shorten" else image.size_bytes,
    )


def _not_read(scan: Scan, image: Image, chains: Chains) -> str | None:
    """Why an image cannot be read now: somebody may write to it, or it shows more than its records say."""
    if not (scan.written or scan.unasked or scan.longer):
        return None
    volumes = [volume for _, volume in chains.links(image)]
    return not_idle(scan, *(volume.id for volume in volumes)) or _shows_more(scan, volumes[0])


def _shows_more(scan: Scan, top: Volume) -> str | None:
    """Why a chain would show more than its records say: a volume in it is longer; see ``require_bounded``."""
    if not scan.longer:
        return None
    for above, volume in pairwise(scan.state.volume_chain(top)):
        if volume.id not in scan.longer or volume.format != "qcow2" or above.size_bytes <= volume.size_bytes:
            continue
        if not any(scan.state.images[key].consumed_by for key in scan.state.images_on(volume.id)):
            return f"volume {volume.id} is longer than its record: its own clean fix, with force, comes first"
    return None


def _of_size(scan: Scan, volume: Volume) -> Iterator[Found]:
    fix = size_fix(scan.state, volume, scan.longer.get(volume.id))
    if fix is not None:
        unreadable = volume.id in scan.missing or volume.damage is not None
        waits_for = f"volume {volume.id} cannot be read" if unreadable else fix.waits_for
        waits_for = waits_for or not_idle(scan, volume.id)
        held_by = holder(scan, fix.leases)
        yield Found(CleanSize(volume_id=volume.id), fix.description, fix.image_id, waits_for, held_by)


def _of_unready_volume(scan: Scan, volume: Volume) -> Iterator[Found]:
    frees_bytes = scan.allocated.get(volume.id, 0)
    waits_for = WRITTEN if volume.id in scan.written else None
    if volume.state == "doomed":
        yield Found(
            CleanVolume(volume_id=volume.id),
            "delete data that nothing needs",
            waits_for=waits_for,
            held_by=holder(scan, [volume.id]),
            frees_bytes=frees_bytes,
        )
    elif volume.building is not None and not wanted(scan.state, volume):
        if volume.building.image_id in scan.locked:
            return  # its work goes on: there is nothing to fix
        yield Found(
            CleanVolume(volume_id=volume.id),
            "delete data of work that was abandoned",
            waits_for=waits_for,
            frees_bytes=frees_bytes,
        )


def _whose(state: State, name: VolumeName) -> str:
    """What is known about a volume that cannot be shown to belong to this history."""
    number, _ = split_entry_id(name.named_by)
    if number > state.version:
        why = f"the log ends at entry {state.version}: it is older than its volumes"
    else:
        why = f"entry {number} of this log is another entry, or too old to be compared"
    return (
        f"entry {number} named the volume, and {why}. It may hold an image that was made before the "
        "repository was restored; force deletes it"
    )


def _garbage(scan: Scan) -> Iterator[Found]:
    for name, size_bytes in scan.stored.items():
        volume = scan.state.volumes.get(name.volume_id)
        if volume is not None and (volume.named_by, volume.format) == (name.named_by, name.format):
            continue
        waits_for = None if name in scan.made_here else _whose(scan.state, name)
        if str(name) in scan.written:
            waits_for = WRITTEN
        yield Found(
            CleanGarbage(name=str(name)),
            f"delete volume {name}, which no record names",
            waits_for=waits_for,
            frees_bytes=size_bytes,
        )
    for leftover, size_bytes in scan.leftovers.items():
        yield Found(
            CleanLeftover(name=leftover),
            "delete a temporary file of a process that has ended",
            frees_bytes=size_bytes,
        )


def _of_others(scan: Scan) -> Iterator[Found]:
    """List what other programs have left. No fix changes it."""
    for volume_id, waits_for in scan.snapshotted.items():
        image_id = _visible_on(scan.state, volume_id)
        yield Found(
            NameSnapshots(volume_id=volume_id),
            f"look at the internal snapshots in {f'image {image_id}' if image_id else f'volume {volume_id}'}",
            image_id,
            waits_for,
            frees_bytes=None,
        )
    others = 0
    for name, overlay_of in scan.foreign.items():
        image_id = None
        if overlay_of is not None:
            image_id = _visible_on(scan.state, overlay_of)
            of = f"image {image_id}" if image_id else f"volume {overlay_of}"
            words = f"look at {name}, which another program made as an overlay of {of}"
            waits_for = (
                "it may hold the newest bytes of a guest: commit it into the image below it "
                "(virsh blockcommit, or qemu-img commit), or remove it"
            )
        else:
            others += 1
            if others > _FOREIGN_NAMED_MOST:
                continue
            words = f"look at {name}, which is not Diskyard's"
            waits_for = "only people can decide whether it is needed: move it elsewhere, or remove it"
        yield Found(NameForeign(name=name), words, image_id, waits_for, frees_bytes=None)


def _visible_on(state: State, volume_id: str) -> str | None:
    """An image on a volume, of those that verbs return, if there is one."""
    strong = (image_id for image_id in state.images_on(volume_id) if state.images[image_id].is_strong)
    return min(strong, default=None)
