"""The class that Python programs use."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from diskyard import errors
from diskyard.client.form import DEFAULT_TIMEOUT_S
from diskyard.client.transport import Transport
from diskyard.client.verbs import Verbs

if TYPE_CHECKING:
    from diskyard.service import Service


class Diskyard(Verbs):
    """Storage repositories and their images, through a daemon or embedded in this process.

    Every method is a verb of the API: its parameters, results and errors are those of the
    verb, in snake_case. ``options`` takes the verb's options, in snake_case too, as in
    ``options={"auto_fix": False, "new_image_id": …}``.

    Leaving a ``with`` block waits for the tasks that it started. Leaving it by an exception, or
    :meth:`close`, does not wait: embedded, the tasks stop at their next checkpoint and their fixes
    stay listed; a daemon goes on with them.

    A call to a daemon is sent again if the daemon was busy, if it could not be reached, or if the
    answer was lost and doing it twice has the same effect as doing it once. These are the verbs that only
    read, and those that make an image whose id is known (``new_image_id``; if the caller gave none, all
    verbs but copies are given one here).

    :param url: of a daemon, ``unix:///path/to.sock`` or ``https://host:port``; None to do everything
        in this process, whether a daemon runs or not.
    :param token: for https.
    :param ca_file: PEM file of the authorities that sign the daemon's certificate; the system's
        if not given.
    :param timeout_s: how long one call to a daemon may take, with its repetitions.
    :param hands_over: on a Unix socket, for root and the daemon's own user: open in this process what
        importImage and exportImage name, and hand the daemon the open file or directory, which it need not
        be able to open. This bypasses the transfer directories: never use it for paths that others supply.
    :param state_folder: embedded: the directory for connections and tasks; by default
        ``$DISKYARD_STATE_DIR``, or the usual directory of this user.
    :param actor: embedded: the caller, as the repositories' logs name it.
    :param one_command: embedded: this process ends soon, and imports only what it uses. Otherwise
        everything is imported at once, so that it is of one version even if another is installed meanwhile.
    :raises diskyard.errors.InvalidParameter: the URL, the token or the file cannot be used.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        ca_file: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        hands_over: bool = False,
        state_folder: str | None = None,
        actor: str = "python",
        one_command: bool = False,
    ) -> None:
        self.url = url
        self._service: Service | None = None
        # Imported when it is needed: both modules are large, and neither needs the other.
        if url is not None:
            from diskyard.client.remote import Remote

            self.transport: Transport = Remote(url, token, ca_file, timeout_s, hands_over=hands_over)
        else:
            from diskyard.client.embedded import Embedded

            embedded = Embedded(state_folder, actor, one_command=one_command)
            self.transport, self._service = embedded, embedded.service

    @property
    def service(self) -> Service:
        """The service that the verbs run on, if it is in this process.

        :raises diskyard.errors.InvalidParameter: a daemon runs the verbs.
        """
        if self._service is None:
            raise errors.InvalidParameter(
                f"The service runs in the daemon at {self.url}, not in this process.",
                advice="Use the verbs, or Diskyard() without a URL.",
            )
        return self._service

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.wait_for_tasks()
        finally:
            self.close()

    def close(self) -> None:
        """Close the connections to a daemon, which goes on; embedded, stop this process's tasks.

        The tasks stop at their next checkpoint; this call waits for that.
        """
        self.transport.close()
