"""Running fixes for people: until no runnable one is listed, with the outcome of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diskyard import errors
from diskyard.cli.base import wants_json
from diskyard.cli.find import name_of
from diskyard.cli.output import note, print_json, print_table, say
from diskyard.cli.session import refuse, wait
from diskyard.cli.values import human_size, shown

if TYPE_CHECKING:
    from diskyard.client import Diskyard
    from diskyard.model.fix import Fix

_RUNS_LIMIT = 3
_ROUNDS_LIMIT = 10_000


@dataclass(slots=True)
class Fixed:
    """The result of a run of fixes.

    :param ran: each fix with its outcome, in order.
    :param failed: the first error.
    :param left: the fixes that are listed afterwards.
    """

    ran: list[dict[str, Any]] = field(default_factory=list)
    failed: errors.DiskyardError | None = None
    left: list[Fix] = field(default_factory=list)


def names_of(yard: Diskyard, repo: str, fixes: Sequence[Fix]) -> dict[str, str]:
    """The names of the images that fixes are about, by their ids."""
    ids = sorted({fix.image_id for fix in fixes if fix.image_id is not None})
    found = yard.list_images(repo, image_ids=ids, limit=max(1, len(ids))).images if ids else ()
    return {info.image_id: name for info in found if (name := name_of(info.user_data)) is not None}


def _described(repo: str, fix: Fix, names: Mapping[str, str]) -> str:
    """What a fix does, with the image's name if it has one."""
    name = names.get(fix.image_id or "")
    if name is None or fix.image_id is None:
        return fix.description
    return fix.description.replace(f"image {fix.image_id}", f"{repo}/{name}")


def print_fixes(repo: str, fixes: Sequence[Fix], names: Mapping[str, str]) -> None:
    """Print a table of fixes; those that wait, with the reason."""
    columns = ["FIX", "~WHAT", ">FREES", ">MOVES", "~STATE"]
    print_table(
        columns,
        [
            (
                fix.fix_id,
                _described(repo, fix, names),
                _bytes(fix.frees_bytes),
                _bytes(fix.moves_bytes),
                state_of(fix),
            )
            for fix in fixes
        ],
    )


def _bytes(size: int | None) -> str:
    return "" if size is None else human_size(size)


def state_of(fix: Fix) -> str:
    """Whether a fix can run, or what it waits for."""
    from diskyard.model.fix import outlook  # not at the top: help texts do not need it

    return outlook(fix)


@dataclass(frozen=True, slots=True)
class How:
    """How fixes are found and run.

    :param types: only these types; all if empty.
    :param rate: bytes per second, 0 for no limit.
    :param first: before all tasks that wait on this host.
    :param force: also run a chosen fix that waits: delete a volume that another history of the
        repository may have made, release data kept for a copy that cannot be checked, or
        store a copy whole that waits for its base.
    """

    types: Sequence[str] = ()
    deep: bool = False
    rate: int = 0
    first: bool = False
    force: bool = False

    def check(self, yard: Diskyard, repo: str) -> list[Fix]:
        """The fixes that are listed."""
        options = {"deep": self.deep, "types": self.types or None}
        return yard.check_storage_repository(repo, options)


def choose_fixes(yard: Diskyard, repo: str, typed: Sequence[str], how: How) -> frozenset[str] | None:
    """The ids of the fixes that a person typed; None for all.

    :raises diskyard.errors.InvalidParameter: one is not listed, or cannot run now.
    """
    if not typed:
        return None
    listed = how.check(yard, repo)
    chosen = set()
    for text in typed:
        found = [fix for fix in listed if fix.fix_id.startswith(text)]
        found = [fix for fix in found if fix.fix_id == text] or found
        if len(found) != 1:
            problem = "not listed: it is done, or never existed" if not found else "the beginning of several"
            raise refuse(f"{shown(text)!r:.80} is {problem}.", f"See 'diskyard repo check {repo}'.")
        if not found[0].runnable and not how.force:
            raise refuse(
                f"{found[0].fix_id} cannot run now: {state_of(found[0])}.", "First do what it waits for."
            )
        chosen.add(found[0].fix_id)
    return frozenset(chosen)


def run_fixes(
    yard: Diskyard,
    repo: str,
    chosen: Collection[str] | None,
    how: How,
) -> None:
    """Run the chosen fixes, or all, and print the outcome.

    :raises diskyard.errors.DiskyardError: the first failure, after all others have run.
    """
    outcome = fix_until_done(yard, repo, chosen, how)
    left = [fix for fix in outcome.left if chosen is None or fix.fix_id in chosen]
    if wants_json():
        print_json({"ran": outcome.ran, "left": left})
    elif not outcome.ran and not left:
        note(f"{repo} needs no fix.")
    elif left:
        say(f"{len(left)} still listed:")
        print_fixes(repo, left, names_of(yard, repo, left))
    if outcome.failed is not None:
        raise outcome.failed


def fix_until_done(
    yard: Diskyard,
    repo: str,
    chosen: Collection[str] | None,
    how: How,
) -> Fixed:
    """Run runnable fixes until none is listed. A fix that is listed for the third time is left."""
    outcome = Fixed()
    runs: dict[str, int] = {}
    for _ in range(_ROUNDS_LIMIT):
        outcome.left = how.check(yard, repo)
        due = [
            fix
            for fix in outcome.left
            if (fix.runnable or (how.force and chosen is not None))
            and runs.get(fix.fix_id, 0) < _RUNS_LIMIT
            and (chosen is None or fix.fix_id in chosen)
        ]
        if not due:
            break
        names = names_of(yard, repo, due)
        for fix in due:
            failed = _run(yard, repo, fix, _described(repo, fix, names), how, outcome)
            runs[fix.fix_id] = _RUNS_LIMIT if failed else runs.get(fix.fix_id, 0) + 1
    return outcome


def _run(yard: Diskyard, repo: str, fix: Fix, title: str, how: How, outcome: Fixed) -> bool:
    """Run one fix to its end. Return whether it failed."""
    error: errors.DiskyardError | None = None
    changed: bool | None = None
    try:
        options = {"rate_limit": how.rate, "run_first": how.first, "force": how.force}
        task_id = yard.fix_storage_repository(repo, fix, options).task_id
        wait(yard)
        changed = yard.get_task(task_id).changed
    except errors.DiskyardError as raised:
        error = raised
    words = "failed" if error else "done" if changed else "was done already"
    outcome.ran.append(
        {
            "fixId": fix.fix_id,
            "type": fix.type,
            "description": fix.description,
            "changed": changed,
            "error": None if error is None else error.to_json(),
        }
    )
    if not wants_json():
        say(f"{title}: {words}")
    outcome.failed = outcome.failed or error
    return error is not None
