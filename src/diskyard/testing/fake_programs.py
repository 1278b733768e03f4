"""A directory of programs for ``$PATH``: the real ones, except for those that a test replaces."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

_TRUE = ("cp", "python3", "qemu-img", "qemu-io", "qemu-storage-daemon", "setpriv", "sh")

_SPEAK = """
import json, os, re, socket, sys, time
fd = next(int(m[1]) for w in sys.argv if (m := re.search(r"fd=(\\d+)", w)))
qmp = socket.socket(fileno=fd)
def say(value):
    qmp.sendall((value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\\n")
VERSION = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}
GREETING = {"QMP": {"version": VERSION, "capabilities": []}}
"""
_ANSWERS = (
    _SPEAK
    + """
say(GREETING)
for line in qmp.makefile("rb"):
    asked = json.loads(line)
    answer = {} if asked["execute"] == "qmp_capabilities" else ANSWER
    say({"return": answer, "id": asked["id"]})
    if asked["execute"] == "quit":
        break
"""
)

OF_EVERY_PROGRAM = {
    "fails": "import sys; sys.exit(1)",
    "fails and says nothing useful": "import sys; print('\\n\\n', file=sys.stderr); sys.exit(1)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "interrupted": "import sys; print('x: Interrupted system call', file=sys.stderr); sys.exit(1)",
    "prints garbage": "import os; [os.write(fd, os.urandom(4096)) for fd in (1, 2)]",
    "prints garbage and fails": "import os; [os.write(fd, os.urandom(4096)) for fd in (1, 2)]; os._exit(2)",
    "prints without end": (
        "import os\nfor _ in range(1600):\n    os.write(2, b'x' * 65536); os.write(1, b'y' * 65536)"
    ),
    "says without end": "import os\nfor _ in range(1600): os.write(2, b'x' * 65536)",
    "never ends": "import time; time.sleep(600)",
}
"""Python of programs that any other may turn into; two of them print 100 MiB."""

OF_QEMU_IMG = {
    f"answers {answer} with status {status}": f"import sys; print({answer!r}); sys.exit({status})"
    for answer in ("[]", "{}", '"x"', "7", '{"virtual-size": "many"}', '{"corruptions": [1]}', "[" * 100_000)
    for status in (0, 2)
}
"""Programs that answer JSON of another form than qemu-img's."""

OF_THE_DAEMON = {
    "closes its monitor": _SPEAK + "qmp.close(); time.sleep(600)",
    "greets and closes": _SPEAK + "say(GREETING); qmp.close(); time.sleep(600)",
    "greets and says nothing": _SPEAK + "say(GREETING); time.sleep(600)",
    "says garbage": _SPEAK + "say(os.urandom(4096)); time.sleep(600)",
    "says a line without end": _SPEAK + "\nfor _ in range(1600): qmp.sendall(b'x' * 65536)",
    "greets with another form": _SPEAK + "say({'QMP': []}); time.sleep(600)",
    "greets and says garbage": _SPEAK + "say(GREETING); say(os.urandom(4096)); time.sleep(600)",
    "greets and nests": _SPEAK + "say(GREETING); say(b'[' * 100000); time.sleep(600)",
    **{
        f"answers {answer} to everything": _ANSWERS.replace("ANSWER", answer)
        for answer in (
            "[]",
            "{}",
            "'x'",
            "[{}]",
            "[7]",
            "[{'node-name': 'node2', 'ro': 1, 'image': {}}]",
            "None",
        )
    },
}
"""Programs that speak QMP badly."""


class FakePrograms:
    """The directory.

    :ivar path: the whole ``$PATH``.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.path = str(folder)
        for name in _TRUE:
            found = sys.executable if name == "python3" else shutil.which(name)
            assert found is not None, f"{name} is installed"
            (folder / name).symlink_to(found)

    def remove(self, name: str) -> None:
        """Remove a program, as if it were not installed."""
        (self._folder / name).unlink()

    def replace(self, name: str, code: str) -> None:
        """Put another program, in Python, in its place."""
        self.remove(name)
        path = self._folder / name
        path.write_text(f"#!{sys.executable} -IS\n{code}\n")
        path.chmod(0o755)

    def break_file(self, name: str) -> None:
        """Put a file that is not a program in its place."""
        self.remove(name)
        path = self._folder / name
        path.write_bytes(b"\0garbage")
        path.chmod(0o755)

    def wrap(self, name: str, code: str) -> str:
        """Put another program in its place, which may start the real one; the path of the real one."""
        true = str((self._folder / name).resolve())
        self.replace(name, code.replace("TRUE_PROGRAM", repr(true)))
        return true
