"""Diskyard keeps the disk images of virtual machines, and does not lose them."""

from diskyard.client.yard import Diskyard
from diskyard.errors import DiskyardError

KiB, MiB, GiB, TiB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

__all__ = ["Diskyard", "DiskyardError", "GiB", "KiB", "MiB", "TiB"]
