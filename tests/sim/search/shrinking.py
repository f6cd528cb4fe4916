"""How little of a trial is enough to break the same property."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from tests.chaos.checks import PROPERTIES
from tests.sim.trial import SIZES, Trial

T = TypeVar("T")

SHORTEST_S = 1.0


def broken_by(trial: Trial) -> list[str]:
    """The properties that it breaks, the gravest first."""
    broken = {name for name, _ in trial.run().violations}
    return [name for name in PROPERTIES if name in broken]


def shrunk(trial: Trial) -> Trial:
    """The trial with the fewest faults and delays that still break the gravest of what it breaks, and then with fewer
    processes and in less time."""
    broken = broken_by(trial)
    if not broken:
        return trial

    def is_enough(smaller: Trial) -> bool:
        return broken[0] in broken_by(smaller)

    trial = _with_fewest(trial, is_enough)
    if trial.scene is None and (smallest := _smaller(trial, is_enough)) != trial:
        trial = _with_fewest(smallest, is_enough)
    return trial


def _with_fewest(trial: Trial, is_enough: Callable[[Trial], bool]) -> Trial:
    trial = replace(trial, faults=fewest(trial.faults, lambda faults: is_enough(replace(trial, faults=faults))))
    return replace(trial, delays=fewest(trial.delays, lambda delays: is_enough(replace(trial, delays=delays))))


def fewest(items: tuple[T, ...], are_enough: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """Those without which they would not be enough (ddmin, Zeller 2002): each that is left is needed."""
    size = max(1, len(items) // 2)
    while items:
        at, before = 0, items
        while at < len(items):
            fewer = items[:at] + items[at + size :]
            if are_enough(fewer):
                items = fewer
            else:
                at += size
        if size == 1 and items == before:
            break
        size = max(1, size // 2)
    return items


def _smaller(trial: Trial, is_enough: Callable[[Trial], bool]) -> Trial:
    """The smallest in each respect, one after the other, that is enough."""
    for size, least in SIZES.items():
        for count in range(least, getattr(trial.circumstances, size)):
            smaller = trial.with_sizes({size: count})
            if is_enough(smaller):
                trial = smaller
                break
    for shorter in _shorter(trial):
        if not is_enough(shorter):
            break
        trial = shorter
    return trial


def _shorter(trial: Trial) -> Iterator[Trial]:
    """The faults that would be later than its end are no faults of it."""
    lasts_s = trial.lasts_s
    while (lasts_s := lasts_s / 2) >= SHORTEST_S:
        faults = tuple(fault for fault in trial.faults if fault.at_s is None or fault.at_s < lasts_s)
        yield replace(trial, lasts_s=lasts_s, faults=faults)
