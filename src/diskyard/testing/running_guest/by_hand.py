"""What somebody does by hand to a running guest, through its monitor and not through Diskyard."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from qemu.qmp import QMPClient

_AT_MOST_S = 60.0


class Monitor:
    """A connection to a guest's monitor, from :func:`by_hand`."""

    def __init__(self, runner: asyncio.Runner, client: QMPClient) -> None:
        self._runner, self._client = runner, client

    def command(self, name: str, /, **arguments: object) -> object:
        """Execute a command; ``_`` in the names of arguments stands for ``-``.

        :raises qemu.qmp.QMPError: QEMU refuses it, or has ended.
        """
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        answer: object = self._runner.run(asyncio.wait_for(self._client.execute(name, given), _AT_MOST_S))
        return answer

    def switch(self, overlays: Mapping[str, Path]) -> None:
        """Let disks go on in qcow2 files that are empty and as large as they are: all at one moment.

        :param overlays: by the name of each disk's top node. The name of the new one is the file's stem.
        """
        for path in overlays.values():
            file = {"driver": "file", "filename": str(path)}
            self.command("blockdev-add", driver="qcow2", node_name=path.stem, file=file, backing=None)
        moves = [{"node": node, "overlay": path.stem} for node, path in overlays.items()]
        self.command("transaction", actions=[{"type": "blockdev-snapshot", "data": move} for move in moves])


@contextmanager
def by_hand(monitor: Path) -> Iterator[Monitor]:
    """Connect to a guest's monitor; nobody else can until the context is left."""
    with asyncio.Runner() as runner:
        client = QMPClient("by hand")
        runner.run(asyncio.wait_for(client.connect(str(monitor)), _AT_MOST_S))
        try:
            yield Monitor(runner, client)
        finally:
            runner.run(client.disconnect())
