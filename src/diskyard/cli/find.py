"""Finding the image that a person means: REPO/NAME, REPO/ID, an id or its beginning, or a bare NAME."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from diskyard import errors
from diskyard.cli.session import refuse
from diskyard.cli.values import shown

if TYPE_CHECKING:
    from diskyard.client import Diskyard
    from diskyard.model.results import ImageInfo

Kind = Literal["virtual_disk", "snapshot"]
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PREFIX = re.compile(r"[0-9a-f][0-9a-f-]{3,}")
PAGE = 10_000
_NAME_LIMIT_BYTES = 255
_SHOWN_CANDIDATES = 10


@dataclass(frozen=True, slots=True)
class Found:
    """An image and the connected repository that it was found in."""

    repo_id: str
    info: ImageInfo

    @property
    def image_id(self) -> str:
        """The image's id."""
        return self.info.image_id

    @property
    def title(self) -> str:
        """REPO/NAME, or REPO/ID if the image has no name."""
        return f"{self.repo_id}/{name_of(self.info.user_data) or self.image_id}"


def name_of(user_data: Any) -> str | None:
    """The name in an image's userData, in which anybody may have written anything."""
    name = user_data.get("name") if isinstance(user_data, dict) else None
    return name if isinstance(name, str) and name else None


def images_of(
    yard: Diskyard, repo_id: str, *, kind: Kind | None = None, status: str | None = None
) -> Iterator[ImageInfo]:
    """All images of a repository, however many pages they fill."""
    cursor: str | None = None
    while True:
        page = yard.list_images(repo_id, kind=kind, status=status, limit=PAGE, cursor=cursor)
        yield from page.images
        cursor = page.next_cursor
        if cursor is None:
            return


def find(yard: Diskyard, text: str, kind: Kind | None = None, prefer: str | None = None) -> Found:
    """The one image that is meant.

    :param kind: what it must be. Images of the other kind do not count, unless there is no other: then
        the error says so.
    :param prefer: the repository to take the image from if several have it under one id, as with a Snapshot
        and its copies. For verbs to which these are the same.
    :raises diskyard.errors.ImageNotFound: no image is meant.
    :raises diskyard.errors.InvalidParameter: several are meant; the message lists them.
    """
    candidates, silent = _candidates(yard, text)
    fitting = [found for found in candidates if kind in (None, found.info.kind)]
    if candidates and not fitting:
        _refuse_kind(candidates[0], kind)
    if prefer is not None and len({found.image_id for found in fitting}) == 1:
        fitting = [next((f for f in fitting if f.repo_id == prefer), fitting[0])]
    if not fitting:
        raise _not_found(yard, text, silent)
    if len(fitting) > 1:
        listed = ", ".join(f"{found.title} ({found.image_id})" for found in fitting[:_SHOWN_CANDIDATES])
        more = ", …" if len(fitting) > _SHOWN_CANDIDATES else ""
        raise refuse(
            f"{shown(text)!r} is ambiguous; it may be {listed}{more}.", "Name one as REPO/NAME or REPO/ID."
        )
    return fitting[0]


def _refuse_kind(found: Found, kind: Kind | None) -> None:
    if kind == "snapshot":
        raise errors.NotASnapshot(f"{found.title} is a VirtualDisk.", imageId=found.image_id)
    raise errors.NotAVirtualDisk(f"{found.title} is a Snapshot.", imageId=found.image_id)


def _not_found(yard: Diskyard, text: str, silent: Sequence[str]) -> errors.ImageNotFound:
    searched = ", ".join(yard.connected()) or "none is connected"
    silence = f" These repositories did not answer: {'; '.join(silent)}." if silent else ""
    return errors.ImageNotFound(
        f"No image has the name or id {shown(text)!r:.300} (repositories: {searched}).{silence}",
        advice="See 'diskyard image list', or connect the repository that holds it.",
    )


def _candidates(yard: Diskyard, text: str) -> tuple[list[Found], list[str]]:
    """The images that may be meant, in the repository before a slash or in any; and silent repositories."""
    connected = yard.connected()
    found: list[Found] = []
    for repo_id in connected:
        if text.startswith(f"{repo_id}/"):
            found += _matches(yard, repo_id, text[len(repo_id) + 1 :])
    if found:
        return _closest(found, text), []
    silent = []
    for repo_id in _places(connected):
        try:
            found += _matches(yard, repo_id, text)
        except errors.DiskyardError as error:
            silent.append(f"{repo_id} ({error.message})")
    return _closest(found, text), silent


def _places(connected: Mapping[str, Any]) -> list[str]:
    """One repoId for each location, so that one that is connected twice is searched once."""
    seen: list[Any] = []
    names = []
    for repo_id, place in connected.items():
        if place not in seen:
            seen.append(place)
            names.append(repo_id)
    return names


def _matches(yard: Diskyard, repo_id: str, text: str) -> list[Found]:
    if _ID.fullmatch(text):
        try:
            return [Found(repo_id, yard.get_image_info(repo_id, text))]
        except errors.ImageNotFound:
            pass  # it may still be a name
    prefix = text if _PREFIX.fullmatch(text) else None
    return [
        Found(repo_id, info)
        for info in images_of(yard, repo_id)
        if name_of(info.user_data) == text or (prefix is not None and info.image_id.startswith(prefix))
    ]


def _closest(found: list[Found], text: str) -> list[Found]:
    """The best matches: a whole id counts before a name, and a name before the beginning of an id."""

    def distance(candidate: Found) -> int:
        if text.endswith(candidate.image_id):
            return 0
        name = name_of(candidate.info.user_data)
        return 1 if name is not None and text in (name, f"{candidate.repo_id}/{name}") else 2

    least = min(map(distance, found), default=0)
    return [candidate for candidate in found if distance(candidate) == least]


# -- names for images ------------------------------------------------------------------


def described(name: str | None, description: str | None, labels: Mapping[str, str]) -> dict[str, Any]:
    """The userData of a new image."""
    data: dict[str, Any] = {}
    if name is not None:
        require_name(name)
        data["name"] = name
    if description is not None:
        data["description"] = description
    if labels:
        data["labels"] = dict(labels)
    return data


def require_name(name: str) -> None:
    """Refuse a name that cannot be typed or seen.

    :raises diskyard.errors.InvalidParameter: it is empty, too long, or has control characters.
    """
    if not name.strip() or not name.isprintable() or len(name.encode()) > _NAME_LIMIT_BYTES:
        raise refuse("A name is 1-255 bytes of text that can be seen.", "Choose another name.")


def require_free_name(
    yard: Diskyard, repo_id: str, name: str | None, except_ids: Sequence[str | None] = ()
) -> None:
    """Refuse a name that another image of the repository has.

    :param except_ids: images that may have it: the one that is being named, or made again.
    """
    if name is None:
        return
    for info in images_of(yard, repo_id):
        if name_of(info.user_data) == name and info.image_id not in except_ids:
            raise refuse(
                f"{repo_id} already has an image called {name!r} ({info.image_id}).",
                "Choose another name, or rename that one with 'diskyard image set'.",
            )
