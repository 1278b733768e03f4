"""``diskyard repo``: repositories, their space, and what they need."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from diskyard.cli.base import Group, rate, wants_json
from diskyard.cli.complete import complete_repo
from diskyard.cli.fixing import How, choose_fixes, names_of, print_fixes, run_fixes
from diskyard.cli.output import answer, note, print_fields, print_json, print_table, say
from diskyard.cli.session import open_yard, refuse
from diskyard.cli.values import human_size, key_values

if TYPE_CHECKING:
    from diskyard.model.results import RepositoryInfo

_FOUND_SOMETHING = 1
_TYPES = click.Choice(["clean", "optimize", "merge", "mend"])
_repo = click.argument("repo", shell_complete=complete_repo)
_parameters = click.argument("parameters", nargs=-1, metavar="[KEY=VALUE]...", callback=key_values)
_types = click.option("--type", "types", type=_TYPES, multiple=True, help="Only fixes of this type.")


@click.group("repo", cls=Group, short_help="Repositories, their space and fixes.")
def repo() -> None:
    """Repositories: create, connect, check and fix them, and see what uses their space."""


def _parsed(parameters: dict[str, str]) -> dict[str, object]:
    """Parameters as people type them: a relative path becomes absolute, true and false are values."""
    found: dict[str, object] = {**parameters}
    if "path" in parameters:
        found["path"] = os.path.abspath(parameters["path"])
    shared = parameters.get("sharedByOneHost")
    if shared in ("true", "false"):
        found["sharedByOneHost"] = shared == "true"
    return found


@repo.command(
    example="diskyard repo create localfs-1.0 path=/srv/images\n"
    "diskyard repo create localfs-1.0 path=/srv/shared owner=vmadmin group=images mode=0751"
)
@click.argument("format_name", metavar="FORMAT")
@_parameters
def create(format_name: str, parameters: dict[str, str]) -> None:
    """Make an empty repository in an empty location.

    FORMAT is a repository format, such as localfs-1.0, which takes path=DIRECTORY. On a file system
    that is not known to be local, sharedByOneHost=true says that no other host uses it. owner=USER,
    group=GROUP and mode=OCTAL say who may use the files; mode is that of the directories which guests
    pass, by default 0711. A daemon that is called over TLS makes repositories only inside the
    directories that its configuration allows.
    """
    with open_yard() as yard:
        yard.create_storage_repository(format_name, _parsed(parameters))
        answer(None, "The repository is created. Connect it with 'diskyard repo connect'.")


@repo.command(
    example="diskyard repo connect fast localfs-1.0 path=/srv/images\n"
    "diskyard repo connect restored localfs-1.0 path=/srv/copy-of-images --new-identity"
)
@click.argument("repo")
@click.argument("format_name", metavar="FORMAT")
@_parameters
@click.option(
    "--new-identity",
    is_flag=True,
    help="The location has a byte copy of a repository: first give it an identity of its own, so that it "
    "can be used beside its original. What the original keeps for others, and its attachments, are left "
    "out.",
)
def connect(repo: str, format_name: str, parameters: dict[str, str], new_identity: bool) -> None:
    """Connect a repository on this host under a name of your choice, REPO.

    The parameters say where it is: path=DIRECTORY, and sharedByOneHost=true if it was created with that.
    """
    with open_yard() as yard:
        where = {**_parsed(parameters), **({"newMarker": True} if new_identity else {})}
        yard.connect_storage_repository(repo, format_name, where)
        answer(None, f"{repo} is connected.")


@repo.command(example="diskyard repo disconnect fast")
@_repo
def disconnect(repo: str) -> None:
    """Forget a connection; the repository itself stays as it is."""
    with open_yard() as yard:
        yard.disconnect_storage_repository(repo)
        answer(None, f"{repo} is disconnected.")


@repo.command(example="diskyard repo remove fast")
@_repo
def remove(repo: str) -> None:
    """Remove a repository that holds no image."""
    with open_yard() as yard:
        yard.remove_storage_repository(repo)
        answer(None, f"{repo} is removed.")


@repo.command("list", example="diskyard repo list")
def list_() -> None:
    """List the connected repositories with their space."""
    with open_yard() as yard:
        found = yard.list_storage_repositories()
    if wants_json():
        print_json(found)
        return
    columns = ["REPO", "FORMAT", ">USED", ">FREE", ">PROVISIONED", "~HEALTH", "~PLACE"]
    print_table(
        columns,
        [
            (
                info.repo_id,
                info.repo_format,
                human_size(info.used_bytes),
                human_size(info.free_bytes),
                human_size(info.provisioned_bytes),
                info.health,
                " ".join(f"{key}={value}" for key, value in info.connection_parameters.items()),
            )
            for info in found
        ],
    )


@repo.command(example="diskyard repo usage fast")
@click.argument("repo", required=False, shell_complete=complete_repo)
def usage(repo: str | None) -> None:
    """Show what uses the space of a REPO, or of all; the lines above 'used' add up to it."""
    with open_yard() as yard:
        if repo is not None and repo not in yard.connected():
            yard.check_storage_repository(repo)  # refuses an unknown repoId, with the API's own error
        found = [info for info in yard.list_storage_repositories() if repo in (None, info.repo_id)]
    if wants_json():
        print_json(found if repo is None else found[0])
        return
    for number, info in enumerate(found):
        if number:
            say("")
        _print_usage(info)


def _print_usage(info: RepositoryInfo) -> None:
    say(f"{info.repo_id} ({info.repo_format}, {info.health})")
    if info.used_bytes is None:
        return
    lines = (
        ("images", info.strong_bytes),
        ("being built", info.building_bytes),
        ("until merged ('repo fix --type merge')", info.mergeable_bytes),
        ("removed, but needed by others", info.retained_bytes),
        ("until cleaned ('repo fix --type clean')", info.reclaimable_bytes),
        ("used", info.used_bytes),
        ("free", info.free_bytes),
        ("capacity of the storage", info.capacity_bytes),
        ("promised to images (their sizes)", info.provisioned_bytes),
    )
    print_fields((f"  {name}", f"{human_size(size):>9}  {size:>18,} B") for name, size in lines)


@repo.command(example="diskyard repo check fast\ndiskyard repo check fast --deep --exit-code  # for cron")
@_repo
@click.option("--deep", is_flag=True, help="Read every volume's metadata and both replicas of the log.")
@_types
@click.option("--exit-code", is_flag=True, help="Exit with 1 if anything is listed.")
@click.pass_context
def check(context: click.Context, repo: str, deep: bool, types: tuple[str, ...], exit_code: bool) -> None:
    """List the fixes that a repository needs, and the images that no fix can mend.

    It changes nothing, except that --deep records the damage that it finds. No fix is urgent.
    """
    with open_yard() as yard:
        fixes = yard.check_storage_repository(repo, {"deep": deep, "types": types or None})
        names = {} if wants_json() else names_of(yard, repo, fixes)
    if wants_json():
        print_json(fixes)
    elif fixes:
        print_fixes(repo, fixes, names)
    else:
        note(f"{repo} needs no fix.")
    if exit_code and fixes:
        context.exit(_FOUND_SOMETHING)


@repo.command(
    example="diskyard repo fix fast\ndiskyard repo fix fast --type merge --rate 100M\n"
    "diskyard repo fix fast mend-1f3a"
)
@_repo
@click.argument("fix_ids", nargs=-1, metavar="[FIX-ID]...")
@click.option("--all", "everything", is_flag=True, help="Run all that can run; the default without a FIX-ID.")
@_types
@click.option("--deep", is_flag=True, help="Check as 'repo check --deep' does.")
@rate
@click.option("--first", is_flag=True, help="Run them before all tasks that wait on this host.")
@click.option(
    "--force",
    is_flag=True,
    help="Run a FIX-ID that says what force does: you vouch for what it cannot know.",
)
def fix(
    repo: str,
    fix_ids: tuple[str, ...],
    everything: bool,
    types: tuple[str, ...],
    deep: bool,
    rate: int,
    first: bool,
    force: bool,
) -> None:
    """Run fixes until no runnable one is listed; then show those that wait, with the reason.

    A FIX-ID is one that 'diskyard repo check' lists, or its first characters.
    """
    if everything and fix_ids:
        raise refuse("Both --all and a FIX-ID are given.", "Leave one of them out.")
    if force and not fix_ids:
        raise refuse("--force needs a FIX-ID.", "Name the fix: you vouch for what it cannot know.")
    how = How(types, deep, rate, first, force)
    with open_yard() as yard:
        run_fixes(yard, repo, choose_fixes(yard, repo, fix_ids, how), how)
