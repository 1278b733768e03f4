"""Commands that images, disks and snapshots have in common: list, show, copy, remove."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from diskyard.cli.base import (
    Group,
    no_wait,
    rate,
    wants_json,
)
from diskyard.cli.complete import complete_image, complete_repo
from diskyard.cli.copying import add_copy
from diskyard.cli.find import Found, Kind, find
from diskyard.cli.listing import KINDS, list_images
from diskyard.cli.output import print_fields, print_json
from diskyard.cli.removing import remove_and_tell
from diskyard.cli.session import open_yard
from diskyard.cli.values import human_size

if TYPE_CHECKING:
    from diskyard.model.results import AttachmentInfo

_STATUSES = click.Choice(["optimized", "degraded", "broken"])


def add_shared_commands(group: Group, kind: Kind | None) -> None:
    """Add the commands to a group, for images of one kind or of any."""
    word = "image" if kind is None else KINDS[kind]
    _add_list(group, word, kind)
    _add_show(group, word, kind)
    add_copy(group, word, kind)
    _add_remove(group, word, kind)


def _add_list(group: Group, word: str, kind: Kind | None) -> None:
    @group.command(
        "list",
        help=f"List the {word}s of a REPO, or of all. OWN is what removing one would free.",
        example=f"diskyard {word} list fast",
    )
    @click.argument("repo", required=False, shell_complete=complete_repo)
    @click.option("--status", type=_STATUSES, help="Only images with this status.")
    def list_(repo: str | None, status: str | None) -> None:
        list_images(repo, status, kind)


def _builtins(value: object) -> dict[str, object]:
    import msgspec

    builtins: dict[str, object] = msgspec.to_builtins(value)
    return builtins


def _add_show(group: Group, word: str, kind: Kind | None) -> None:
    @group.command(
        "show",
        help=f"Show everything about one {word}.",
        example=f"diskyard {word} show fast/web",
    )
    @click.argument("image", shell_complete=complete_image)
    def show(image: str) -> None:
        with open_yard() as yard:
            found = find(yard, image, kind)
        if wants_json():
            print_json({"repoId": found.repo_id, **_builtins(found.info)})
        else:
            _show(found)


def _show(found: Found) -> None:
    info = found.info
    data = info.user_data if isinstance(info.user_data, dict) else {"userData": info.user_data}
    labels = data.get("labels")
    others = {key: value for key, value in data.items() if key not in ("name", "description", "labels")}
    print_fields(
        [
            ("image", found.title),
            ("id", info.image_id),
            ("kind", KINDS[info.kind]),
            ("description", data.get("description")),
            ("labels", _pairs(labels) if isinstance(labels, dict) else labels),
            ("other data", _pairs(others)),
            ("size", f"{human_size(info.size_bytes)} ({info.size_bytes:,} B)"),
            ("own", f"{human_size(info.exclusive_bytes)}, which removing it would free"),
            ("shared", f"{human_size(info.shared_bytes)}, which others read too"),
            ("status", info.status),
            ("strategy", info.strategy),
            ("created", info.created_at),
            ("captured", info.captured_at),
            ("revision", info.revision),
            ("tracking since", ", ".join(info.tracking)),
            *(("attached", _attached_words(at)) for at in info.attachments),
        ]
    )


def _attached_words(at: AttachmentInfo) -> str:
    words = f"{at.mode} for {at.owner} on {at.host_id} since {at.attached_at}"
    words += ", can be talked to" if at.live else ""
    return words + (", being moved to another volume" if at.switching else "")


def _pairs(pairs: dict[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in pairs.items())


def _add_remove(group: Group, word: str, kind: Kind | None) -> None:
    one = "an image" if kind is None else f"a {word}"

    @group.command(
        "remove",
        help=f"Remove {one}. Data that other images are based on stays until it is merged; the "
        "command says how much.",
        example=f"diskyard {word} remove fast/web --merge",
    )
    @click.argument("image", shell_complete=complete_image)
    @click.option(
        "--merge", is_flag=True, help="Merge the data that others need into them, and free the rest."
    )
    @rate
    @no_wait
    def remove(image: str, merge: bool, rate: int, no_wait: bool) -> None:
        with open_yard(no_wait) as yard:
            remove_and_tell(yard, find(yard, image, kind), merge=merge, rate=rate, no_wait=no_wait)
