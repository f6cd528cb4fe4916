"""Waits that go on: each counted at its present age, so that a wait is seen before it is over; and never twice."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from locks.histogram import LogHistogram

# Of the locks that are waited for, so many are told of by name: half of them where most was waited in all, half where
# one caller waits longest.
MOST_LINES = 50
NAMES_PER_CELL = 3

# By lock, how many seconds each of its callers has waited so far.
Waits = Mapping[str, Sequence[float]]


class LineSeen(NamedTuple):
    """Those who wait for one lock: how many, how long all together, and how long the first of them, so far."""

    waiting: int
    total_s: float
    oldest_s: float


def lines_of(waits: Waits) -> Mapping[str, LineSeen]:
    """The lines in which most is waited, at most MOST_LINES."""
    lines = {name: LineSeen(len(ages_s), sum(ages_s), max(ages_s)) for name, ages_s in waits.items()}
    if len(lines) <= MOST_LINES:
        return lines
    by_total = heapq.nlargest(MOST_LINES // 2, lines, key=lambda name: lines[name].total_s)
    by_oldest = heapq.nlargest(MOST_LINES // 2, lines, key=lambda name: lines[name].oldest_s)
    return {name: lines[name] for name in (*by_total, *by_oldest)}


def ages_of(waits: Waits) -> LogHistogram:
    """How long all of them have waited so far."""
    return LogHistogram.of(age_s for ages_s in waits.values() for age_s in ages_s)


def cells_of(names: Iterable[str], waits: Waits) -> Mapping[str, int]:
    """`w<bucket> <lock>` -> how many wait there; up to three of these locks a bucket."""
    cells: dict[str, int] = {}
    named: dict[int, int] = {}
    for name in names:
        for bucket, count in LogHistogram.of(waits[name]).sparse().items():
            if named.get(bucket, 0) < NAMES_PER_CELL:
                named[bucket] = named.get(bucket, 0) + 1
                cells[f"w{bucket} {name}"] = count
    return cells


class Levels:
    """States told at keys to which all instances add: what is added is what has changed since this one told last.

    Whoever begins with the next key begins from nothing there.
    """

    def __init__(self) -> None:
        self._told: dict[str, tuple[str, Mapping[str, int]]] = {}

    def changes(self, kind: str, key: str, state: Mapping[str, int]) -> Mapping[str, int]:
        """What to add there, so that the key has the sum of the last states of all. One key of a kind is remembered."""
        told = self._told_at(kind, key)
        self._told[kind] = (key, dict(state))
        changes = {field: state.get(field, 0) - told.get(field, 0) for field in (*state, *told)}
        return {field: by for field, by in changes.items() if by}

    def rises(self, kind: str, key: str, state: Mapping[str, int]) -> Mapping[str, int]:
        """What to add there, so that the key has the sum of the highest of each field; nothing is taken back."""
        told = self._told_at(kind, key)
        rises = {field: now - told.get(field, 0) for field, now in state.items() if now > told.get(field, 0)}
        self._told[kind] = (key, {**told, **{field: state[field] for field in rises}})
        return rises

    def _told_at(self, kind: str, key: str) -> Mapping[str, int]:
        at, told = self._told.get(kind, ("", {}))
        return told if at == key else {}
