"""Headers, clones and checks of single volumes."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.mover.copying.views import FileView
from diskyard.mover.formats.qcow2_header import empty_qcow2, overlay_is_unwritten
from diskyard.mover.opening import opened_files
from diskyard.mover.qemu.inspect import check_volume
from diskyard.mover.reflink import clone_layer
from tests.unit.mover.bench import MIB, Bench, check, run

SIZES = (0, 512, 65536, 1 << 29, (1 << 29) + 512, 100 << 30, (1 << 40) + 512, 63 << 40)


@pytest.mark.parametrize("size_bytes", SIZES)
@pytest.mark.parametrize("name", [None, "diskyard:2f0e", "x" * 1023])
def test_empty_qcow2_is_sound(tmp_path: Path, size_bytes: int, name: str | None) -> None:
    path = tmp_path / "empty"
    path.write_bytes(empty_qcow2(size_bytes, name))
    options = f"driver=qcow2,file.driver=file,file.filename={path},backing="
    run("qemu-img", "check", "--image-opts", options)
    info = run("qemu-img", "info", "--output=json", "--image-opts", options)
    assert f'"virtual-size": {size_bytes},' in info


@pytest.mark.parametrize("size_bytes", [-512, 100, 1 << 60])
def test_empty_qcow2_refuses(size_bytes: int) -> None:
    with pytest.raises(errors.InvalidParameter):
        empty_qcow2(size_bytes, None)


def unwritten(path: str | None) -> bool:
    with open(str(path), "rb") as file:
        return overlay_is_unwritten(lambda offset, count: os.pread(file.fileno(), count, offset))


def test_overlay_is_unwritten(bench: Bench) -> None:
    root = bench.layer("root", "raw", 4 * MIB)
    top = bench.layer("top", "qcow2", 4 * MIB, (root,))
    assert unwritten(top.path)
    bench.fill((top, root), [(0, 65536, 0)])
    assert not unwritten(top.path)
    with pytest.raises(errors.StorageError):
        unwritten(root.path)


def test_check_finds_damage(bench: Bench) -> None:
    layer = bench.layer("top", "qcow2", 4 * MIB)
    bench.fill((layer,), [(0, MIB, 3)])
    assert check_volume(bench.host, layer) is None
    check(layer)
    with open(str(layer.path), "r+b") as file:
        file.seek(2 * 65536 + 8)
        file.write(bytes(16))
    assert "errors" in str(check_volume(bench.host, layer))
    Path(str(layer.path)).write_bytes(b"no image")
    assert "cannot be checked" in str(check_volume(bench.host, layer))
    os.unlink(str(layer.path))
    assert check_volume(bench.host, layer) == "Its file is missing."


def test_check_finds_a_short_raw_file(bench: Bench) -> None:
    layer = bench.layer("root", "raw", MIB)
    assert check_volume(bench.host, layer) is None
    os.truncate(str(layer.path), 512)
    assert check_volume(bench.host, layer) == "Its file has 512 bytes of 1048576."


def test_clone(bench: Bench) -> None:
    source, target = bench.layer("source", "raw", MIB), bench.layer("target", "raw", 2 * MIB)
    bench.fill((source,), [(0, MIB, 3)])
    bench.fill((target,), [(0, 2 * MIB, 4)])
    with opened_files(bench.host, (source, target)) as (reads, writes):
        cloned = clone_layer(bench.host, reads, writes)
    assert Path(str(target.path)).read_bytes() == (b"\3" * MIB if cloned else b"\4" * 2 * MIB)


def test_a_view_that_cannot_be_opened_keeps_no_descriptor(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are too few for its chain: what there were are free again."""
    root = bench.layer("root", "raw", MIB)
    top = bench.layer("top", "qcow2", MIB, (root,))
    dup, made = os.dup, list[int]()

    def dup_once(fd: int) -> int:
        if made:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        made.append(dup(fd))
        return made[0]

    with opened_files(bench.host, (top, root)) as chain:
        monkeypatch.setattr(os, "dup", dup_once)
        with pytest.raises(errors.StorageError, match="Too many open files"), ExitStack() as stack:
            FileView.of(stack, bench.host, chain)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made[0])
