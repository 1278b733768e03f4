"""Asked of many images at once, chains answer as if they were asked one by one."""

from __future__ import annotations

import random
from typing import Any

import pytest

from diskyard.model.capabilities import Capabilities
from diskyard.model.chains import ROOTS, Chains
from diskyard.model.records import Image, Volume
from diskyard.model.state import State
from diskyard.model.status import why_broken
from diskyard.planner.find_fixes import find_fixes
from diskyard.planner.scan import Scan
from tests.unit.model.one_by_one import image_status, lasting_depth
from tests.unit.records import copy_hold, disk, image, state, volume, weak

CAPABILITIES = Capabilities(preallocation=True)


def _tree(chance: random.Random) -> tuple[State, set[str], dict[str, int]]:
    """Snapshots and disks in chains that branch, some of them damaged in each way there is."""
    records: list[Image | Volume] = []
    parents: list[str | None] = [None]
    for number in range(chance.randint(1, 60)):
        key, parent = f"i{number}", chance.choice(parents[-3:])
        more: dict[str, Any] = {"damage": "its tables have errors"} if chance.random() < 0.03 else {}
        if chance.random() < 0.03:
            more["state"] = "doomed"
        held: dict[str, Any] = {"held_for": (copy_hold(),)} if chance.random() < 0.1 else {}
        make = chance.choice((image, disk, weak, weak))
        if chance.random() < 0.03:
            records.append(make(key, None, **held))
        else:
            records += [make(key, f"v{number}", **held), volume(f"v{number}", parent, **more)]
        parents.append(key)
    found = state(*records)
    missing = {key for key in found.volumes if chance.random() < 0.03}
    return found, missing, {key: chance.randint(0, 100) for key in found.volumes}


@pytest.mark.parametrize("seed", range(50))
def test_as_if_asked_one_by_one(seed: int) -> None:
    found, missing, allocated = _tree(random.Random(seed))
    chains = Chains(found, missing, allocated)
    for one in found.images.values():
        links = list(found.chain(one))
        assert chains.why_broken(one) == why_broken(found, one, missing)
        assert chains.allocated_bytes(one) == sum(allocated[v.id] for _, v in links)
        assert list(chains.roots(one)) == [link for link, _ in links[-ROOTS:]]
        if links:
            assert chains.status(one, CAPABILITIES) == image_status(found, one, CAPABILITIES, missing)
            assert chains.lasting_depth(one) == lasting_depth(found, one)


def test_a_chain_of_thousands_is_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is sound, though nothing attaches it: check lists all that can be shortened, in no time."""
    records: list[Image | Volume] = []
    parent = None
    for number in range(5000):
        records += [volume(f"v{number}", parent), image(f"i{number}", f"v{number}")]
        parent = f"i{number}"
    found = state(*records)
    walked = 0
    above = Chains._above

    def counted(self: Chains, *words: Any) -> Any:
        nonlocal walked
        walked += 1
        return above(self, *words)

    def never(self: State, image: Image) -> Any:
        raise AssertionError("a chain is walked for one image")

    monkeypatch.setattr(Chains, "_above", counted)
    monkeypatch.setattr(State, "chain", never)
    fixes = find_fixes(Scan(found, Capabilities()))
    assert len(fixes) == 5000 - 32
    assert walked == 5000
