"""checkStorageRepository: the only verb that is not in operations/, because it needs the fixes' scan."""

from __future__ import annotations

from diskyard.fixes.scan import scan
from diskyard.model.fix import Fix
from diskyard.model.requests import CheckStorageRepository
from diskyard.operations.engine import Engine
from diskyard.planner.find_fixes import find_fixes


def check_storage_repository(engine: Engine, request: CheckStorageRepository) -> list[Fix]:
    """List the fixes that a repository needs. A deep check records the damage that it finds."""
    options = request.options
    repo = engine.connections.get(request.repository_id)
    participating = engine.connections.among(options.participating_repositories)
    fixes = find_fixes(scan(engine, repo, deep=options.deep, participating=participating))
    return [
        fix
        for fix in fixes
        if (options.types is None or fix.type in options.types)
        and (options.image_ids is None or fix.image_id in options.image_ids)
    ]
