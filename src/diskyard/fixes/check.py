"""checkStorageRepository: the one verb that is not in operations/, as it needs the eyes of the fixes."""

from __future__ import annotations

from diskyard.fixes.scan import look
from diskyard.model.fix import Fix
from diskyard.model.requests import CheckStorageRepository
from diskyard.operations.engine import Engine
from diskyard.planner.find_fixes import find_fixes


def check_storage_repository(engine: Engine, request: CheckStorageRepository) -> list[Fix]:
    """The fixes that a repository needs; a deep check keeps what it finds damaged."""
    options = request.options
    repo = engine.connections.get(request.repository_id)
    participating = engine.connections.among(options.participating_repositories)
    fixes = find_fixes(look(engine, repo, deep=options.deep, participating=participating))
    return [
        fix
        for fix in fixes
        if (options.types is None or fix.type in options.types)
        and (options.image_ids is None or fix.image_id in options.image_ids)
    ]
