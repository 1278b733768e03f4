"""``diskyard image import`` and ``export``: files of the host that runs the verb."""

from __future__ import annotations

import os

import click

from diskyard.cli.base import Command, describing, new_id, no_wait, optimize, rate, strategy
from diskyard.cli.complete import complete_image, complete_repo
from diskyard.cli.find import described, find, require_free_name
from diskyard.cli.output import answer
from diskyard.cli.session import auto_fix, open_yard, wait

_FORMATS = click.Choice(["raw", "qcow2", "vmdk", "vdi", "vhdx"])
_format = click.option(
    "--format", "format_name", type=_FORMATS, required=True, help="The file's format; it is never guessed."
)
_file = click.argument("file", type=click.Path())


@click.command(
    "import",
    cls=Command,
    example="diskyard image import fast debian.qcow2 --format qcow2 --name debian",
)
@click.argument("repo", shell_complete=complete_repo)
@_file
@_format
@describing
@click.option("--snapshot", "as_snapshot", is_flag=True, help="Make it a snapshot instead of a disk.")
@strategy
@optimize
@rate
@new_id
@click.option(
    "--force",
    is_flag=True,
    help="Import it even if a running QEMU has it open for writing; you vouch that its writes are in it.",
)
@no_wait
def import_(
    repo: str,
    file: str,
    format_name: str,
    name: str | None,
    description: str | None,
    labels: dict[str, str],
    as_snapshot: bool,
    strategy: str | None,
    optimize_now: bool,
    rate: int,
    new_image_id: str | None,
    force: bool,
    no_wait: bool,
) -> None:
    """Make an image of REPO from a FILE; prints its id.

    If a daemon does the work, FILE is on the daemon's host, in one of its transfer directories.
    Root and the daemon's user may give any file that they can open: the command hands it over,
    open. The file must not change until the import is done. A file that refers to other files,
    contradicts itself, or is open for writing in a running QEMU is refused.
    """
    options = {
        "strategy": strategy,
        "optimize_now": optimize_now,
        "rate_limit": rate,
        "new_image_id": new_image_id,
        "as_": "snapshot" if as_snapshot else None,
        "force": force,
    }
    with open_yard(no_wait) as yard:
        options["auto_fix"] = auto_fix(yard, no_wait)
        user_data = described(name, description, labels)
        require_free_name(yard, repo, name, [new_image_id])
        made = yard.import_image(repo, os.path.abspath(file), format_name, user_data, options)
        answer({"imageId": made}, made)


@click.command("export", cls=Command, example="diskyard image export fast/web-1 web-1.vmdk --format vmdk")
@click.argument("image", shell_complete=complete_image)
@_file
@_format
@rate
def export(image: str, file: str, format_name: str, rate: int) -> None:
    """Write an image to a new FILE, which gets its name when it is complete and durable.

    If a daemon does the work, FILE is on the daemon's host, in one of its transfer directories.
    Root and the daemon's user may give any path: the command hands its directory over, open.
    """
    with open_yard() as yard:
        found = find(yard, image)
        path = os.path.abspath(file)
        task = yard.export_image(found.repo_id, found.image_id, path, format_name, {"rate_limit": rate})
        wait(yard)
        answer(yard.get_task(task.task_id), f"{found.title} is written to {path}.")
