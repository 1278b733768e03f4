"""How ``list`` prints images: some thousands at a time, however many there are."""

from __future__ import annotations

from collections.abc import Iterator

import click

from diskyard import errors
from diskyard.cli.base import wants_json
from diskyard.cli.find import PAGE, Found, Kind, images_of, name_of
from diskyard.cli.output import on_terminal, print_table
from diskyard.cli.session import open_yard
from diskyard.cli.values import human_size, json_text

KINDS = {"virtual_disk": "disk", "snapshot": "snapshot"}
_COLUMNS = ["~IMAGE", "KIND", ">SIZE", ">OWN", ">SHARED", "STATUS", "CREATED", "ID"]
_SHORT_ID = 8
_DATE, _MINUTE = len("2026-01-31"), len("2026-01-31T12:00")


def list_images(repo: str | None, status: str | None, kind: Kind | None) -> None:
    """Print the images of a repository, or of all connected ones.

    With more than :data:`~diskyard.cli.find.PAGE` images, each page is printed as soon as it is known, sorted
    by name within the page.

    :raises diskyard.errors.DiskyardError: a repository could not be listed; the others were.
    """
    printed = _Printed()
    due: list[Found] = []
    failed: errors.DiskyardError | None = None
    with open_yard() as yard:
        for repo_id in list(yard.connected()) if repo is None else [repo]:
            try:
                for info in images_of(yard, repo_id, kind=kind, status=status):
                    due.append(Found(repo_id, info))
                    if len(due) == PAGE:
                        printed.go_on(due)
                        due.clear()
            except errors.DiskyardError as error:
                failed = error
    if failed is None or repo is None or printed.begun:
        printed.end(due)
    if failed is not None:
        raise failed


class _Printed:
    """A list that is printed piece by piece: one table, or one JSON value on one line.

    :ivar begun: whether a part of it has been printed.
    """

    def __init__(self) -> None:
        self.begun = False

    def go_on(self, images: list[Found]) -> None:
        """Print some more images. An empty list is printed only if there are no images at all."""
        if not wants_json():
            _print_rows(images, heading=not self.begun)
        else:
            items = ",".join(map(json_text, _plain(images)))
            click.echo(("," if self.begun else "[") + items, nl=False)
        self.begun = True

    def end(self, images: list[Found]) -> None:
        """Print the last of it."""
        if images or not self.begun:
            self.go_on(images)
        if wants_json():
            click.echo("]")


def _plain(images: list[Found]) -> Iterator[dict[str, object]]:
    import msgspec

    return ({"repoId": image.repo_id, **msgspec.to_builtins(image.info)} for image in images)


def _print_rows(images: list[Found], *, heading: bool) -> None:
    images.sort(
        key=lambda image: (image.repo_id, name_of(image.info.user_data) or "~", image.info.created_at)
    )
    print_table(
        _COLUMNS,
        [
            (
                f"{image.repo_id}/{name_of(image.info.user_data) or '-'}",
                KINDS[image.info.kind],
                human_size(image.info.size_bytes),
                human_size(image.info.exclusive_bytes),
                human_size(image.info.shared_bytes),
                image.info.status + (", attached" if image.info.attachments else ""),
                image.info.created_at[: _DATE if on_terminal() else _MINUTE].replace("T", " "),
                image.image_id[:_SHORT_ID] if on_terminal() else image.image_id,
            )
            for image in images
        ],
        heading=heading,
    )
