"""A Snapshot is of the moment of its commit, not of that of its intent."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from diskyard.model.records import Strategy
from diskyard.planner.building import WorkIds
from diskyard.planner.switch import Switch, begin, seal
from tests.unit.records import NOW, disk, draft_on, state, volume


@pytest.mark.parametrize(("asked", "given"), [(None, "performance"), ("space", "space")])
def test_a_strategy_that_is_set_meanwhile(asked: Strategy | None, given: Strategy) -> None:
    """The disk's own strategy goes to the Snapshot unless another was asked for."""
    request = Switch("d", "s", WorkIds("n", "work"), NOW, strategy=asked)
    draft = draft_on(state(disk("d", "v", strategy="space"), volume("v")))
    new = begin(draft, request)
    assert new is not None
    draft.put_image(replace(draft.state.images["d"], strategy="performance"))
    seal(draft, request, new)
    assert draft.state.images["s"].is_strong
    assert draft.state.images["s"].strategy == given
