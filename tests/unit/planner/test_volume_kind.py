"""Raw or qcow2, cloned or empty, reserved or not: for each place and each thing that is asked of it."""

from __future__ import annotations

import pytest

from diskyard.model.capabilities import Capabilities
from diskyard.model.records import Volume
from diskyard.planner.volume_kind import Content, VolumeKind, choose_kind
from tests.unit.records import building, volume

SIZE = 4096
PLAIN = Capabilities()
REFLINK = Capabilities(reflink=True, preallocation=True)
SHORT = Capabilities(reflink=True, preallocation=True, longest_bytes=SIZE - 512)
JUST = Capabilities(reflink=True, preallocation=True, longest_bytes=SIZE)
JUNK = Capabilities(reflink=True, preallocation=True, zeroed=False)
JUNK_SHORT = Capabilities(zeroed=False, longest_bytes=SIZE - 512)
RAW, RESERVED, CLONE = (
    VolumeKind("raw"),
    VolumeKind("raw", preallocated=True),
    VolumeKind("raw", is_clone=True),
)
QCOW2 = VolumeKind("qcow2")

NEW = [
    # place, content, reserve, kind
    (PLAIN, "zeros", False, RAW),
    (PLAIN, "zeros", True, RAW),  # it cannot reserve
    (PLAIN, "copy", False, RAW),
    (PLAIN, "copy", True, RAW),
    (PLAIN, "difference", False, QCOW2),
    (PLAIN, "difference", True, QCOW2),
    (REFLINK, "zeros", False, RAW),
    (REFLINK, "zeros", True, RESERVED),
    (REFLINK, "copy", False, RAW),
    (REFLINK, "copy", True, RESERVED),
    (REFLINK, "difference", True, QCOW2),
    (JUST, "zeros", True, RESERVED),
    (SHORT, "zeros", False, QCOW2),
    (SHORT, "zeros", True, QCOW2),  # only a raw volume is reserved
    (SHORT, "copy", True, QCOW2),
    (SHORT, "difference", True, QCOW2),
    (JUNK, "zeros", False, QCOW2),  # nothing writes its zeros
    (JUNK, "zeros", True, QCOW2),
    (JUNK, "copy", False, RAW),  # the copy writes them
    (JUNK, "copy", True, RESERVED),
    (JUNK, "difference", False, QCOW2),
    (JUNK_SHORT, "copy", False, QCOW2),
]


@pytest.mark.parametrize(("capabilities", "content", "reserve", "kind"), NEW)
def test_a_volume_that_begins_empty(
    capabilities: Capabilities, content: Content, reserve: bool, kind: VolumeKind
) -> None:
    assert choose_kind(capabilities, SIZE, content, reserve=reserve) == kind


SOURCE = volume("v", size_bytes=SIZE)
SAME_AS = [
    # place, volume to share, size, kind
    (REFLINK, SOURCE, SIZE, CLONE),
    (REFLINK, SOURCE, 2 * SIZE, CLONE),
    (REFLINK, SOURCE, SIZE // 2, CLONE),
    (REFLINK, volume("v", format="qcow2"), SIZE, QCOW2),
    (REFLINK, volume("v", "p"), SIZE, QCOW2),
    (REFLINK, building("v", "i", "p", format="raw"), SIZE, QCOW2),  # its parent may be needed yet
    (PLAIN, SOURCE, SIZE, QCOW2),
    (JUST, SOURCE, SIZE, CLONE),
    (JUST, SOURCE, SIZE + 512, QCOW2),
    (SHORT, SOURCE, SIZE, QCOW2),
    (JUNK, SOURCE, SIZE, CLONE),
    (JUNK, SOURCE, SIZE - 512, CLONE),
    (JUNK, SOURCE, SIZE + 512, QCOW2),  # nothing writes the zeros beyond what is shared
]


@pytest.mark.parametrize(("capabilities", "source", "size_bytes", "kind"), SAME_AS)
def test_a_volume_that_begins_as_another(
    capabilities: Capabilities, source: Volume, size_bytes: int, kind: VolumeKind
) -> None:
    assert choose_kind(capabilities, size_bytes, "difference", same_as=source) == kind
