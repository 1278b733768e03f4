"""A tree of blocks holds what a dict would, and every earlier root what it held before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diskyard import errors
from diskyard.host import Files, Host
from diskyard.log.index import trees
from diskyard.log.index.blocks import Block, BlockFile, BlockWriter

KEYS = st.integers(0, 60).map("{:02}".format)
BATCH = st.dictionaries(KEYS, st.none() | st.binary(max_size=90), max_size=25)


class Blocks:
    """A file of blocks that is written and read at once."""

    def __init__(self, path: Path) -> None:
        self.files: Files = Host.real().files
        self.path = path
        self.fd = self.files.create(str(path))
        self.file = BlockFile(self.files, path.name, self.fd)

    def writer(self) -> BlockWriter:
        return BlockWriter(self.files, self.file, self.fd)

    def items(self, root: trees.Root | None, after: str = "") -> list[tuple[str, bytes]]:
        return list(trees.items_after(root, after, self.file))

    def find(self, root: trees.Root | None, key: str) -> bytes | None:
        if root is None:
            return None
        block = trees.find_leaf(root, key, lambda found: trees.read_node(self.file, found))
        leaf = trees.read_leaf(self.file, block)
        return dict(zip(leaf.keys, leaf.values, strict=True)).get(key)


@pytest.fixture
def blocks(tmp_path: Path) -> Blocks:
    return Blocks(tmp_path / "blocks")


@pytest.fixture
def small_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees of a few keys are several levels high."""
    monkeypatch.setattr(trees, "_LEAF_BYTES", 100)
    monkeypatch.setattr(trees, "_CHILDREN", 2)
    monkeypatch.setattr(trees, "_CHILDREN_MOST", 4)


@pytest.mark.usefixtures("small_nodes")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(BATCH, max_size=8))
def test_a_tree_holds_what_a_dict_would(blocks: Blocks, batches: list[dict[str, bytes | None]]) -> None:
    root: trees.Root | None = None
    model: dict[str, bytes] = {}
    before: list[tuple[trees.Root | None, dict[str, bytes]]] = []
    for batch in batches:
        writer = blocks.writer()
        root = trees.changed(root, sorted(batch.items()), writer)
        writer.finish()
        model.update((key, value) for key, value in batch.items() if value is not None)
        for key in batch:
            if batch[key] is None:
                model.pop(key, None)
        before.append((root, dict(model)))
    for root, model in before:
        assert blocks.items(root) == sorted(model.items())
        for number in range(-1, 62):
            key = f"{number:02}"
            assert blocks.find(root, key) == model.get(key)
            assert blocks.items(root, key) == [item for item in sorted(model.items()) if item[0] > key]


@pytest.mark.usefixtures("small_nodes")
def test_a_tree_of_many_keys_is_high(blocks: Blocks) -> None:
    items = [(f"{number:03}", b"x" * 50) for number in range(200)]
    writer = blocks.writer()
    root = trees.build(iter(items), writer)
    writer.finish()
    assert root is not None
    assert root.height >= 4
    assert blocks.items(root) == items


def test_a_change_shares_what_is_the_same(blocks: Blocks) -> None:
    items = [(f"{number:06}", b"x" * 400) for number in range(5000)]
    writer = blocks.writer()
    root = trees.build(iter(items), writer)
    built_bytes = writer.finish()
    writer = blocks.writer()
    root = trees.changed(root, [("002500", b"y")], writer)
    assert writer.finish() - built_bytes < built_bytes / 50
    assert blocks.find(root, "002500") == b"y"
    assert len(blocks.items(root)) == 5000


def test_a_long_value_is_alone(blocks: Blocks) -> None:
    items = [("a", b"x" * 100_000), ("b", b"x"), ("c", b"x" * 2_000_000)]
    writer = blocks.writer()
    root = trees.build(iter(items), writer)
    writer.finish()
    assert blocks.items(root) == items


@pytest.mark.parametrize("damage", ["flipped", "cut", "zeros", "moved"])
def test_a_block_is_what_was_written_or_an_error(blocks: Blocks, damage: str) -> None:
    writer = blocks.writer()
    first, second = writer.add(b"first"), writer.add(b"other")
    writer.finish()
    assert (blocks.file.read(first), blocks.file.read(second)) == (b"first", b"other")
    asked = first
    if damage == "flipped":
        os.pwrite(blocks.fd, b"F", 0)
    elif damage == "cut":
        os.ftruncate(blocks.fd, 3)
    elif damage == "zeros":
        os.pwrite(blocks.fd, bytes(10), 0)
    else:
        asked = Block(second.offset_bytes, second.length_bytes, first.digest)
    with pytest.raises(errors.RepositoryUnavailable, match="discarded"):
        blocks.file.read(asked)
    with pytest.raises(errors.RepositoryUnavailable):
        blocks.file.read(second)  # of such a file nothing is believed any more
    assert blocks.file.is_bad


def test_a_block_of_another_form_is_an_error(blocks: Blocks) -> None:
    writer = blocks.writer()
    block = writer.add(b"\xc1 is no beginning of a message")
    writer.finish()
    with pytest.raises(errors.RepositoryUnavailable, match="of another form"):
        trees.read_leaf(blocks.file, block)


_ENDING = """
import atexit, os, sys

atexit.register(lambda: print(os.fstat(file._fd).st_size))  # called last

from diskyard.host import Host
from diskyard.log.index.blocks import BlockFile

files = Host.real().files
file = BlockFile(files, "blocks", files.create(sys.argv[1]))
"""


def test_a_process_that_ends_closes_nothing_that_a_thread_may_be_writing_to(tmp_path: Path) -> None:
    """The number of a descriptor that is closed may be another file's when the thread goes on."""
    words = [sys.executable, "-c", _ENDING, str(tmp_path / "blocks")]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("0\n", "")


def test_what_cannot_be_read_is_an_error(blocks: Blocks, tmp_path: Path) -> None:
    folder = BlockFile(blocks.files, "folder", os.open(tmp_path, os.O_RDONLY))
    with pytest.raises(errors.RepositoryUnavailable, match="Is a directory"):
        folder.read(Block(0, 5, b""))
    assert folder.is_bad
