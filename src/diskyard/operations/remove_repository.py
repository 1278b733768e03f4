"""What can prevent the removal of a repository without images: bytes that only people can give up."""

from __future__ import annotations

from diskyard import errors
from diskyard.operations.writers import is_written, why_unasked
from diskyard.repository.repository import Repository
from diskyard.repository.settled import stored_by_id

_NAMED_MOST = 10


def require_nothing_kept(repo: Repository) -> None:
    """Refuse if there is a volume that somebody writes to, or that this history may not have made.

    The storage is listed before the log is read. A volume that no record names then is either garbage, or
    belongs to another history, which may have promised to keep it (docs/format.md, What no entry names).

    :raises diskyard.errors.NotEmpty: names the volumes of another history.
    :raises diskyard.errors.RepositoryInUse: names the volumes that are written to.
    """
    listed = repo.storage.list_volumes()
    state = repo.state()
    by_id = stored_by_id(state, listed)
    others = [
        str(item.name)
        for item in listed
        if by_id.get(item.name.volume_id) is not item and not repo.log.has_entry(item.name.named_by)
    ]
    if others:
        more = f" and {len(others) - _NAMED_MOST} more" if len(others) > _NAMED_MOST else ""
        raise errors.NotEmpty(
            f"The repository has volumes that no entry of this history named: "
            f"{', '.join(sorted(others)[:_NAMED_MOST])}{more}. They may hold images that were made "
            "before it was restored.",
            advice="See what checkStorageRepository lists; run the fixes that delete them with force, or "
            "move the files away, and remove the repository again.",
        )
    # If a file cannot even be opened, nobody can know who writes to it, and it must not stay for ever.
    asked = [item.name for item in listed if why_unasked(repo, item.name) is None]
    written = sorted(str(name) for name in asked if is_written(repo, name))
    if written:
        raise errors.RepositoryInUse(
            f"A running QEMU has volumes open for writing: {', '.join(written[:_NAMED_MOST])}.",
            advice="End that program first (fuser -v with the file's path names it), then try again.",
        )
