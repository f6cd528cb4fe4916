"""How little of a trial is enough to break the same property."""

from __future__ import annotations

from tests.sim.trial import Trial


def broken_by(trial: Trial) -> set[str]:
    """The properties that it breaks."""
    return {name for name, _ in trial.run().violations}


def shrunk(trial: Trial) -> Trial:
    """The trial without the faults that it does not take to break one of the properties that it breaks (ddmin, Zeller
    2002)."""
    wanted = broken_by(trial)
    faults = list(trial.faults)
    size = max(1, len(faults) // 2)
    while faults:
        at, has_shrunk = 0, False
        while at < len(faults):
            fewer = faults[:at] + faults[at + size :]
            if broken_by(trial.with_faults(tuple(fewer))) & wanted:
                faults, has_shrunk = fewer, True
            else:
                at += size
        if size == 1 and not has_shrunk:
            break
        size = max(1, size // 2)
    return trial.with_faults(tuple(faults))
