"""The daemon's configuration: a TOML file in which every key is optional.

``packaging/diskyard.toml`` shows all keys with their defaults.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from diskyard import errors
from diskyard.daemon.policy import Policy
from diskyard.model.options import FixType
from diskyard.settings import default_state_folder

DEFAULT_PATH = "/etc/diskyard/diskyard.toml"
_RUNTIME_FOLDER = "/run/diskyard"
_SOCKET_NAME = "diskyard.sock"
_LIMIT_BYTES = 1 << 20

_Path = Annotated[str, msgspec.Meta(max_length=4096, description="an absolute path")]
_Count = Annotated[int, msgspec.Meta(ge=1, le=100_000, description="a number from 1 to 100,000")]
_Seconds = Annotated[int, msgspec.Meta(ge=1, le=3600, description="seconds, from 1 to 3,600")]
_Rate = Annotated[int, msgspec.Meta(ge=0, le=1 << 62, description="bytes per second, 0 for no limit")]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the file."""


class SocketConfig(_Section, frozen=True, kw_only=True):
    """``[socket]``: the Unix socket. Anyone who may open it may do everything.

    :param path: empty for the usual path, see :func:`socket_path`.
    :param group: the name of the socket's group; empty for the process's own.
    """

    path: _Path = ""
    mode: Annotated[
        str, msgspec.Meta(pattern="^0?[0-7][0-7]0$", description="octal, such as 0660, with none for others")
    ] = "0660"
    group: Annotated[str, msgspec.Meta(max_length=255, description="the name of a group")] = ""

    @property
    def mode_bits(self) -> int:
        """The mode as chmod(2) takes it."""
        return int(self.mode, 8)


class TcpConfig(_Section, frozen=True, kw_only=True):
    """``[tcp]``: TLS and bearer tokens for callers on other hosts.

    :param certificate: a PEM file with the certificate and the chain of its signers.
    :param key: the PEM file of its private key, without a passphrase.
    """

    listen: Annotated[str, msgspec.Meta(description="HOST:PORT or [IPv6]:PORT")] = "127.0.0.1:7443"
    certificate: _Path = ""
    key: _Path = ""

    def address(self) -> tuple[str, int]:
        """Host and port; port 0 means any free port.

        :raises ValueError: ``listen`` is not an address.
        """
        host, colon, port = self.listen.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError("an IPv6 address must be in brackets")
        if not (colon and host and host.isprintable() and " " not in host):
            raise ValueError("it is not HOST:PORT or [IPv6]:PORT")
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 1 << 16):
            raise ValueError("the port must be a number from 0 to 65535")
        return host, int(port)


class LimitsConfig(_Section, frozen=True, kw_only=True):
    """``[limits]``: how much callers may request.

    Limits for one token, for one address or for TCP do not apply to the Unix socket.

    :param requests_per_s: for one token; 0 for no limit.
    :param work_ms_per_s: processor time for the calls of one token; 0 for no limit.
    :param long_calls: how many, of all tokens, run on one repository at a time.
    :param long_calls_per_token: how many one token may have begun on one repository and not read to the end.
    :param event_streams: how many callers may listen to events at a time.
    :param answer_bytes: bytes of all answers that are made and not yet sent.
    :param unread_timeout_s: a caller that reads nothing of an answer for this long is cut off.
    :param connections: of TCP, in all.
    :param handshakes: TCP connections whose TLS handshake is not complete, in all.
    :param handshake_timeout_s: time to complete the handshake.
    :param served_images: over NBD, at a time.
    """

    request_bytes: Annotated[
        int, msgspec.Meta(ge=4096, le=1 << 30, description="bytes, from 4,096 to 1,073,741,824")
    ] = 1 << 20
    requests_per_s: Annotated[
        int, msgspec.Meta(ge=0, le=100_000, description="a number up to 100,000, 0 for no limit")
    ] = 100
    work_ms_per_s: Annotated[
        int, msgspec.Meta(ge=0, le=100_000, description="a number up to 100,000, 0 for no limit")
    ] = 500
    concurrent_requests: _Count = 256
    concurrent_per_repository: _Count = 32
    long_calls: _Count = 2
    long_calls_per_token: _Count = 4
    event_streams: _Count = 64
    answer_bytes: Annotated[
        int, msgspec.Meta(ge=1 << 20, le=1 << 40, description="bytes, 1,048,576 or more")
    ] = 64 << 20
    unread_timeout_s: _Seconds = 30
    connections: _Count = 1000
    connections_per_address: _Count = 256
    connections_per_token: _Count = 64
    handshakes: _Count = 512
    handshakes_per_address: _Count = 128
    handshake_timeout_s: _Seconds = 10
    served_images: _Count = 16


class TransferConfig(_Section, frozen=True, kw_only=True):
    """``[transfer]``: imports and exports over HTTP.

    :param folders: they read and write only inside these directories.
    """

    folders: Annotated[tuple[_Path, ...], msgspec.Meta(description="a list of absolute paths")] = ()


class RepositoriesConfig(_Section, frozen=True, kw_only=True):
    """``[repositories]``: where callers with tokens may have repositories.

    :param folders: over TCP, repositories are made, connected and removed only inside these directories.
    """

    folders: Annotated[tuple[_Path, ...], msgspec.Meta(description="a list of absolute paths")] = ()


class TasksConfig(_Section, frozen=True, kw_only=True):
    """``[tasks]``: how the work of fixes is done.

    :param queued: how many may wait; a call that would exceed this is refused.
    :param order: the order in which types of waiting tasks run.
    :param rate_limit_bytes_per_s: for tasks whose caller gave none; 0 for none.
    :param resume: whether the daemon, at its start, resumes the tasks that were running when it ended.
    """

    at_once: Annotated[int, msgspec.Meta(ge=1, le=64, description="a number from 1 to 64")] = 2
    at_once_per_repository: Annotated[int, msgspec.Meta(ge=1, le=64, description="a number from 1 to 64")] = 2
    queued: Annotated[int, msgspec.Meta(ge=1, le=1_000_000, description="a number from 1 to 1,000,000")] = (
        10_000
    )
    order: Annotated[
        tuple[FixType, ...], msgspec.Meta(description="a list with mend, merge, optimize and clean once each")
    ] = ("mend", "merge", "optimize", "clean")
    rate_limit_bytes_per_s: _Rate = 0
    resume: Annotated[bool, msgspec.Meta(description="true or false")] = False


class LogConfig(_Section, frozen=True, kw_only=True):
    """``[log]``: the log on stderr, and the audit trail.

    :param format: ``auto`` means text for people on a terminal, otherwise JSON.
    :param audit_file: the file to which the audit trail is appended; empty for the log.
    """

    format: Annotated[Literal["auto", "json", "text"], msgspec.Meta(description="auto, json or text")] = (
        "auto"
    )
    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        msgspec.Meta(description="debug, info, warning or error"),
    ] = "info"
    audit_file: _Path = ""


class Config(_Section, frozen=True, kw_only=True):
    """The whole configuration.

    :param state_dir: empty for the one that the command line uses.
    :param tcp: None if there is no TCP listener.
    """

    state_dir: _Path = ""
    socket: SocketConfig = SocketConfig()
    tcp: TcpConfig | None = None
    limits: LimitsConfig = LimitsConfig()
    transfer: TransferConfig = TransferConfig()
    repositories: RepositoriesConfig = RepositoriesConfig()
    tasks: TasksConfig = TasksConfig()
    log: LogConfig = LogConfig()
    caretaker: tuple[Policy, ...] = ()


def state_folder(config: Config) -> str:
    """The directory in which this host keeps connections and tasks."""
    return config.state_dir or default_state_folder()


def socket_path(config: Config) -> str:
    """The path of the Unix socket; its directory need not exist yet.

    ``/run/diskyard`` is for root, or for the user for whom the service manager made it.
    """
    if config.socket.path:
        return config.socket.path
    writable = os.access(_RUNTIME_FOLDER if os.path.isdir(_RUNTIME_FOLDER) else "/run", os.W_OK)
    folder = _RUNTIME_FOLDER if writable else state_folder(config)
    return os.path.join(folder, _SOCKET_NAME)


# -- reading -----------------------------------------------------------------------------


def load(path: str | None = None) -> Config:
    """Read the configuration.

    :param path: None for :data:`DEFAULT_PATH`, which may be absent.
    :raises diskyard.errors.InvalidParameter: the file is absent or wrong. The message lists all mistakes,
        each with its key and what is allowed.
    """
    source = DEFAULT_PATH if path is None else path
    try:
        with open(source, "rb") as file:
            data = file.read(_LIMIT_BYTES + 1)
    except FileNotFoundError as error:
        if path is None:
            return Config()
        raise errors.InvalidParameter(
            f"There is no configuration file {source}.", advice="Name an existing file, or none."
        ) from error
    except OSError as error:
        raise errors.InvalidParameter(f"{source} cannot be read: {error.strerror or error}.") from error
    if len(data) > _LIMIT_BYTES:
        raise errors.InvalidParameter(f"{source} is longer than {_LIMIT_BYTES:,} bytes.")
    try:
        table = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.InvalidParameter(f"{source} is not TOML: {error}.") from error
    wrong = list(_wrong(Config, table, ""))
    if wrong:
        raise refused(source, wrong)
    return msgspec.convert(table, Config)


def refused(source: str, wrong: Sequence[str]) -> errors.InvalidParameter:
    """The error for a configuration that cannot be used.

    :param source: the file, or another source.
    :param wrong: what is wrong with it, as :func:`diskyard.daemon.config_check.check` lists it.
    """
    lines = "\n".join((f"{source} has errors:", *wrong))
    return errors.InvalidParameter(lines, advice="packaging/diskyard.toml shows every key with its default.")


def _wrong(section: type[msgspec.Struct], table: object, at: str) -> Iterator[str]:
    """Everything that is wrong with a table, for every key."""
    if not isinstance(table, dict):
        yield f"{at} must be a table"
        return
    kinds = get_type_hints(section, include_extras=True)
    prefix = f"{at}." if at else ""
    for key, value in table.items():
        if key not in kinds:
            yield f"{prefix}{key!s:.80} is not a key; the keys are {', '.join(kinds)}"
        else:
            yield from _wrong_value(kinds[key], value, f"{prefix}{key}")
    for field in msgspec.structs.fields(section):
        if field.required and field.name not in table:
            yield f"{prefix}{field.name} is missing; it must be {_allowed(kinds[field.name])}"


def _wrong_value(kind: Any, value: object, at: str) -> Iterator[str]:
    inner = next((found for found in (kind, *get_args(kind)) if _is_section(found)), None)
    if inner is None:
        try:
            msgspec.convert(value, kind)
        except (msgspec.ValidationError, RecursionError):
            yield f"{at} must be {_allowed(kind)}, not {value!r:.80}"
    elif get_origin(kind) is not tuple:
        yield from _wrong(inner, value, at)
    elif not isinstance(value, list):
        yield f"{at} must be written as [[{at}]], once for each"
    else:
        for number, item in enumerate(value, 1):
            yield from _wrong(inner, item, f"{at}[{number}]")


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _allowed(kind: Any) -> str:
    """The allowed values of a field, in the words of its own type."""
    metas = [found for found in get_args(kind) if isinstance(found, msgspec.Meta)]
    return str(metas[-1].description)
