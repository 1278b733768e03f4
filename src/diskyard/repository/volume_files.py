"""Volumes, opened once for a piece of work: the bytes that are checked are then read and written.

Between a look at a name and its next use, anyone who can write to the repository's directory can put another
file there, or a link. So a volume is opened here, its header is read from the open container, and the movers
get that container. Through them, QEMU's programs get its descriptor, if it has one
(:mod:`diskyard.mover.opening`).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from diskyard import errors
from diskyard.model.records import Image, Volume
from diskyard.model.state import State
from diskyard.mover.durable import os_errors
from diskyard.mover.interface import Chain, Layer
from diskyard.repository.repository import Repository
from diskyard.repository.volume_bytes import ABSENT_WORDS, volume_name

#: Nothing is there, or a link is, or something that is not a file.
_NO_FILE = frozenset((errno.ENOENT, errno.ELOOP, errno.EINVAL))


@contextmanager
def opening(repo: Repository, volumes: Sequence[Volume]) -> Iterator[Chain]:
    """Open volumes as layers, for the time of the context.

    :raises diskyard.errors.ImageBroken: a volume is missing, or must not be opened.
    :raises diskyard.errors.UnsafeImage: a volume's file has other names too.
    :raises diskyard.errors.StorageError: a volume cannot be opened.
    """
    with ExitStack() as stack:
        yield tuple(_open(stack, repo, volume) for volume in volumes)


def _open(stack: ExitStack, repo: Repository, volume: Volume) -> Layer:
    with os_errors(f"opening volume {volume.id}"):
        try:
            container = stack.enter_context(repo.storage.open_volume(volume_name(volume)))
        except OSError as error:
            if error.errno in _NO_FILE:
                raise repo.not_opened(volume, ABSENT_WORDS) from error
            raise
        return repo.layer(volume, container)


@contextmanager
def opening_chain(
    repo: Repository, state: State, volumes: Sequence[Volume], *, own: int = 0
) -> Iterator[Chain]:
    """Like :func:`opening`, for volumes that read one another, top first.

    :param own: for how many volumes, from the top, the caller itself makes sure that the volumes below them
        show no more than their records say (:meth:`Repository.require_bounded`).
    """
    repo.require_bounded(state, volumes[own:])
    with opening(repo, volumes) as chain:
        yield chain


@contextmanager
def reading(repo: Repository, state: State, image: Image) -> Iterator[Chain]:
    """Open an image's volumes, for a caller that does not hold the leases of all images below it.

    Merges below it do not change the image's bytes, but move them to other volumes.

    :raises diskyard.errors.LeaseHeld: the bytes moved, and a volume was gone before it was opened.
    """
    volumes = [volume for _, volume in state.chain(image)]
    try:
        with opening_chain(repo, state, volumes) as chain:
            yield chain
    except (errors.StorageError, errors.ImageBroken) as error:
        newest = repo.state()
        now = newest.images.get(image.id)
        if now is not None and [v.id for _, v in newest.chain(now)] == [v.id for v in volumes]:
            raise
        raise errors.LeaseHeld(
            f"The volumes of image {image.id} were merged meanwhile.", imageId=image.id
        ) from error
