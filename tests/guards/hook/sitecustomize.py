"""Takes a guard out of a module as it is imported: found by every Python that has this folder on its path.

``$DISKYARD_TEST_GUARD`` holds JSON: the module, and pairs of the text that goes and what comes
in its place.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType

_GUARD = json.loads(os.environ.get("DISKYARD_TEST_GUARD", "{}"))


class _Changed(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """The module's code without the guard; never from a cache of compiled code."""
        path = self.get_filename(fullname)
        source = self.get_data(path).decode()
        for old, new in _GUARD["changes"]:
            if source.count(old) != 1:
                raise ImportError(f"{fullname} has {source.count(old)} times: {old}")
            source = source.replace(old, new)
        code: CodeType = compile(source, path, "exec")
        return code


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The guarded module's own file, with another loader."""
        if fullname != _GUARD.get("module"):
            return None
        found = importlib.machinery.PathFinder.find_spec(fullname, path)
        if found is None or found.origin is None:
            return None
        return importlib.util.spec_from_file_location(
            fullname,
            found.origin,
            loader=_Changed(fullname, found.origin),
            submodule_search_locations=found.submodule_search_locations,
        )


if _GUARD:
    sys.meta_path.insert(0, _Finder())
