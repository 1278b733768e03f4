"""The beginning of every log: entry 0, which changes nothing, and its checkpoint."""

from __future__ import annotations

from diskyard.host import Host
from diskyard.host.identity import new_nonce
from diskyard.log.codec import Checkpoint, encode
from diskyard.model.transaction import Changes, Entry


def genesis(marker: str, host: Host) -> tuple[bytes, bytes]:
    """Entry 0 and checkpoint 0 of a new repository."""
    entry = Entry(
        marker=marker,
        number=0,
        nonce=new_nonce(),
        previous="",
        time=host.clock.now(),
        verb="createStorageRepository",
        host=host.identity,
        actor="",
        request_digest=None,
        changes=Changes(),
    )
    checkpoint = Checkpoint(
        marker=marker,
        version=0,
        nonce=entry.nonce,
        nonces=(entry.nonce,),
        images=(),
        volumes=(),
        attachments=(),
    )
    return encode(entry), encode(checkpoint)
