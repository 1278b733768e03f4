"""``diskyard snapshot``: Snapshots, which never change."""

from __future__ import annotations

import click

from diskyard.cli.base import Group, describing, new_id, no_wait, strategy
from diskyard.cli.complete import complete_image
from diskyard.cli.find import described, find, require_free_name
from diskyard.cli.output import answer
from diskyard.cli.session import auto_fix, open_yard
from diskyard.cli.shared import add_shared_commands


@click.group("snapshot", cls=Group)
def snapshot() -> None:
    """Snapshots: images that never change. See also 'diskyard image'."""


add_shared_commands(snapshot, "snapshot")


@snapshot.command(example="diskyard snapshot create fast/web --name web-installed")
@click.argument("disk", shell_complete=complete_image)
@describing
@strategy
@new_id
@no_wait
def create(
    disk: str,
    name: str | None,
    description: str | None,
    labels: dict[str, str],
    strategy: str | None,
    new_image_id: str | None,
    no_wait: bool,
) -> None:
    """Keep what a disk holds now as a snapshot; prints its id."""
    with open_yard(no_wait) as yard:
        options = {
            "strategy": strategy,
            "new_image_id": new_image_id,
            "auto_fix": auto_fix(yard, no_wait),
        }
        found = find(yard, disk, "virtual_disk")
        require_free_name(yard, found.repo_id, name, [new_image_id])
        user_data = described(name, description, labels)
        created = yard.create_snapshot(found.repo_id, found.image_id, user_data, options)
        answer({"imageId": created}, created)
