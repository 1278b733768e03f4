"""The first calls of a daemon's life, all at the same moment: what is made when first used, is made once."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from diskyard.model.verbs import VERBS
from diskyard.testing.daemon_process import DaemonProcess
from diskyard.testing.effort import Effort
from tests.conftest import Tally

_CALLS = 64
_PLACES = ("a", "b", "c", "d")
_ROUNDS, _THOROUGH_ROUNDS = 2, 50
_KIB = 1 << 10
# What a process with no other part of the program never imports.
_LATER = {
    "diskyard.service.whole": {"testing", "cli", "http", "daemon", "client", "image_events"},
    "diskyard.daemon.daemon": {"testing", "cli", "client"},
}
# Their examples name things that are not there; these ask of repositories what they hold.
_LIVELY: tuple[tuple[str, dict[str, Any]], ...] = (
    ("createVirtualDisk", {"targetRepoId": "", "size": 64 * _KIB, "options": {"AutoFix": False}}),
    ("listImages", {"repositoryId": ""}),
    ("checkStorageRepository", {"repositoryId": "", "options": {"deep": True}}),
    ("getRepositoryInfo", {"repositoryId": ""}),
)


def _calls(number: int) -> list[tuple[str, dict[str, Any]]]:
    """64 calls: an example of every verb, and then what makes every repository read its log."""
    calls = [(name, dict(verb.examples[0].request)) for name, verb in sorted(VERBS.items())]
    while len(calls) < _CALLS:
        verb, parameters = _LIVELY[len(calls) % len(_LIVELY)]
        place = _PLACES[(len(calls) // len(_LIVELY) + number) % len(_PLACES)]
        calls.append((verb, {key: value or place for key, value in parameters.items()}))
    return calls


def _all_at_once(
    daemon: DaemonProcess, calls: list[tuple[str, dict[str, Any]]]
) -> list[tuple[str, int, str]]:
    """What is answered to calls for which nobody waits: verb, status, body."""
    gate = threading.Barrier(len(calls), timeout=60)
    answers: list[tuple[str, int, str]] = []

    def ask(verb: str, parameters: dict[str, Any]) -> None:
        with daemon.client() as client:
            gate.wait()
            answer = client.post(f"/v1/{verb}", json=parameters)
            answers.append((verb, answer.status_code, answer.text))

    threads = [threading.Thread(target=ask, args=asked) for asked in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_64_first_calls_of_all_verbs(short_folder: Path, effort: Effort, tally: Tally) -> None:
    """Each is answered, none by an error of the program's own, and the daemon goes on."""
    tally("concurrency")
    daemon = DaemonProcess(short_folder)
    with daemon:
        for place in _PLACES:
            words = {"repoFormat": "localfs-1.0", "connectionParameters": daemon.place(place)}
            daemon.call("createStorageRepository", **words)
            daemon.call("connectStorageRepository", repoId=place, **words)
            daemon.call("createVirtualDisk", targetRepoId=place, size=64 * _KIB)
    rounds = _THOROUGH_ROUNDS if effort.thorough else _ROUNDS
    for number in range(rounds):
        with daemon:
            answers = _all_at_once(daemon, _calls(number))
            assert len(answers) == _CALLS, daemon.log_path.read_text()[-4000:]
            failed = [answer for answer in answers if answer[1] == 500]
            assert not failed, failed
            assert sum(answer[1] == 200 for answer in answers) >= _CALLS // 4, answers
            daemon.call("listTasks")
    tally("concurrency", first_calls=rounds * _CALLS)


@pytest.mark.parametrize("module", ["diskyard.service.whole", "diskyard.daemon.daemon"])
def test_what_lives_long_has_all_its_types_from_the_beginning(module: str) -> None:
    """Nothing that is imported later, when there are threads, has a type whose table is not made."""
    script = f"""
import importlib, pkgutil
import {module}
from diskyard.service.whole import own_types
known = set(own_types())
import diskyard
def import_all(package):
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if found.name.split(".")[1] not in {_LATER[module]!r} and not found.name.endswith("__main__"):
            module = importlib.import_module(found.name)
            if found.ispkg:
                import_all(module)
import_all(diskyard)
later = set(own_types()) - known
assert known and not later, later
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
