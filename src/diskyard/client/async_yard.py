"""The class that asynchronous Python programs use."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from diskyard import errors
from diskyard.client.async_remote import AsyncRemote
from diskyard.client.async_verbs import AsyncVerbs
from diskyard.client.form import DEFAULT_TIMEOUT_S


class AsyncDiskyard(AsyncVerbs):
    """Storage repositories and their images, of a daemon, for programs with an event loop.

    The methods are those of :class:`diskyard.Diskyard`, as coroutines. Leaving an ``async with``
    block waits for the tasks that it started; leaving it by an exception, or :meth:`close`, does
    not, and the daemon goes on with them.

    :param url: of the daemon, ``unix:///path/to.sock`` or ``https://host:port``. There is no
        embedded form: the engine's calls wait for storage, and would keep the event loop waiting.
    :param token: for https.
    :param ca_file: PEM file of the authorities that sign the daemon's certificate; the system's
        if not given.
    :param timeout_s: how long one call may take, with its repetitions.
    :param hands_over: on a Unix socket, for root and the daemon's own user: open what importImage and
        exportImage name here, and hand the daemon the open file or directory, so that it need not be able to
        open it. This bypasses the transfer directories: never for paths that others give.
    :raises diskyard.errors.InvalidParameter: there is no URL, or something cannot be used.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        ca_file: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        hands_over: bool = False,
    ) -> None:
        if url is None:
            raise errors.InvalidParameter(
                "AsyncDiskyard needs the URL of a daemon.",
                advice="Give url=…, or use Diskyard() in a thread to do the work in this process.",
            )
        self.url = url
        self.transport = AsyncRemote(url, token, ca_file, timeout_s, hands_over=hands_over)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                await self.wait_for_tasks()
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the connections to the daemon, which goes on with what was started."""
        await self.transport.close()
