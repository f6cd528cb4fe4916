"""The least that a run must have seen to mean something: what its schedule promises, on a machine however slow."""

from __future__ import annotations

from tests.chaos.checks import Thresholds
from tests.chaos.schedule import Schedule

OPERATIONS_PER_S = 10
FIRED = 0.25  # of the faults that were drawn: more than fit into the time may have been
LONG_S = 20.0  # a run from which deaths of holders may be expected


def least_of(schedule: Schedule) -> Thresholds:
    """A fraction of what such a run has on the machine that it was made for."""
    targeted = [fault for fault in schedule.faults if "point" in fault]
    fired = FIRED if schedule.duration_s >= LONG_S else 0.0
    deaths = sum(fault["kind"].startswith("die") for fault in targeted)
    return Thresholds(
        operations=int(OPERATIONS_PER_S * schedule.duration_s),
        charges=1,
        snapshots=1,
        faults=max(min(1, len(schedule.faults)), int(fired * len(schedule.faults))),
        targeted_faults=int(fired * len(targeted)),
        holders_killed_inside=1 if deaths and schedule.duration_s >= LONG_S else 0,
    )
