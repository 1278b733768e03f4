"""Whether a daemon of this user's state directory runs, and where it answers."""

from __future__ import annotations

import os

import msgspec

from diskyard import errors
from diskyard.state_folder import default_state_folder

_LIMIT_BYTES = 64 << 10
_UNIX = "unix://"


class _Announced(msgspec.Struct, frozen=True):
    """What a daemon says about itself in its state directory."""

    url: str


def running_daemon() -> str | None:
    """The URL of the running daemon; None if none runs.

    :raises diskyard.errors.StorageError: it is not known whether one runs.
    """
    path = os.path.join(default_state_folder(), "daemon.json")
    try:
        with open(path, "rb") as file:
            announced = msgspec.json.decode(file.read(_LIMIT_BYTES), type=_Announced)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise errors.StorageError(
            f"{path} cannot be read: {error}.",
            advice="Give --embedded, or --url with the daemon's URL.",
        ) from error
    return announced.url if _answers(announced.url) else None


def _answers(url: str) -> bool:
    """Whether anything listens. A daemon that was killed leaves its file and its socket behind."""
    if not url.startswith(_UNIX):
        return False
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(url.removeprefix(_UNIX))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as error:
            raise errors.StorageError(
                f"The daemon at {url} cannot be called: {error.strerror or error}.",
                advice="Run as a user who may open its socket, or give --embedded.",
            ) from error
    return True
