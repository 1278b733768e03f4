"""The state directory of this user's Diskyard; clients look there for a daemon."""

from __future__ import annotations

import os


def default_state_folder() -> str:
    """``$DISKYARD_STATE_DIR``; otherwise the system's directory for root, the XDG one for anybody else."""
    given = os.environ.get("DISKYARD_STATE_DIR")
    if given:
        return os.path.abspath(given)
    if os.geteuid() == 0:
        return "/var/lib/diskyard"
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(base, "diskyard")
