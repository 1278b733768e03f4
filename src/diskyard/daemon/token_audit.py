"""Lines of the audit trail for changes of tokens. Commands write them, since no daemon need run."""

from __future__ import annotations

import json
import os
import pwd
import socket

from diskyard.daemon.tokens import Token
from diskyard.host import Host
from diskyard.host.identity import new_uuid

_SYSTEM_LOG = "/dev/log"
_NOTICE_OF_AUTHORIZATION = 4 * 8 + 5  # RFC 5424: facility auth, severity notice


def operator() -> str:
    """The user of this process, as the audit trail names actors; with sudo, also the user who called it."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    caller = os.environ.get("SUDO_USER", "") if os.getuid() == 0 else ""
    return f"user:{name} (sudo of {caller:.64})" if caller and caller != name else f"user:{name}"


def note_change(audit_file: str, verb: str, token: Token, host: Host | None = None) -> str | None:
    """Record in the audit trail that a token was made or revoked.

    :param audit_file: as in the daemon's configuration; empty for the system's log, as for the daemon's own.
    :returns: why that was not possible; None if it was. The change itself stays done.
    """
    host = host or Host.real()
    line = json.dumps(
        {
            "time": host.clock.now(),
            "requestId": new_uuid(),
            "actor": operator(),
            "peer": "",
            "verb": verb,
            "repositoryId": None,
            "imageId": None,
            "taskIds": [],
            "outcome": "ok",
            "duration_ms": 0.0,
            "tokenId": token.token_id,
            "token": token.name,
            "scope": token.scope,
            "repositories": token.repositories,
        },
        ensure_ascii=True,
    )
    try:
        if audit_file:
            _append(host, audit_file, line)
        else:
            _tell_system(line)
    except OSError as error:
        return f"{audit_file or _SYSTEM_LOG}: {error.strerror or error}"
    return None


def _append(host: Host, path: str, line: str) -> None:
    fd = host.files.open_to_append(path)
    try:
        host.files.append(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


def _tell_system(line: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.connect(_SYSTEM_LOG)
        log.send(f"<{_NOTICE_OF_AUTHORIZATION}>diskyard[{os.getpid()}]: {line}".encode())
