"""fixStorageRepository."""

from __future__ import annotations

from diskyard import errors
from diskyard.model.fix import AnyAction, CleanStray, fix_id
from diskyard.model.requests import FixStorageRepository
from diskyard.operations.engine import Engine, FollowUp, Outcome
from diskyard.repository.repository import Repository
from diskyard.tasks.limits import Urgency


def fix_storage_repository(engine: Engine, request: FixStorageRepository) -> Outcome:
    """Let a task run a fix that check listed; nothing is changed yet on return.

    :raises diskyard.errors.InvalidParameter: the fix was listed for another repository, or was changed.
    """
    repo = engine.connections.get(request.repository_id)
    data, options = request.fix.data, request.options
    if data.marker != repo.marker:
        raise errors.InvalidParameter(
            f"The fix was listed for another repository than {request.repository_id}.",
            advice="Send each fix to the repository whose check listed it.",
        )
    if request.fix.fix_id != fix_id(data):
        raise errors.InvalidParameter(
            "The fix is not as it was received.", advice="Send the whole fix back unchanged."
        )
    repo.state()  # what could not be read before may be whole again
    require_fixable(repo, data.action)
    follow_up = FollowUp(
        repo,
        data.action,
        request.fix.image_id,
        options.rate_limit,
        engine.connections.among(options.participating_repositories),
        options.force,
    )
    return Outcome(
        request.fix.image_id or "", [follow_up], Urgency.FIRST if options.run_first else Urgency.ASKED
    )


def require_fixable(repo: Repository, action: AnyAction) -> None:
    """Refuse to run a fix if the log cannot be written, except the fix for what keeps it from being written.

    :raises diskyard.errors.CorruptRecord: a part of the log cannot be read, or its history was replaced.
    :raises diskyard.errors.StorageError: the storage is read-only.
    """
    if isinstance(action, CleanStray):
        repo.log.require_writable_place()
    else:
        repo.log.require_writable()
