"""Lies planted in a good history, which have to be caught: `python -m tests.chaos.checks.canary FILE.jsonl`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.chaos.checks.draft import CannotPlant, Draft
from tests.chaos.checks.evidence import Event
from tests.chaos.checks.judging import judge_one
from tests.chaos.checks.lies import LIES, Lie
from tests.chaos.history import read_history


class Canaries(NamedTuple):
    """The lies by name: those that were caught, those that were not, and those that this history has no place for."""

    caught: list[str]
    missed: list[str]
    impossible: list[str]


def main() -> int:
    """Plants every lie in a recorded history; exit status 1 when one is not caught."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("history", type=Path)
    arguments.add_argument("--seed", type=int, default=1)
    chosen = arguments.parse_args()
    result = canaries(read_history(chosen.history), Random(chosen.seed))
    for what, names in result._asdict().items():
        print(f"{what}: {', '.join(names) or 'none'}")
    return 1 if result.missed else 0


def canaries(events: Sequence[Event], rng: Random) -> Canaries:
    """Plants each lie, one at a time, and looks whether its property is found broken."""
    result = Canaries([], [], [])
    for lie, breaks in LIES:
        try:
            planted = _told(events, lie, rng)
        except CannotPlant:
            result.impossible.append(lie.__name__)
            continue
        is_caught = judge_one(breaks, planted).holds is False
        (result.caught if is_caught else result.missed).append(lie.__name__)
    return result


def plant(events: Sequence[Event], rng: Random) -> tuple[list[Event], str]:
    """The history with one lie in it, and the property that it breaks. Raises CannotPlant where no lie has a place."""
    for lie, breaks in rng.sample(LIES, len(LIES)):
        try:
            return _told(events, lie, rng), breaks
        except CannotPlant:
            continue
    raise CannotPlant


def _told(events: Sequence[Event], lie: Lie, rng: Random) -> list[Event]:
    draft = Draft(events, rng)
    lie(draft)
    return draft.events


if __name__ == "__main__":
    sys.exit(main())
