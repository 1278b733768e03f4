"""Every operation and fix, each on a world of its own: what crashes, faults and power cuts interrupt."""

from __future__ import annotations

from diskyard.testing.scenarios.base import Scenario
from diskyard.testing.scenarios.fixing import FIXES
from diskyard.testing.scenarios.operations import ON_REPOSITORIES, OPERATIONS

SCENARIOS = [*OPERATIONS, *FIXES]


def find_scenario(name: str) -> Scenario:
    """The scenario of this name."""
    return next(scenario for scenario in (*SCENARIOS, *ON_REPOSITORIES) if scenario.name == name)


__all__ = ["SCENARIOS", "Scenario", "find_scenario"]
