"""``diskyard image``: images of any kind."""

from __future__ import annotations

from typing import Any

import click

from diskyard.cli.base import Group, describing, strategy, wants_json
from diskyard.cli.complete import complete_image
from diskyard.cli.find import Found, find, require_free_name, require_name
from diskyard.cli.moving import export, import_
from diskyard.cli.output import answer, print_fields, print_json
from diskyard.cli.preparing import prepare, teardown
from diskyard.cli.session import open_yard, refuse
from diskyard.cli.shared import add_shared_commands


@click.group("image", cls=Group)
def image() -> None:
    """Images: disks and snapshots. Name them as REPO/NAME, or by an id or its first characters."""


add_shared_commands(image, None)
for _command in (import_, export, prepare, teardown):
    image.add_command(_command)


@image.command(example="diskyard image status fast/web")
@click.argument("image", shell_complete=complete_image)
def status(image: str) -> None:
    """Show whether an image is optimized, degraded or broken, and which task works on it."""
    with open_yard() as yard:
        found = find(yard, image)
        now = yard.get_image_status(found.repo_id, found.image_id)
    if wants_json():
        print_json(now)
        return
    done = f"{now.percent_complete} %" if now.percent_complete >= 0 else None
    print_fields(
        [
            ("image", found.title),
            ("status", now.status),
            ("last worked on by", now.host_id),
            ("stage", now.stage),
            ("done", done),
            ("last error", now.last_error),
            ("task", now.task_id),
        ]
    )


@image.command(
    "set",
    example="diskyard image set fast/web --name web-old --label os=debian\n"
    "diskyard image set fast/web --strategy performance",
)
@click.argument("image", shell_complete=complete_image)
@describing
@click.option("--unlabel", multiple=True, metavar="KEY", help="Remove a label.")
@click.option("--user-data", metavar="JSON", help="Replace all of the image's userData with this.")
@strategy
def set_(
    image: str,
    name: str | None,
    description: str | None,
    labels: dict[str, str],
    unlabel: tuple[str, ...],
    user_data: str | None,
    strategy: str | None,
) -> None:
    """Change an image's name, description, labels or strategy; the rest stays as it is."""
    describes = name is not None or description is not None or bool(labels) or bool(unlabel)
    if user_data is not None and describes:
        raise refuse("--user-data replaces what the other options change.", "Leave one of them out.")
    if user_data is None and not describes and strategy is None:
        raise refuse("No change is given.", "See 'diskyard image set --help'.")
    with open_yard() as yard:
        found = find(yard, image)
        data: Any = None
        if user_data is not None:
            data = _decoded(user_data)
        elif describes:
            data = _changed(found, name, description, labels, unlabel)
            require_free_name(yard, found.repo_id, name, [found.image_id])
        if user_data is not None or describes:
            options = {"if_revision": found.info.revision}
            yard.set_user_data(found.repo_id, found.image_id, data, options)
        if strategy is not None:
            yard.set_strategy(found.repo_id, found.image_id, strategy)
        answer({"imageId": found.image_id}, f"{found.title} is changed.")


def _decoded(text: str) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise refuse(
            f"--user-data is not JSON: {error}.", 'Quote it as one word: \'{"name": "web"}\'.'
        ) from error


def _changed(
    found: Found,
    name: str | None,
    description: str | None,
    labels: dict[str, str],
    unlabel: tuple[str, ...],
) -> dict[str, Any]:
    """The image's userData with the changes. What others keep there stays."""
    old = found.info.user_data
    if not isinstance(old, dict):
        raise refuse(f"The userData of {found.title} is not an object.", "Replace it with --user-data.")
    data = dict(old)
    if name is not None:
        require_name(name)
        data["name"] = name
    if description is not None:
        data["description"] = description
    known = data.get("labels")
    kept = {**known, **labels} if isinstance(known, dict) else dict(labels)
    for key in unlabel:
        kept.pop(key, None)
    if kept or "labels" in data:
        data["labels"] = kept
    return data
