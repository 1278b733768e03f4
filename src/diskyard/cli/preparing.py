"""``diskyard image prepare`` and ``teardown``: images that guests use."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from diskyard.cli.base import Command, no_wait, wants_json
from diskyard.cli.complete import complete_image
from diskyard.cli.find import Found, find
from diskyard.cli.output import answer, note, print_fields, print_json, say, say_lines
from diskyard.cli.session import Interrupted, auto_fix, open_yard, refuse
from diskyard.cli.values import json_text

if TYPE_CHECKING:
    from diskyard.client import Diskyard
    from diskyard.model.results import Attached

_owner = click.option("--owner", help="The guest that uses it; each guest has its own attachment.")


@click.command(
    cls=Command,
    example="diskyard image prepare fast/web-1\n"
    "diskyard image prepare fast/web-1 --format libvirt\n"
    "diskyard image prepare fast/web-1 --qmp /run/web-1/monitor\n"
    "diskyard image prepare fast/web-installed --serve nbd",
)
@click.argument("image", shell_complete=complete_image)
@click.option("--read-only", is_flag=True, help="Attach it read-only; a snapshot always is.")
@_owner
@click.option(
    "--serve", type=click.Choice(["nbd"]), help="Serve it, print its URI, and tear it down on Ctrl-C."
)
@click.option(
    "--qmp",
    metavar="PATH",
    help="The guest runs with what this command printed, and this is a monitor of its QEMU: snapshots, "
    "copies and exports then work while it runs.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "blockdev", "libvirt"]),
    help="json: everything; blockdev: for QEMU's blockdev-add; libvirt: a <disk> element.",
)
def prepare(
    image: str, read_only: bool, owner: str | None, serve: str | None, qmp: str | None, form: str | None
) -> None:
    """Attach an image on this host, and print what QEMU or libvirt needs to open it.

    Until 'diskyard image teardown' no other host can write to it, and it cannot be removed, extended
    or reverted.
    """
    if serve is not None and form is not None and form != "json":
        raise refuse("An image that is served is opened by its URI.", "Leave --format out.")
    if qmp is not None and (serve is not None or read_only):
        raise refuse("--qmp is for a guest that writes to the disk.", "Leave --serve and --read-only out.")
    live = None if qmp is None else {"qmp": os.path.abspath(qmp)}
    options = {"read_only": True if read_only else None, "owner": owner, "serve": serve, "live": live}
    with open_yard() as yard:
        found = find(yard, image)
        if serve is not None:
            _serve(yard, found, options, owner, form)
            return
        attached = yard.prepare_image(found.repo_id, found.image_id, options)
        if qmp is not None and form is None and not wants_json():
            note(f"{found.title} can be snapshotted, copied and exported while its guest runs.")
            return
        _print(attached, found, form)


def _print(attached: Attached, found: Found, form: str | None) -> None:
    if form == "json" or (form is None and wants_json()):
        print_json(attached)
    elif form == "blockdev":
        print_json(attached.blockdev)
    elif form == "libvirt":
        _print_xml(attached)
    else:
        blockdev = json_text(attached.blockdev)
        print_fields(
            [
                ("image", found.title),
                ("mode", attached.mode),
                ("owner", attached.owner),
                ("path", attached.path),
                ("format", attached.format),
                ("QEMU", f"json:{blockdev}"),
            ]
        )
        say("libvirt")
        _print_xml(attached)


def _print_xml(attached: Attached) -> None:
    if wants_json():
        print_json({"libvirtXml": attached.libvirt_xml})
    else:
        say_lines(attached.libvirt_xml.rstrip())


def _serve(
    yard: Diskyard, found: Found, options: Mapping[str, object], owner: str | None, form: str | None
) -> None:
    """Serve until Ctrl-C or SIGTERM. That is the normal end, and counts as success."""
    try:
        attached = yard.prepare_image(found.repo_id, found.image_id, options)
        if form == "json" or wants_json():
            print_json(attached)
        else:
            say(attached.nbd_uri or "")
            note(f"Serving {found.title}; Ctrl-C ends it.")
        while True:
            signal.pause()
    except Interrupted:
        yard.teardown_image(found.repo_id, found.image_id, {"owner": owner})


@click.command(cls=Command, example="diskyard image teardown fast/web-1")
@click.argument("image", shell_complete=complete_image)
@_owner
@click.option("--host", "host_id", help="The host that has the attachment; default: this one.")
@click.option(
    "--force",
    is_flag=True,
    help="End it even if it may still be in use, or another program left an overlay; you vouch that this is "
    "safe.",
)
@no_wait
def teardown(image: str, owner: str | None, host_id: str | None, force: bool, no_wait: bool) -> None:
    """End an attachment; if there is none, nothing happens."""
    options = {"owner": owner, "host_id": host_id, "force": force}
    with open_yard(no_wait) as yard:
        options["auto_fix"] = auto_fix(yard, no_wait)
        found = find(yard, image)
        before = yard.get_image_info(found.repo_id, found.image_id).attachments
        yard.teardown_image(found.repo_id, found.image_id, options)
        after = yard.get_image_info(found.repo_id, found.image_id).attachments
        changed = len(after) < len(before)
        left = ", ".join(f"{item.owner} on {item.host_id}" for item in after)
        words = "is torn down" if changed else "was not attached for that owner on that host"
        still = f"; attached for: {left}" if left else ""
        answer({"imageId": found.image_id, "changed": changed}, f"{found.title} {words}{still}.")
