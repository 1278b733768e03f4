"""What is left to do that is about records and no bytes: attachments, switches, holds, progress, the log."""

from __future__ import annotations

from collections.abc import Iterator

from diskyard.model.fix import CleanAttachment, CleanHold, CleanProgress, CleanStray, CleanSwitch
from diskyard.model.records import Attachment, Image, split_entry_id
from diskyard.planner.found import Found, holder, not_idle
from diskyard.planner.scan import Scan


def bookkeeping(scan: Scan) -> Iterator[Found]:
    """The fixes of that kind."""
    state = scan.state
    for image_id in scan.progress:
        image = state.images.get(image_id)
        if image_id not in scan.locked and (image is None or not _worked_on(image)):
            yield Found(CleanProgress(image_id=image_id), "forget the progress of work that is done")
    for key in sorted(scan.gone_attachments):
        attachment = state.attachments[key]
        yield Found(
            CleanAttachment(attachment_id=key),
            f"remove the attachment of {attachment.owner}, whose host has restarted since",
            attachment.image_id,
            not_idle(scan, *attachment.volume_ids) or _overlay_of(scan, attachment),
        )
    for key, why in sorted(scan.switching.items()):
        yield _interrupted_switch(scan, state.attachments[key], why)
    for image_id, hold in scan.holds_over:
        yield Found(CleanHold(image_id=image_id, hold=hold), "release data kept for a copy that is over")
    for image_id, hold, why in scan.holds_unknown:
        yield Found(
            CleanHold(image_id=image_id, hold=hold),
            "release data kept for a copy",
            waits_for=why,
            frees_bytes=None,
        )
    if scan.stray is not None:
        number, _ = split_entry_id(scan.stray)
        yield Found(
            CleanStray(entry=scan.stray),
            f"remove entry {number} of the log, which follows nothing: the repository was restored while "
            f"it was published, or entries {state.version + 1} to {number - 1} are lost",
            waits_for=f"restore the log from a backup that has those; with force the entry is removed, and "
            f"the log goes on from entry {state.version}",
        )
    for replica in scan.replicas:
        words = f"write the missing or damaged replica of {replica.action.kind} {replica.action.number} again"
        yield Found(replica.action, words, waits_for=replica.waits_for)


def _interrupted_switch(scan: Scan, attachment: Attachment, why: str | None) -> Found:
    assert attachment.switching is not None
    frozen_id = attachment.switching.image_id
    return Found(
        CleanSwitch(attachment_id=attachment.id),
        f"ask the guest {attachment.owner} which volume it writes to, as moving it was interrupted",
        attachment.image_id,
        why,
        holder(scan, [frozen_id]),
    )


def _overlay_of(scan: Scan, attachment: Attachment) -> str | None:
    """Why an attachment is not removed without force: a foreign overlay may hold the newest bytes."""
    if attachment.mode != "read_write":
        return None
    names = (name for name, of in scan.foreign.items() if of in attachment.volume_ids)
    name = next(names, None)
    return name and f"{name} is an overlay of it: commit that or move it away; force removes it without that"


def _worked_on(image: Image) -> bool:
    """Whether a caller can still ask for the image's progress."""
    return image.is_strong
