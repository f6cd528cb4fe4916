"""How little of a trial is enough to break the same property."""

from __future__ import annotations

from tests.chaos.checks import PROPERTIES
from tests.sim.trial import Trial


def broken_by(trial: Trial) -> list[str]:
    """The properties that it breaks, the gravest first."""
    broken = {name for name, _ in trial.run().violations}
    return [name for name in PROPERTIES if name in broken]


def shrunk(trial: Trial) -> Trial:
    """The trial without the faults that it does not take to break the gravest of what it breaks (ddmin, Zeller 2002)."""
    broken = broken_by(trial)
    if not broken:
        return trial
    faults = list(trial.faults)
    size = max(1, len(faults) // 2)
    while faults:
        at, has_shrunk = 0, False
        while at < len(faults):
            fewer = faults[:at] + faults[at + size :]
            if broken[0] in broken_by(trial.with_faults(tuple(fewer))):
                faults, has_shrunk = fewer, True
            else:
                at += size
        if size == 1 and not has_shrunk:
            break
        size = max(1, size // 2)
    return trial.with_faults(tuple(faults))
