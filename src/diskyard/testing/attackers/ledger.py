"""What images must hold, in files beside the repositories: shared by clients that may be killed.

An image is written down before it is asked for, and once more when that was answered. What was
never answered may have happened or not: an image may be there, a disk may hold the one or the
other, and each is right until it is known better.
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

    :ivar number: of the moments of its image, in their order.
    :ivar certain: whether the change to it was answered, so that nothing earlier is right any more.
    :ivar between: two writes of one guest: right only in part, of a disk whose guest was killed.
    """

    number: int
    digest: str
    certain: bool
    between: bool = False


class Kept(msgspec.Struct):
    """One image as its callers know it.

    :ivar owner: the client that may change and remove it.
    :ivar state: asked for and not answered; there; being removed.
    :ivar how: it was made, for people.
    :ivar moments: what it may hold, the newest last; none before it is known what it will be.
    :ivar mixed: a guest was killed while it wrote, or it is a copy of such a disk: each sector is
        that of one of the moments, which are all that it held in between.
    :ivar left: a change of it was never answered and may yet happen: nobody changes it any more.
    :ivar asked: the verb and its parameters, to be asked again.
    :ivar source: place and id of what it was made of, and the number of that one's moment which
        was certain then: it holds what that one held at some time until the answer.
    :ivar base: what a copy reads beside it. One that others remove before the copy is answered, or before
        it is usable itself, never comes, and the copy waits.
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
        """The number of the last moment that is certain; of the first, if none is."""
        certain = [moment.number for moment in self.moments if moment.certain]
        return certain[-1] if certain else (self.moments[0].number if self.moments else 0)

    def has_all_since(self, number: int) -> bool:
        """Whether no moment since one was forgotten."""
        return bool(self.moments) and self.moments[0].number <= number

    def since(self, number: int, *, between: bool = False) -> list[Moment]:
        """Its moments from one on; without those between two writes, unless they are wanted."""
        return [one for one in self.moments if one.number >= number and (between or not one.between)]

    def allowed(self, since: int | None = None) -> list[str]:
        """Digests of what it may hold; or may have held since a moment."""
        found = self.since(self.settled if since is None else since)
        return list(dict.fromkeys(moment.digest for moment in found))

    def known(self) -> str | None:
        """The digest of what it holds, if that is known."""
        allowed = self.allowed()
        return allowed[0] if len(allowed) == 1 and not self.mixed else None

    def add(self, digest: str, *, certain: bool, between: bool = False) -> None:
        """A change to these bytes begins, or is known to have happened."""
        number = self.moments[-1].number + 1 if self.moments else 0
        self.moments = [*self.moments[-_HISTORY:], Moment(number, digest, certain, between)]


class Ledger:
    """The files.

    :param folder: where they are; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._images, self._gone = folder / "images", folder / "gone"
        self._bytes, self._locks = folder / "bytes", folder / "locks"
        for each in (self._images, self._gone, self._bytes, self._locks):
            each.mkdir(parents=True, exist_ok=True)

    # -- bytes ------------------------------------------------------------------------------

    def keep_bytes(self, data: bytes) -> str:
        """Keep bytes; their digest."""
        digest = hashlib.blake2b(data, digest_size=12).hexdigest()
        if not (self._bytes / digest).exists():
            self._write(self._bytes / digest, zlib.compress(data, 1))
        return digest

    def bytes_of(self, digest: str) -> bytes:
        """The bytes of a digest."""
        return zlib.decompress((self._bytes / digest).read_bytes())

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        """All or nothing, though the writer be killed."""
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_bytes(data)
        fresh.rename(path)

    # -- images -----------------------------------------------------------------------------

    def put(self, kept: Kept) -> None:
        """Write an image down."""
        self._write(self._images / f"{kept.place}_{kept.image_id}", msgspec.json.encode(kept))

    def get(self, place: str, image_id: str, *, also_gone: bool = False) -> Kept | None:
        """An image as it is written down now, or was before it was removed."""
        for folder in (self._images, self._gone) if also_gone else (self._images,):
            with contextlib.suppress(FileNotFoundError):
                data = (folder / f"{place}_{image_id}").read_bytes()
                return msgspec.json.decode(data, type=Kept)
        return None

    def drop(self, kept: Kept) -> None:
        """It is gone, or was never made."""
        name = f"{kept.place}_{kept.image_id}"
        with contextlib.suppress(FileNotFoundError):
            (self._images / name).rename(self._gone / name)

    def take_from_source(self, kept: Kept) -> None:
        """Once it was answered: it may hold whatever its source may have held since it was asked for."""
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
        """One client at a time."""
        with (self._locks / name).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def waits_for_ever(self, kept: Kept) -> bool:
        """Whether a copy's base, or the base of that, was removed."""
        if kept.base is None:
            return False
        base = self.get(kept.place, kept.base)
        return base is None or base.state != "there" or self.waits_for_ever(base)

    # -- judging ------------------------------------------------------------------------------

    def wrong(self, before: Kept, data: bytes, after: Kept) -> str | None:
        """What is wrong with bytes that were read between two looks at an image's words; None: nothing.

        :param before: how it was written down before they were read, and ``after``: afterwards.
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
