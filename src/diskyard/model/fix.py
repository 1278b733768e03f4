"""Fixes: what check lists and fix runs, and the opaque part that says what to do."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from diskyard.model.options import FixType
from diskyard.model.records import AnyHold


class Action(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel", tag_field="do"
):
    """What a fix does, named by what it is done to; everything else is planned anew when it runs."""


class CleanVolume(Action, tag="cleanVolume", frozen=True):
    """Delete a doomed volume, or one whose work was abandoned, and forget its record."""

    volume_id: str


class CleanGarbage(Action, tag="cleanGarbage", frozen=True):
    """Delete a volume that the log does not name."""

    name: str


class CleanLeftover(Action, tag="cleanLeftover", frozen=True):
    """Delete a temporary file whose process is gone."""

    name: str


class CleanProgress(Action, tag="cleanProgress", frozen=True):
    """Forget the progress of an image that is not worked on any more."""

    image_id: str


class CleanAttachment(Action, tag="cleanAttachment", frozen=True):
    """Remove an attachment whose host is provably gone."""

    attachment_id: str


class CleanHold(Action, tag="cleanHold", frozen=True):
    """Release a frozen image from a copy that is over."""

    image_id: str
    hold: AnyHold


class CleanTwin(Action, tag="cleanTwin", frozen=True):
    """Write a missing or damaged copy of an entry or checkpoint again."""

    kind: Literal["entry", "checkpoint"]
    number: int


class Merge(Action, tag="merge", frozen=True):
    """Merge a weak image with the one volume that depends on it."""

    image_id: str


class Optimize(Action, tag="optimize", frozen=True):
    """Build the better representation of a degraded image."""

    image_id: str


class Mend(Action, tag="mend", frozen=True):
    """Complete a pending image, or restore one whose volume is missing or damaged."""

    image_id: str


AnyAction = (
    CleanVolume
    | CleanGarbage
    | CleanLeftover
    | CleanProgress
    | CleanAttachment
    | CleanHold
    | CleanTwin
    | Merge
    | Optimize
    | Mend
)


class FixData(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The opaque part of a fix: which repository, and what to do there."""

    marker: str
    action: AnyAction


class Fix(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Something that check found, and that fixStorageRepository can run.

    :param fix_id: the same for the same finding, on every host.
    :param image_id: the image it is about, where the caller can see that image.
    :param runnable: whether it can run on this host now.
    :param waits_for: why it cannot.
    :param held_by: the host that works on it now.
    :param frees_bytes: what it gives back; None if not known.
    :param moves_bytes: what it reads and writes; None if not known.
    :param needs_bytes: room that it needs while it runs; None if not known.
    :param data: opaque; send the whole fix back as received.
    """

    fix_id: str
    type: FixType
    description: str
    image_id: str | None
    runnable: bool
    waits_for: str | None
    held_by: str | None
    frees_bytes: int | None
    moves_bytes: int | None
    needs_bytes: int | None
    data: FixData


def fix_type(action: AnyAction) -> FixType:
    """Which of the four types an action belongs to."""
    if isinstance(action, Merge):
        return "merge"
    if isinstance(action, Optimize):
        return "optimize"
    return "mend" if isinstance(action, Mend) else "clean"


def fix_id(data: FixData) -> str:
    """The id of a fix: its type and a hash of what it is done to."""
    digest = hashlib.blake2b(msgspec.json.encode(data, order="sorted"), digest_size=12)
    return f"{fix_type(data.action)}-{digest.hexdigest()}"
