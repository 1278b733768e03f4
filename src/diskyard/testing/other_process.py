"""What the contract suite runs in another process: ``python -m diskyard.testing.other_process``.

The one argument is a JSON object: ``format`` and ``parameters`` of the repository, ``do``,
and the arguments of that. Each answers on stdout, one JSON value per line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, cast

from diskyard.host import Host
from diskyard.storage.interface import Storage
from diskyard.storage.registry import find_format
from diskyard.testing.place import Place, fresh_name

_CHILD = "import sys; sys.stdin.read()"


def start(place: Place, do: str, **words: object) -> subprocess.Popen[str]:
    """Start another process on a repository. It ends when its stdin ends, or before."""
    task = {"format": place.format, "parameters": dict(place.parameters), "do": do, **words}
    return subprocess.Popen(
        [sys.executable, "-m", "diskyard.testing.other_process", json.dumps(task)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def answer(process: subprocess.Popen[str]) -> Any:
    """The next answer of a process, which must come."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the process ended with status {process.wait()}"
    return json.loads(line)


def end(process: subprocess.Popen[str], *, kill: bool = False) -> None:
    """End a process and wait for that."""
    if kill:
        process.kill()
    process.communicate()


def _say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _publish(repository: Storage, task: Mapping[str, Any]) -> None:
    """Try every number of a range, after a signal on stdin. Answer which of them this process won."""
    _say("ready")
    sys.stdin.readline()
    numbers = range(task["first"], task["last"] + 1)
    data = str(task["text"]).encode()
    _say([number for number in numbers if repository.put("entry", number, data)])


def _hold(repository: Storage, task: Mapping[str, Any]) -> None:
    """Take a lease and keep it until stdin ends. With ``child``, a child inherits it; answer its pid."""
    lease = repository.try_lock(task["name"])
    child = None
    if lease is not None and task.get("child"):
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD], stdin=sys.stdin, pass_fds=lease.descriptors()
        )
    _say(None if lease is None else (0 if child is None else child.pid))
    sys.stdin.read()


def _litter(repository: Storage, task: Mapping[str, Any]) -> None:
    """Leave a private file behind, and answer its name."""
    path = repository.private_path()
    if path is not None:
        with open(path, "wb") as file:
            file.write(b"x" * 8192)
    _say(path)
    sys.stdin.read()


def _make_volume(repository: Storage, task: Mapping[str, Any]) -> None:
    name = fresh_name()
    repository.create_volume(name, length_bytes=4096, initial=b"volume")
    _say(str(name))


_DO = {"publish": _publish, "hold": _hold, "litter": _litter, "make_volume": _make_volume}


def main() -> None:
    """Do the one task and end at once, as a process that is killed would."""
    task = cast("Mapping[str, Any]", json.loads(sys.argv[1]))
    repository = find_format(task["format"]).connect(task["parameters"], Host.real())
    _DO[task["do"]](repository, task)
    os._exit(0)


if __name__ == "__main__":
    main()
