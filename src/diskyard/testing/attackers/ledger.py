"""What images must hold, in files beside the repositories, shared by clients that may be killed.

A client records an image before it requests it, and again after the answer. If there was no answer, the
request may have taken effect or not: an image may exist or not, a disk may hold the old or the new
bytes. Both count as right until more is known.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from diskyard.testing.attackers.sectors import difference, is_mixture

_HISTORY = 64


class Moment(msgspec.Struct):
    """What a disk held for a while, or may have held.

    :ivar number: its number among the moments of its image.
    :ivar certain: the change to it was answered, so that no earlier moment is right any more.
    :ivar between: it lies between two writes of one guest. It counts only for parts of a disk whose guest
        was killed.
    """

    number: int
    digest: str
    certain: bool
    between: bool = False


class Kept(msgspec.Struct):
    """One image as its callers know it.

    :ivar owner: the client that may change and remove it.
    :ivar state: requested and not answered; existing; being removed.
    :ivar how: how it was made, for people.
    :ivar moments: what it may hold, the newest last; empty until it is known what it will be.
    :ivar mixed: a guest was killed while it wrote, or this is a copy of such a disk. Each sector is that of
        one of the moments, which are all that the disk held meanwhile.
    :ivar left: a change of it was never answered and may still happen, so nobody changes it any more.
    :ivar asked: the verb and its parameters, for another request.
    :ivar source: repository and id of its source, and the number of the source's moment that was certain
        then. The image holds what its source held at some time until the answer.
    :ivar base: what a copy reads besides. If others remove the base before the copy is answered, or before
        the base itself is usable, the base never comes, and the copy waits.
    """

    place: str
    image_id: str
    kind: Literal["disk", "snapshot"]
    owner: str
    how: str
    state: Literal["asked", "there", "going"] = "asked"
    moments: list[Moment] = []
    mixed: bool = False
    left: bool = False
    asked: tuple[str, dict[str, Any]] | None = None
    source: tuple[str, str, int] | None = None
    base: str | None = None

    @property
    def settled(self) -> int:
        """The number of the last certain moment; that of the first, if none is certain."""
        certain = [moment.number for moment in self.moments if moment.certain]
        return certain[-1] if certain else (self.moments[0].number if self.moments else 0)

    def has_all_since(self, number: int) -> bool:
        """Whether no moment since this one was forgotten."""
        return bool(self.moments) and self.moments[0].number <= number

    def since(self, number: int, *, between: bool = False) -> list[Moment]:
        """Its moments from this one on. Those between two writes are left out unless they are wanted."""
        return [one for one in self.moments if one.number >= number and (between or not one.between)]

    def allowed(self, since: int | None = None) -> list[str]:
        """Digests of what it may hold, or may have held since a moment."""
        found = self.since(self.settled if since is None else since)
        return list(dict.fromkeys(moment.digest for moment in found))

    def known(self) -> str | None:
        """The digest of what it holds, if that is known."""
        allowed = self.allowed()
        return allowed[0] if len(allowed) == 1 and not self.mixed else None

    def add(self, digest: str, *, certain: bool, between: bool = False) -> None:
        """Record that a change to these bytes begins, or is known to have happened."""
        number = self.moments[-1].number + 1 if self.moments else 0
        self.moments = [*self.moments[-_HISTORY:], Moment(number, digest, certain, between)]


class Ledger:
    """The files of the ledger.

    :param folder: their directory; made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._images, self._gone = folder / "images", folder / "gone"
        self._bytes, self._locks = folder / "bytes", folder / "locks"
        for each in (self._images, self._gone, self._bytes, self._locks):
            each.mkdir(parents=True, exist_ok=True)

    # -- bytes ------------------------------------------------------------------------------

    def keep_bytes(self, data: bytes) -> str:
        """Keep bytes; return their digest."""
        digest = hashlib.blake2b(data, digest_size=12).hexdigest()
        if not (self._bytes / digest).exists():
            self._write(self._bytes / digest, zlib.compress(data, 1))
        return digest

    def bytes_of(self, digest: str) -> bytes:
        """The bytes with a digest."""
        return zlib.decompress((self._bytes / digest).read_bytes())

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        """Write all or nothing, even if the writer is killed."""
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_bytes(data)
        fresh.rename(path)

    # -- images -----------------------------------------------------------------------------

    def put(self, kept: Kept) -> None:
        """Record an image."""
        self._write(self._images / f"{kept.place}_{kept.image_id}", msgspec.json.encode(kept))

    def get(self, place: str, image_id: str, *, also_gone: bool = False) -> Kept | None:
        """An image as it is recorded now, or was before it was removed."""
        for folder in (self._images, self._gone) if also_gone else (self._images,):
            with contextlib.suppress(FileNotFoundError):
                data = (folder / f"{place}_{image_id}").read_bytes()
                return msgspec.json.decode(data, type=Kept)
        return None

    def drop(self, kept: Kept) -> None:
        """Record that an image is gone, or was never made."""
        name = f"{kept.place}_{kept.image_id}"
        with contextlib.suppress(FileNotFoundError):
            (self._images / name).rename(self._gone / name)

    def take_from_source(self, kept: Kept) -> None:
        """After the answer: the image may hold whatever its source may have held since the request."""
        if kept.source is None:
            return
        place, image_id, since = kept.source
        source = self.get(place, image_id, also_gone=True)
        assert source is not None, f"{image_id} in {place} was written down"
        found = source.since(since, between=True) if source.has_all_since(since) else []
        is_certain = len(found) == 1
        kept.moments = [Moment(n, one.digest, is_certain, one.between) for n, one in enumerate(found)]
        kept.mixed = kept.mixed or source.mixed

    def all(self) -> list[Kept]:
        """All images, in the order of their names."""
        names = sorted(name for name in os.listdir(self._images) if not name.startswith("."))
        found = [self.get(*name.split("_")) for name in names]
        return [kept for kept in found if kept is not None]

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """A context for one client at a time."""
        with (self._locks / name).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def waits_for_ever(self, kept: Kept) -> bool:
        """Whether a copy's base, or the base of the base, was removed."""
        if kept.base is None:
            return False
        base = self.get(kept.place, kept.base)
        return base is None or base.state != "there" or self.waits_for_ever(base)

    # -- judging ------------------------------------------------------------------------------

    def wrong(self, before: Kept, data: bytes, after: Kept) -> str | None:
        """What is wrong with bytes that were read between two looks into the ledger; None if nothing.

        :param before: the image's record from before the read, and ``after``: from after it.
        """
        since = before.settled
        if not after.has_all_since(since):
            return None  # too much has happened meanwhile
        allowed = after.allowed(since)
        if hashlib.blake2b(data, digest_size=12).hexdigest() in allowed:
            return None
        is_mixed = before.mixed or after.mixed
        parts = [self.bytes_of(one.digest) for one in after.since(since, between=True)]
        if is_mixed and is_mixture(data, parts):
            return None
        how = f"{after.how}; of a guest that was killed" if is_mixed else after.how
        words = f"{after.kind} {after.image_id} in {after.place} ({how}; {after.owner}'s)"
        is_part = hashlib.blake2b(data, digest_size=12).hexdigest() in {
            one.digest for one in after.since(since, between=True)
        }
        between = ": what it held between two writes of a guest" if is_part else ""
        return f"wrong bytes: {words}: {difference(data, self.bytes_of(allowed[-1]))}{between}"
