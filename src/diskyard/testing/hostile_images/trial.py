"""The process that imports hostile images: ``python -m diskyard.testing.hostile_images.trial``.

Its arguments are a JSON object with ``parameters``, ``state``, ``repoFormat`` and
``address_space_bytes``. It answers each line of stdin with a line of stdout, and uses only the verbs.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from typing import Any

from diskyard import errors
from diskyard.service import Service, call
from diskyard.testing.world import host_named

REPO = "imports"
_ROUNDS = 10
_TIMEOUT_S = 600.0


class _Importer:
    """One service with one repository, which carries out the requests."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.service = Service(host_named("importer"), task["state"])
        asked = {"repoFormat": task["repoFormat"], "connectionParameters": task["parameters"]}
        call(self.service, "connectStorageRepository", {"repoId": REPO, **asked})

    def import_image(self, path: str, format: str, *, stepwise: bool) -> dict[str, Any]:
        """Import as a user does: with AutoFix, or the commit and then the fix."""
        asked = {"targetRepoId": REPO, "path": path, "format": format, "options": {"AutoFix": not stepwise}}
        self.service.tasks.take_started()
        try:
            image_id = call(self.service, "importImage", asked)
        except errors.DiskyardError as error:
            return {"image": None, "error": error.to_json()}
        error_found = self._mend(image_id) if stepwise else self._ended(self.service.tasks.take_started())
        status = call(self.service, "getImageStatus", {"repositoryId": REPO, "imageId": image_id})
        return {"image": image_id, "error": error_found, "status": status}

    def _mend(self, image_id: str) -> dict[str, Any] | None:
        listed = self._fixes()
        (fix,) = [fix for fix in listed if fix["imageId"] == image_id and fix["type"] == "mend"]
        return self._run(fix)

    def _fixes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = call(self.service, "checkStorageRepository", {"repositoryId": REPO})
        return found

    def _run(self, fix: dict[str, Any]) -> dict[str, Any] | None:
        task = call(self.service, "fixStorageRepository", {"repositoryId": REPO, "fix": fix})
        return self._ended([task["taskId"]])

    def _ended(self, task_ids: list[str]) -> dict[str, Any] | None:
        """Wait for tasks; the error of one that failed."""
        assert self.service.tasks.wait(timeout_s=_TIMEOUT_S)
        for task_id in task_ids:
            task = call(self.service, "getTask", {"taskId": task_id})
            if task["state"] != "done":
                found: dict[str, Any] = task["error"] or {"code": task["state"], "message": ""}
                return found
        return None

    def remove(self, images: list[str]) -> dict[str, Any]:
        """Remove images and clean until nothing is listed. Return what is still listed."""
        for image in images:
            call(self.service, "removeImage", {"repositoryId": REPO, "imageId": image})
        assert self.service.tasks.wait(timeout_s=_TIMEOUT_S)
        rounds = 0
        while (listed := self._fixes()) and rounds < _ROUNDS:
            rounds += 1
            for fix in listed:
                self._run(fix)
        return {"fixes": listed}


def _children() -> list[int]:
    """The processes that this one has started and that still exist."""
    found: list[int] = []
    for thread in os.listdir("/proc/self/task"):
        path = f"/proc/self/task/{thread}/children"
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(path, encoding="ascii") as file:
            found += map(int, file.read().split())
    return found


def _peak_bytes() -> int:
    """The most memory that this process, or any one of its children, has ever had."""
    # Not ru_maxrss of this process, which includes what its parent had when it started this one.
    with open("/proc/self/status", encoding="ascii") as file:
        (own,) = [line.split()[1] for line in file if line.startswith("VmHWM:")]
    return max(int(own), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) << 10


def main() -> None:
    """Answer until stdin ends."""
    task = json.loads(sys.argv[1])
    limit = task["address_space_bytes"]
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    importer = _Importer(task)
    for line in sys.stdin:
        asked = json.loads(line)
        answer = getattr(importer, asked.pop("do"))(**asked)
        answer.update(children=_children(), peak_bytes=_peak_bytes())
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    importer.service.close()


if __name__ == "__main__":
    main()
