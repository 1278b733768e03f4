"""Every operation and fix, each on a world of its own. Crashes, faults and power cuts interrupt them."""

from __future__ import annotations

from diskyard.testing.scenarios.base import Scenario
from diskyard.testing.scenarios.fixing import FIX_ALL, FIXES
from diskyard.testing.scenarios.grouped import GROUPED
from diskyard.testing.scenarios.live import LIVE
from diskyard.testing.scenarios.more import MORE
from diskyard.testing.scenarios.operations import ON_REPOSITORIES, OPERATIONS
from diskyard.testing.scenarios.raw_copies import RAW_COPIES
from diskyard.testing.scenarios.sharing import MORE_SHARING, SHARING

SCENARIOS = [*OPERATIONS, *FIXES]


def find_scenario(name: str) -> Scenario:
    """The scenario of this name."""
    everything = (
        *(*SCENARIOS, *GROUPED, *LIVE, *MORE, *MORE_SHARING, *ON_REPOSITORIES, *RAW_COPIES, FIX_ALL),
    )
    return next(scenario for scenario in everything if scenario.name == name)


__all__ = ["FIX_ALL", "GROUPED", "LIVE", "RAW_COPIES", "SCENARIOS", "SHARING", "Scenario", "find_scenario"]
