"""Reading a file takes the memory of the file, not of the largest that there may be."""

from __future__ import annotations

import errno
import tracemalloc
from pathlib import Path

import pytest

from diskyard.host import Host

GIB = 1 << 30


def test_a_small_file_is_read_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"small")
    tracemalloc.start()
    try:
        assert Host.real().files.read(str(path), GIB) == b"small"
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    files = Host.real().files
    assert files.read(str(path), 5) == b"12345"
    with pytest.raises(OSError, match="large") as caught:
        files.read(str(path), 4)
    assert caught.value.errno == errno.EFBIG
    path.write_bytes(b"")
    assert files.read(str(path), 5) == b""
