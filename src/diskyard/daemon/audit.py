"""The audit trail: who called what, and the outcome; one JSON object per line.

It records what identifies a call, but never its userData, connectionParameters or tokens.
"""

from __future__ import annotations

import json
import os
import threading

from diskyard.daemon.logs import AUDIT_LOGGER, logger
from diskyard.host import Host
from diskyard.http.audited import AuditedCall

_TEXT_LIMIT = 255


class Audit:
    """Records calls, each before it is answered. Safe to use from several threads.

    :param path: the file to which they are appended; empty for the log.
    :param host: by default this machine.
    :raises OSError: the file cannot be opened.
    """

    def __init__(self, path: str = "", host: Host | None = None) -> None:
        self._path = path
        self._host = host or Host.real()
        self._log = logger(AUDIT_LOGGER)
        self._lock = threading.Lock()
        self._torn = False
        self._fd = self._host.files.open_to_append(path) if path else None

    def note(self, call: AuditedCall) -> None:
        """Record a call. If the file cannot be written, the call goes to the log, with the reason."""
        fields = {
            "requestId": _text(call.request_id),
            "actor": _text(call.actor),
            "peer": _text(call.peer),
            "verb": _text(call.verb),
            "repositoryId": _text(call.repository_id),
            "imageId": _text(call.image_id),
            "taskIds": [_text(task_id) for task_id in call.task_ids],
            "outcome": _text(call.outcome),
            "duration_ms": round(call.duration_s * 1000, 1),
        }
        with self._lock:
            fd = self._fd
            try:
                if fd is not None:
                    self._append(fd, {"time": self._host.clock.now(), **fields})
                    return
            except OSError as error:
                self._log.error("the audit file cannot be written", reason=str(error))
        self._log.info("call", **fields)

    def _append(self, fd: int, fields: dict[str, object]) -> None:
        # After a line that was cut, a newline makes the next line whole. The text is ASCII, because some
        # readers take certain other characters for the end of a line.
        data = ("\n" if self._torn else "") + json.dumps(fields, ensure_ascii=True) + "\n"
        self._torn = True
        self._host.files.append(fd, data.encode())
        self._torn = False

    def reopen(self) -> None:
        """Go on in a new file, after the old one was renamed.

        :raises OSError: it cannot be opened; the old one stays in use.
        """
        if not self._path:
            return
        new = self._host.files.open_to_append(self._path)
        with self._lock:
            old, self._fd, self._torn = self._fd, new, False
        if old is not None:
            os.close(old)

    def close(self) -> None:
        """Stop writing to the file. Later calls go to the log."""
        with self._lock:
            old, self._fd = self._fd, None
        if old is not None:
            os.close(old)


def _text(value: str | None) -> str | None:
    return None if value is None else value[:_TEXT_LIMIT]
