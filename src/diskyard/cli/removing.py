"""Removing an image, and reporting what of it stays for others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskyard.cli.find import Found
from diskyard.cli.fixing import Fixed, How, fix_until_done, state_of
from diskyard.cli.output import answer, note
from diskyard.cli.session import auto_fix, refuse, wait
from diskyard.cli.values import human_size

if TYPE_CHECKING:
    from diskyard.client import Diskyard
    from diskyard.model.results import RepositoryInfo


def remove_and_tell(yard: Diskyard, found: Found, *, merge: bool, rate: int, no_wait: bool) -> None:
    """Remove an image; report how much is held until a merge, or run the merge."""
    if merge and no_wait:
        raise refuse("Both --merge and --no-wait are given.", "Leave one of them out.")
    repo = found.repo_id
    merges_before = set(_merges(yard, repo)) if merge else set()
    before = _space(yard, repo)
    yard.remove_image(repo, found.image_id, {"auto_fix": auto_fix(yard, no_wait)})
    note(f"{found.title} is removed.")
    if not no_wait:
        wait(yard)
    outcome = Fixed()
    if merge:
        new = set(_merges(yard, repo)) - merges_before
        outcome = fix_until_done(yard, repo, new, How(types=["merge"], rate=rate))
        # A merge that failed may have another id now: the image to merge gets a new id when it begins.
        outcome.left = [fix for fix in outcome.left if fix.fix_id not in merges_before]
    after = _space(yard, repo)
    mergeable, retained, used = (
        _difference(before, after, field) for field in ("mergeable_bytes", "retained_bytes", "used_bytes")
    )
    answer(
        {
            "imageId": found.image_id,
            "freedBytes": max(0, -used),
            "mergeableBytes": max(0, mergeable),
            "retainedBytes": max(0, retained),
            "merges": outcome.ran,
        },
        _told(repo, used, mergeable, retained),
    )
    for fix in outcome.left:
        note(f"{fix.fix_id} is still to be done ({state_of(fix)}): 'diskyard repo fix {repo}'.")
    if outcome.failed is not None:
        raise outcome.failed


def _merges(yard: Diskyard, repo: str) -> list[str]:
    """The ids of the listed merges."""
    return [fix.fix_id for fix in yard.check_storage_repository(repo, {"types": ["merge"]})]


def _space(yard: Diskyard, repo: str) -> RepositoryInfo:
    return next(info for info in yard.list_storage_repositories() if info.repo_id == repo)


def _difference(before: RepositoryInfo, after: RepositoryInfo, field: str) -> int:
    return (getattr(after, field) or 0) - (getattr(before, field) or 0)


def _told(repo: str, used: int, mergeable: int, retained: int) -> str:
    lines = [f"{human_size(max(0, -used))} freed."]
    if mergeable > 0:
        lines.append(f"{human_size(mergeable)} stay until a merge: 'diskyard repo fix {repo} --type merge'.")
    if retained > 0:
        lines.append(f"{human_size(retained)} stay for images that need them.")
    return "\n".join(lines)
