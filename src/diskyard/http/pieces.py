"""Answers as JSON, one piece at a time, so that a long one is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from diskyard.http.long_calls import FEW_IMAGES
from diskyard.model import requests as ask
from diskyard.model.courtesy import give_way
from diskyard.model.results import ImageInfo
from diskyard.model.verbs import BY_REQUEST
from diskyard.queries import list_images_in_parts
from diskyard.service import Service
from diskyard.service.verbs import run_unwatched, translated

#: A piece ends with the item that reaches this length.
PIECE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer.

    :param is_last: the answer is complete with it.
    """

    data: bytes
    is_last: bool


def pieces(service: Service, request: ask.Request) -> Iterator[Piece]:
    """Run a request. Return its answer, whose pieces are made when they are needed.

    :raises diskyard.errors.DiskyardError: any error of the verb, even between two pieces.
    """
    with translated(BY_REQUEST[type(request)]):
        if isinstance(request, ask.ListImages):
            yield from _page(service, request)
            return
        answer: Any = run_unwatched(service, request)
        if isinstance(answer, list):
            yield from _joined(b"[", (msgspec.json.encode(item) for item in answer), lambda: b"]")
        else:
            yield Piece(msgspec.json.encode(answer), is_last=True)


def _page(service: Service, request: ask.ListImages) -> Iterator[Piece]:
    """An ImagePage as msgspec writes it. The fields of the page are known once its images are."""
    next_cursor: str | None = None

    def images() -> Iterator[ImageInfo]:
        nonlocal next_cursor
        repo = service.connections.get(request.repository_id)
        for part in list_images_in_parts(repo, request, FEW_IMAGES):
            yield from part.images
            next_cursor = part.next_cursor

    encoded = (msgspec.json.encode(image) for image in images())
    end = b'],"nextCursor":%s}'
    yield from _joined(b'{"images":[', encoded, lambda: end % msgspec.json.encode(next_cursor))


def _joined(begin: bytes, items: Iterable[bytes], end: Callable[[], bytes]) -> Iterator[Piece]:
    """Items with commas between them, and the text before and after them."""
    data, comma = bytearray(begin), b""
    for item in items:
        give_way()
        if len(data) >= PIECE_BYTES:
            yield Piece(bytes(data), is_last=False)
            data.clear()
        data += comma + item
        comma = b","
    yield Piece(bytes(data + end()), is_last=True)
