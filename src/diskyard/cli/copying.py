"""``copy`` of images, disks and snapshots."""

from __future__ import annotations

import click

from diskyard.cli.base import Group, describing, new_id, no_wait, optimize, rate, strategy
from diskyard.cli.complete import complete_image, complete_repo
from diskyard.cli.find import Kind, described, find, require_free_name
from diskyard.cli.output import answer
from diskyard.cli.session import auto_fix, open_yard

_track = click.option(
    "--track", is_flag=True, help="Keep the freeze point, so that the next difference is quick."
)


def add_copy(group: Group, word: str, kind: Kind | None) -> None:
    """Add the command to a group, for images of one kind or of any."""
    one = "an image" if kind is None else f"a {word}"

    @group.command(
        "copy",
        help=f"Copy {one} to a REPO, whole or as the difference to a base there; prints the "
        "copy's id.\n\nThe copy gets the name that is given here, or none. The copy of a snapshot has "
        "the same id; if REPO has it already, nothing is done.",
        example=f"diskyard {word} copy fast/web backup --name monday\n"
        f"diskyard {word} copy fast/web backup --base backup/monday --name tuesday",
    )
    @click.argument("image", shell_complete=complete_image)
    @click.argument("repo", shell_complete=complete_repo)
    @click.option("--base", shell_complete=complete_image, help="Store only the difference to this image.")
    @describing
    @click.option("--snapshot", "as_snapshot", is_flag=True, help="Make the copy of a disk a snapshot.")
    @_track
    @strategy
    @optimize
    @rate
    @new_id
    @no_wait
    def copy(
        image: str,
        repo: str,
        base: str | None,
        name: str | None,
        description: str | None,
        labels: dict[str, str],
        as_snapshot: bool,
        track: bool,
        strategy: str | None,
        optimize_now: bool,
        rate: int,
        new_image_id: str | None,
        no_wait: bool,
    ) -> None:
        with open_yard(no_wait) as yard:
            source = find(yard, image, kind, prefer=image.rpartition("/")[0])
            base_id = None if base is None else find(yard, base, prefer=repo).image_id
            user_data = described(name, description, labels)
            require_free_name(yard, repo, name, [source.image_id, new_image_id])
            options = {
                "strategy": strategy,
                "optimize_now": optimize_now,
                "rate_limit": rate,
                "new_image_id": new_image_id,
                "as_": "snapshot" if as_snapshot else None,
                "track_changes": track,
                "auto_fix": auto_fix(yard, no_wait),
                "image_hints": {source.image_id: source.repo_id},
            }
            copied = yard.copy_image(repo, source.image_id, base_id, user_data, options)
            answer({"imageId": copied}, copied)
