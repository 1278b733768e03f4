"""Every operation and fix, each on a world of its own: what crashes, faults and power cuts interrupt."""

from __future__ import annotations

from diskyard.testing.scenarios.base import Scenario
from diskyard.testing.scenarios.fixing import FIXES
from diskyard.testing.scenarios.grouped import GROUPED
from diskyard.testing.scenarios.operations import ON_REPOSITORIES, OPERATIONS

SCENARIOS = [*OPERATIONS, *FIXES]


def find_scenario(name: str) -> Scenario:
    """The scenario of this name."""
    every = (*SCENARIOS, *GROUPED, *ON_REPOSITORIES)
    return next(scenario for scenario in every if scenario.name == name)


__all__ = ["GROUPED", "SCENARIOS", "Scenario", "find_scenario"]
