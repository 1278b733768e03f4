"""``diskyard disk``: VirtualDisks, which can be written to."""

from __future__ import annotations

import click

from diskyard.cli.base import Group, describing, new_id, no_wait, optimize, rate, strategy
from diskyard.cli.complete import complete_image, complete_repo
from diskyard.cli.find import described, find, require_free_name
from diskyard.cli.output import answer
from diskyard.cli.session import auto_fix, open_yard, refuse
from diskyard.cli.shared import add_shared_commands
from diskyard.cli.values import NEW_SIZE, SIZE, human_size


@click.group("disk", cls=Group)
def disk() -> None:
    """Disks: images that guests can write to. See also 'diskyard image'."""


add_shared_commands(disk, "virtual_disk")


@disk.command(
    example="diskyard disk create fast 10G --name web\n"
    "diskyard disk create fast --from fast/web-installed --name web-1"
)
@click.argument("repo", shell_complete=complete_repo)
@click.argument("size", type=SIZE, required=False)
@click.option(
    "--from", "base", metavar="SNAPSHOT", shell_complete=complete_image, help="Start with its bytes."
)
@describing
@strategy
@optimize
@rate
@new_id
@no_wait
def create(
    repo: str,
    size: int | None,
    base: str | None,
    name: str | None,
    description: str | None,
    labels: dict[str, str],
    strategy: str | None,
    optimize_now: bool,
    rate: int,
    new_image_id: str | None,
    no_wait: bool,
) -> None:
    """Create a disk of SIZE, empty or with a snapshot's bytes; prints its id.

    With --from, SIZE defaults to the snapshot's size.
    """
    options = {
        "strategy": strategy,
        "optimize_now": optimize_now,
        "rate_limit": rate,
        "new_image_id": new_image_id,
    }
    with open_yard(no_wait) as yard:
        options["auto_fix"] = auto_fix(yard, no_wait)
        user_data = described(name, description, labels)
        require_free_name(yard, repo, name, [new_image_id])
        found = None if base is None else find(yard, base, "snapshot", prefer=repo)
        if size is None:
            if found is None:
                raise refuse("A disk needs a size.", "Give SIZE, such as 10G, or --from SNAPSHOT.")
            size = found.info.size_bytes
        base_id = None if found is None else found.image_id
        created = yard.create_virtual_disk(repo, size, base_id, user_data, options)
        answer({"imageId": created}, created)


@disk.command(example="diskyard disk extend fast/web +20G")
@click.argument("disk", shell_complete=complete_image)
@click.argument("size", type=NEW_SIZE, metavar="[+]SIZE")
def extend(disk: str, size: tuple[int, bool]) -> None:
    """Make a disk SIZE large, or larger by +SIZE; the new part reads as zeros."""
    with open_yard() as yard:
        found = find(yard, disk, "virtual_disk")
        new_size = size[0] + (found.info.size_bytes if size[1] else 0)
        yard.extend_virtual_disk(found.repo_id, found.image_id, new_size)
        answer(
            {"imageId": found.image_id, "sizeBytes": new_size},
            f"{found.title} is {human_size(new_size)} large.",
        )


@disk.command(example="diskyard disk revert fast/web fast/web-installed")
@click.argument("disk", shell_complete=complete_image)
@click.argument("snapshot", shell_complete=complete_image)
@no_wait
def revert(disk: str, snapshot: str, no_wait: bool) -> None:
    """Give a disk a snapshot's bytes and size; it keeps its id. Its current bytes are lost."""
    with open_yard(no_wait) as yard:
        found = find(yard, disk, "virtual_disk")
        base = find(yard, snapshot, "snapshot", prefer=found.repo_id)
        options = {"auto_fix": auto_fix(yard, no_wait)}
        yard.revert_virtual_disk(found.repo_id, found.image_id, base.image_id, options)
        answer({"imageId": found.image_id}, f"{found.title} now holds what {base.title} holds.")
