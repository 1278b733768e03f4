"""How long a container may be, and what no raw volume can be as long as."""

from __future__ import annotations

import pytest

from diskyard import MiB
from diskyard.model.capabilities import Capabilities

EXACT = Capabilities()
UNITS = Capabilities(length_unit_bytes=4 * MiB, longest_bytes=10 * MiB)


@pytest.mark.parametrize(
    ("capabilities", "size_bytes", "container_bytes"),
    [
        (EXACT, 512, 512),
        (EXACT, 3 * MiB, 3 * MiB),
        (UNITS, 512, 4 * MiB),
        (UNITS, 4 * MiB, 4 * MiB),
        (UNITS, 4 * MiB + 512, 8 * MiB),
    ],
)
def test_a_container_ends_with_a_unit(
    capabilities: Capabilities, size_bytes: int, container_bytes: int
) -> None:
    assert capabilities.container_bytes(size_bytes) == container_bytes


@pytest.mark.parametrize(("size_bytes", "fits"), [(8 * MiB, True), (8 * MiB + 512, False)])
def test_what_is_rounded_up_must_fit_too(size_bytes: int, fits: bool) -> None:
    assert (UNITS.why_not_raw(size_bytes) is None) is fits
