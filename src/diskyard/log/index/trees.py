"""Sorted keys and values as a tree of blocks; the checksum of the root identifies the tree.

A node is never changed. A change writes new leaves, and new nodes from them up to a new root;
unchanged nodes are shared, and the old root still leads to the old tree. A parent holds
the checksums of its children, so the absence of a key is as certain as its presence.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from diskyard.log.index.blocks import Block, BlockFile, BlockWriter

_LEAF_BYTES = 4096
_CHILDREN = 64
_CHILDREN_MOST = 2 * _CHILDREN

T = TypeVar("T")


class Root(NamedTuple):
    """A tree.

    :param height: how many levels of nodes there are above the leaves.
    """

    block: Block
    height: int


class Leaf(NamedTuple):
    """Keys in order, and the value of each."""

    keys: list[str]
    values: list[bytes]


class Child(NamedTuple):
    """A node, and the first key in it."""

    first_key: str
    block: Block


class Node(NamedTuple):
    """Nodes of the level below, in order, and the first key in each."""

    first_keys: list[str]
    blocks: list[Block]


Nodes = Callable[[Block], Node]
Change = tuple[str, bytes | None]
_leaf_decoder = msgspec.msgpack.Decoder(Leaf)
_node_decoder = msgspec.msgpack.Decoder(Node)


def read_leaf(file: BlockFile, block: Block) -> Leaf:
    """Read a leaf.

    :raises diskyard.errors.RepositoryUnavailable: it is not what was written.
    """
    return _decoded(file, block, _leaf_decoder)


def read_node(file: BlockFile, block: Block) -> Node:
    """Read a node above the leaves.

    :raises diskyard.errors.RepositoryUnavailable: it is not what was written.
    """
    return _decoded(file, block, _node_decoder)


def _decoded(file: BlockFile, block: Block, decoder: msgspec.msgpack.Decoder[T]) -> T:
    data = file.read(block)
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise file.bad(f"a block is of another form: {error}") from error


def find_leaf(root: Root, key: str, nodes: Nodes) -> Block:
    """The only leaf that can have a key."""
    block = root.block
    for _ in range(root.height):
        node = nodes(block)
        block = node.blocks[_position(node, key)]
    return block


def _position(node: Node, key: str) -> int:
    """The index of the child that may have a key. The first child takes all keys before it, too."""
    return max(bisect_right(node.first_keys, key) - 1, 0)


def items_after(root: Root | None, key: str, file: BlockFile) -> Iterator[tuple[str, bytes]]:
    """The keys greater than ``key`` with their values, in order; nodes are read when they are needed."""
    if root is not None:
        yield from _items_after(root.block, root.height, key, file)


def _items_after(block: Block, height: int, key: str, file: BlockFile) -> Iterator[tuple[str, bytes]]:
    if height:
        node = read_node(file, block)
        for child in node.blocks[_position(node, key) :]:
            yield from _items_after(child, height - 1, key, file)
        return
    leaf = read_leaf(file, block)
    begin = bisect_right(leaf.keys, key)
    yield from zip(leaf.keys[begin:], leaf.values[begin:], strict=True)


# -- writing ------------------------------------------------------------------------------


def build(items: Iterable[tuple[str, bytes]], writer: BlockWriter) -> Root | None:
    """Build a tree of keys and values that come in order of the keys; None if there are none."""
    return _grown(_leaves(items, writer), 0, writer)


def changed(root: Root | None, changes: Sequence[Change], writer: BlockWriter) -> Root | None:
    """The tree with new values for some keys, and without the keys whose new value is None.

    :param changes: in order of the keys, each key once.
    """
    if not changes:
        return root
    if root is None:
        return build(((key, value) for key, value in changes if value is not None), writer)
    return _grown(_change(root.block, root.height, changes, writer), root.height, writer)


def _change(block: Block, height: int, changes: Sequence[Change], writer: BlockWriter) -> list[Child]:
    """What replaces a node: none, one or several nodes of its level."""
    if not height:
        leaf = read_leaf(writer.file, block)
        values: dict[str, bytes | None] = dict(zip(leaf.keys, leaf.values, strict=True))
        values.update(changes)
        return _leaves(((key, value) for key, value in sorted(values.items()) if value is not None), writer)
    children: list[Child] = []
    node = read_node(writer.file, block)
    begin = 0
    for first_key, child, next_key in zip(
        node.first_keys, node.blocks, [*node.first_keys[1:], None], strict=True
    ):
        end = len(changes) if next_key is None else bisect_left(changes, next_key, key=_key_of)
        if begin == end:
            children.append(Child(first_key, child))
        else:
            children += _change(child, height - 1, changes[begin:end], writer)
        begin = end
    return _nodes(children, writer)


def _key_of(change: tuple[str, Any]) -> str:
    return change[0]


def _grown(children: list[Child], height: int, writer: BlockWriter) -> Root | None:
    while len(children) > 1:
        children, height = _nodes(children, writer), height + 1
    return Root(children[0].block, height) if children else None


def _nodes(children: list[Child], writer: BlockWriter) -> list[Child]:
    """Nodes over these children."""
    if len(children) <= _CHILDREN_MOST:
        groups = [children] if children else []
    else:
        groups = [children[begin : begin + _CHILDREN] for begin in range(0, len(children), _CHILDREN)]
    return [_node(group, writer) for group in groups]


def _node(children: Sequence[Child], writer: BlockWriter) -> Child:
    node = Node([child.first_key for child in children], [child.block for child in children])
    return Child(node.first_keys[0], writer.add(msgspec.msgpack.encode(node)))


def _leaves(items: Iterable[tuple[str, bytes]], writer: BlockWriter) -> list[Child]:
    """Leaves with these keys and values. A long value may have a leaf to itself."""
    children: list[Child] = []
    leaf = Leaf([], [])
    size_bytes = 0
    for key, value in items:
        if size_bytes and size_bytes + len(value) > _LEAF_BYTES:
            children.append(_leaf(leaf, writer))
            leaf, size_bytes = Leaf([], []), 0
        leaf.keys.append(key)
        leaf.values.append(value)
        size_bytes += len(key) + len(value)
    if leaf.keys:
        children.append(_leaf(leaf, writer))
    return children


def _leaf(leaf: Leaf, writer: BlockWriter) -> Child:
    return Child(leaf.keys[0], writer.add(msgspec.msgpack.encode(leaf)))
