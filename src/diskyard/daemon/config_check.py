"""Whether a configuration can be used on this host. These checks go beyond its form."""

from __future__ import annotations

import grp
import os
from collections.abc import Iterator
from typing import get_args

from diskyard.daemon.config import Config, TcpConfig, socket_path, state_folder
from diskyard.daemon.hand_over import hand_over_path
from diskyard.model.options import FixType

# unix(7): sun_path with its final zero, and with the ".new" at its end until it has its mode.
_SOCKET_PATH_LIMIT_BYTES = 108 - len("\0") - len(f"{hand_over_path('')}.new")


def check(config: Config) -> list[str]:
    """All reasons why the daemon cannot run with a configuration, each with its key."""
    return [
        *_folders(config),
        *_socket(config),
        *(() if config.tcp is None else _tcp(config.tcp)),
        *_tasks(config),
        *_caretaker(config),
    ]


def group_id(name: str) -> int:
    """The number of a group.

    :raises KeyError: there is no group with this name.
    """
    return grp.getgrnam(name).gr_gid


def _folders(config: Config) -> Iterator[str]:
    if config.state_dir and not os.path.isabs(config.state_dir):
        yield f"state_dir must be an absolute path, not {config.state_dir!r}"
    for key, folders in (
        ("transfer.folders", config.transfer.folders),
        ("repositories.folders", config.repositories.folders),
    ):
        for folder in folders:
            if not os.path.isabs(folder):
                yield f"{key} must be absolute paths, not {folder!r}"
            elif not os.path.isdir(folder):
                yield f"{key}: there is no directory {folder!r}"
    audit = config.log.audit_file
    if audit and not os.path.isabs(audit):
        yield f"log.audit_file must be an absolute path, not {audit!r}"
    elif audit and not os.path.isdir(os.path.dirname(audit)):
        yield f"log.audit_file: there is no directory {os.path.dirname(audit)!r}"


def _socket(config: Config) -> Iterator[str]:
    path = socket_path(config)
    length = len(os.fsencode(path))
    if not os.path.isabs(path):
        yield f"socket.path must be an absolute path, not {path!r}"
    elif length > _SOCKET_PATH_LIMIT_BYTES:
        default = "" if config.socket.path else f" (the default in {state_folder(config)!r})"
        yield (f"socket.path{default} has {length} bytes; the limit is {_SOCKET_PATH_LIMIT_BYTES}")
    if config.socket.group:
        try:
            group_id(config.socket.group)
        except KeyError:
            yield f"socket.group: there is no group {config.socket.group!r}"


def _tcp(tcp: TcpConfig) -> Iterator[str]:
    try:
        tcp.address()
    except ValueError as error:
        yield f"tcp.listen {tcp.listen!r:.80}: {error}"
    readable = True
    for key, path in (("certificate", tcp.certificate), ("key", tcp.key)):
        wrong = _unreadable(path)
        if wrong is not None:
            readable = False
            yield f"tcp.{key} {wrong}"
    if readable:
        yield from _not_a_pair(tcp)


def _unreadable(path: str) -> str | None:
    if not path:
        return "is needed: the path of a PEM file"
    if not os.path.isabs(path):
        return f"must be an absolute path, not {path!r}"
    try:
        with open(path, "rb"):
            return None
    except OSError as error:
        return f"{path!r} cannot be read: {error.strerror or error}"


def _not_a_pair(tcp: TcpConfig) -> Iterator[str]:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without this argument, OpenSSL would ask for the passphrase of a key on the terminal.
        context.load_cert_chain(tcp.certificate, tcp.key, password=lambda: "")
    except (ssl.SSLError, ValueError, OSError) as error:
        reason = getattr(error, "reason", None) or str(error)
        yield (
            "tcp.certificate and tcp.key must be a certificate in PEM and its key without a passphrase: "
            f"{reason.lower().replace('_', ' ')}"
        )


def _tasks(config: Config) -> Iterator[str]:
    if sorted(config.tasks.order) != sorted(get_args(FixType)):
        yield f"tasks.order must have each of {', '.join(get_args(FixType))} once"


def _caretaker(config: Config) -> Iterator[str]:
    for number, policy in enumerate(config.caretaker, 1):
        at = f"caretaker[{number}]"
        if len(set(policy.fixes)) != len(policy.fixes):
            yield f"{at}.fixes has a type twice"
        try:
            policy.is_open(0.0)
        except ValueError as error:
            yield f"{at}.hours cannot be read, {policy.hours!r:.80}: {error}"
