"""Files that are far too large cost neither memory nor time."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from diskyard.testing.corruption import DAMAGES, Outside, apply_to_all
from tests.conftest import Tally
from tests.corruption.cases import Bench, copies_of

_GIANTS = {
    damage.name: damage for damage in DAMAGES if damage.name in ("1 GiB of zeros", "its header and a giant")
}
_MOST_BYTES = 160 << 20
_PROGRAM = """
import json, sys
from diskyard.service import Service, call
service = Service(None, sys.argv[2])
asked = {"repoFormat": "localfs-1.0", "connectionParameters": {"path": sys.argv[1]}}
call(service, "connectStorageRepository", {"repoId": "a", **asked})
call(service, "checkStorageRepository", {"repositoryId": "a", "options": {"deep": True}})
images = len(call(service, "listImages", {"repositoryId": "a"})["images"])
service.close()
# Not ru_maxrss, which begins with what the parent had when it forked.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps([images, int(status["VmHWM"].split()[0]) << 10]))
"""


@pytest.mark.parametrize("kind", ["entry", "checkpoint"])
@pytest.mark.parametrize("name", _GIANTS)
def test_a_giant_is_not_read(bench: Bench, outside: Outside, tally: Tally, name: str, kind: str) -> None:
    """A host that connects and checks uses as much memory as ever."""
    tally("corruption")
    with bench.world() as world:
        number = bench.numbers("checkpoint")[-1]
        paths = copies_of(world, "entry" if kind == "entry" else "checkpoint", number)
        apply_to_all(_GIANTS[name], paths, outside)
        assert all(path.stat().st_size >= 32 << 20 for path in paths)
        words = [sys.executable, "-c", _PROGRAM, str(world.folder / "a"), str(world.folder / "state-giant")]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
        images, used_bytes = json.loads(done.stdout)
        assert images == len([place for place, _ in world.images if place == "a"])
        assert used_bytes < _MOST_BYTES
    tally("corruption", cases=1, runs=1)
