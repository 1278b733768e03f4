"""The daemon's log on stderr: one line for each event, for programs (JSON) or for people.

Everything that is logged passes through here, even from the standard library's ``logging``, which uvicorn
uses. A line has the request and the actor of :data:`diskyard.caller.CALLER` if there is one. No value can
end a line, or begin another.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, TextIO, cast

import structlog

from diskyard.caller import CALLER
from diskyard.daemon.config import LogConfig

AUDIT_LOGGER = "diskyard.audit"

_Line = MutableMapping[str, Any]
_TOKEN = re.compile(r"dy_([0-9a-f]{8})_[A-Za-z0-9_-]{20,}")
_PLAIN = re.compile(r"[A-Za-z0-9_./:@,+-]+")
_LOGS_ITSELF = frozenset(("_record", "_from_structlog"))


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger that takes values besides its message: ``log.info("task ended", taskId=task_id)``."""
    made = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[structlog.stdlib.filter_by_level, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    return cast("structlog.stdlib.BoundLogger", made)


def configure(config: LogConfig, stream: TextIO | None = None) -> None:
    """Make all of this process log as the configuration says. Call it again if that changes.

    :param stream: by default stderr.
    """
    root = logging.getLogger()
    for handler in [found for found in root.handlers if isinstance(found, LogHandler)]:
        root.removeHandler(handler)
    root.addHandler(LogHandler(config, sys.stderr if stream is None else stream))
    root.setLevel(config.level.upper())
    logging.getLogger(AUDIT_LOGGER).setLevel(logging.INFO)  # the audit trail has no gaps
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes each record as one line."""

    def __init__(self, config: LogConfig, stream: TextIO) -> None:
        super().__init__(stream)
        for_people = stream.isatty() if config.format == "auto" else config.format == "text"
        self.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                processors=[_complete, _as_text if for_people else _as_json],
            )
        )

    def format(self, record: logging.LogRecord) -> str:
        """The line for a record, whatever is in it, without any tokens."""
        return _TOKEN.sub(r"dy_\1_REMOVED", super().format(record))


def _complete(_: Any, __: str, found: _Line) -> _Line:
    """The fields that every line begins with, then those of the record."""
    record: logging.LogRecord = found["_record"]
    line: _Line = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": str(found.pop("event", "")),
    }
    caller = CALLER.get()
    if caller is not None:
        line.update(requestId=caller.request_id, actor=caller.actor)
    error = found.pop("exc_info", None)
    if error:
        error = error if isinstance(error, tuple) else sys.exc_info()
        line["exception"] = logging.Formatter().formatException(error)
    for key, value in found.items():
        if key not in _LOGS_ITSELF:
            line.setdefault(key, value)
    return line


def _as_json(_: Any, __: str, line: _Line) -> str:
    # ASCII, because some readers take certain other characters for the end of a line.
    return json.dumps(line, default=str, ensure_ascii=True)


def _as_text(_: Any, __: str, line: _Line) -> str:
    exception = line.pop("exception", None)
    at = datetime.fromisoformat(line.pop("time")).astimezone().strftime("%H:%M:%S.%f")[:-3]
    level, name, message = line.pop("level"), line.pop("logger"), _printable(line.pop("message"))
    pairs = [f"{key}={_shown(value)}" for key, value in line.items()]
    text = "  ".join([f"{at} {level:<7} {name}: {message}", " ".join(pairs)]).rstrip()
    if exception is not None:
        text += "".join(f"\n    | {_printable(part)}" for part in exception.splitlines())
    return text


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if _PLAIN.fullmatch(text) else json.dumps(_printable(text), ensure_ascii=False)


def _printable(text: str) -> str:
    """Text without characters that move a terminal's cursor or begin a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    logger("diskyard").critical("ended by an error", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    error = args.exc_value
    if error is not None:
        name = args.thread.name if args.thread else ""
        logger("diskyard").error(
            "a thread ended by an error", thread=name, exc_info=(args.exc_type, error, args.exc_traceback)
        )
