"""copyImage, importImage, and createVirtualDisk from another repository: commit now, copy the data later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from diskyard import errors
from diskyard.model.capabilities import Capabilities
from diskyard.model.looked import Seen
from diskyard.model.records import (
    FileSource,
    Image,
    ImageKind,
    ImageSource,
    Origin,
    Pending,
    Strategy,
)
from diskyard.model.state import State
from diskyard.model.status import why_broken
from diskyard.model.transaction import Draft
from diskyard.planner.building import WorkIds, begin_filled
from diskyard.planner.common import (
    already_made,
    base_image,
    new_image,
    require_openable,
    require_unattached,
    require_usable,
    strong_image,
)
from diskyard.planner.same import captured_here, why_another


@dataclass(frozen=True, slots=True)
class PendingImage:
    """A request for an image whose bytes come later.

    :param base_image_id: the image in this repository that the volume is to read: a Snapshot, which may not
        be here yet, or the frozen image of a VirtualDisk.
    :param base_was_here: the request relies on a base that was seen here. Nobody will copy it here again.
    """

    image_id: str
    ids: WorkIds
    kind: ImageKind
    size_bytes: int
    source: ImageSource | FileSource
    base_image_id: str | None
    strategy: Strategy
    user_data: Any
    request_digest: str
    now: str
    captured_at: str
    origin: Origin | None = None
    captured: Origin | None = None
    rate_limit_bytes_per_s: int = 0
    track_changes: bool = False
    tracked_disk_id: str | None = None
    base_was_here: bool = False


def begin(draft: Draft, request: PendingImage, capabilities: Capabilities) -> bool:
    """Commit the request: the image exists, and is pending. False if it was made already.

    The volume is put in the same entry if its base, if any, is here and can be read. Otherwise the mend puts
    it.
    """
    state = draft.state
    if already_made(state, request.image_id, request.request_digest):
        return False
    base = _base(state, request)
    pending = Pending(
        work_id=request.ids.work_id,
        source=request.source,
        base_image_id=request.base_image_id,
        rate_limit_bytes_per_s=request.rate_limit_bytes_per_s,
        track_changes=request.track_changes,
        tracked_disk_id=request.tracked_disk_id,
    )
    image = new_image(
        draft,
        request.image_id,
        kind=request.kind,
        size_bytes=request.size_bytes,
        volume_id=None,
        strategy=request.strategy,
        user_data=request.user_data,
        now=request.now,
        captured_at=request.captured_at,
        pending=pending,
        origin=request.origin,
        captured=_captured(draft, request),
        request_digest=request.request_digest,
    )
    if request.base_image_id is None or base is not None:
        new = begin_filled(draft, request.ids, image, capabilities, request.base_image_id)
        image = replace(image, volume_id=new.volume.id)
    draft.put_image(image)
    return True


def _captured(draft: Draft, request: PendingImage) -> Origin | None:
    if request.kind != "snapshot":
        return None
    if isinstance(request.source, ImageSource):
        return request.captured
    return captured_here(draft.state, request.image_id, draft.entry)


def _base(state: State, request: PendingImage) -> Image | None:
    """The base, if it is here and usable.

    A base that itself waits for this image is refused, and one that was here and has gone.
    """
    named = state.images.get(request.base_image_id or "")
    if (
        named is not None and named.kind != "snapshot"
    ):  # it was made under this id meanwhile, and its bytes may change
        raise errors.NotASnapshot(f"The base {named.id} is a VirtualDisk.", imageId=named.id)
    base = base_image(state, request.base_image_id)
    if base is None and request.base_was_here:
        raise errors.ImageNotFound(
            f"The base {request.base_image_id} was removed meanwhile.", imageId=request.base_image_id
        )
    if base is None:
        return None
    _refuse_cycle(state, base, request.image_id)
    return base if why_broken(state, base) is None else None


def _refuse_cycle(state: State, base: Image, image_id: str) -> None:
    current: Image | None = base
    seen: set[str] = set()
    while current is not None and current.id not in seen:
        seen.add(current.id)
        waits_for = None if current.pending is None else current.pending.base_image_id
        if image_id in (current.id, waits_for):
            raise errors.InvalidParameter(
                f"The base {base.id} itself waits for image {image_id}: neither could be completed.",
                imageId=image_id,
            )
        current = state.images.get(waits_for or "")


def snapshot_is_here(draft: Draft, source: Image, user_data: Any, request_digest: str) -> bool:
    """Whether the target has the Snapshot, either whole or pending. A weak one becomes strong.

    An existing copy keeps its userData. One that had been removed takes the caller's userData, as a new copy
    would.

    :param source: the Snapshot that is to be copied.
    :raises diskyard.errors.ImageIdInUse: the target has another image under this id.
    :raises diskyard.model.looked.LookAgain: the plan has not looked at the target's volumes.
    """
    image = _same_snapshot(draft.state, source)
    if image is None:
        return False
    is_pending = image.pending is not None and image.is_strong  # and a hold keeps its source
    if not is_pending and why_broken(draft.state, image, draft.missing) is not None:
        return False
    _make_strong(draft, image, user_data, request_digest)
    return True


def ask_to_restore(draft: Draft, source: Image, user_data: Any, request_digest: str) -> bool:
    """Like :func:`snapshot_is_here`, for a target that may have the Snapshot broken. The source is held.

    Check lists the mend that restores it. The hold lasts until the target has it whole.
    """
    image = _same_snapshot(draft.state, source)
    if image is None:
        return False
    _make_strong(draft, image, user_data, request_digest)
    return True


def _same_snapshot(state: State, source: Image) -> Image | None:
    image = state.images.get(source.id)
    if image is None or image.consumed_by is not None:
        return None
    if (why := why_another(source, image)) is not None:
        raise errors.ImageIdInUse(
            f"The target has another image under the id {source.id}: {why}.",
            advice="If nobody needs that image, remove it first, and run the fixes that check then lists.",
            imageId=source.id,
        )
    return image


def _make_strong(draft: Draft, image: Image, user_data: Any, request_digest: str) -> None:
    if not image.is_strong:
        draft.put_image(
            replace(
                image,
                visibility="strong",
                user_data=user_data,
                request_digest=request_digest,
                revision=draft.entry,
            )
        )


def copy_source(seen: Seen, image_id: str, *, but_live: bool = False) -> Image:
    """The image to read. A source must be usable, and no guest may use it if it is a VirtualDisk.

    :param but_live: it will be frozen before it is read: a guest that can be talked to may use it.

    :raises diskyard.errors.ImageNotFound: this repository has no such image.
    :raises diskyard.errors.ImageBroken: the image cannot be read.
    :raises diskyard.errors.ImageInUse: the image is a VirtualDisk that is attached.
    :raises diskyard.errors.Unsupported: the image's chain is too deep to be opened.
    """
    image = strong_image(seen.state, image_id)
    require_usable(seen, image)
    require_openable(seen.state, image)
    if image.kind == "virtual_disk":
        require_unattached(seen.state, image, but_live=but_live)
    return image


def origin_of(state: State, source: Image) -> Origin:
    """The origin of a copy of ``source``: which bytes the copy is made of."""
    return Origin(
        marker=state.marker,
        image_id=source.captured_of or source.id,
        data_generation=source.data_generation,
    )
