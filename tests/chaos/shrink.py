"""Cuts a schedule that failed down to the shortest that still fails: `python -m tests.chaos shrink SCHEDULE`.

Delta debugging (Zeller, Hildebrandt: Simplifying and Isolating Failure-Inducing Input, 2002) over the faults, each
trial a real run; since a run may fail now and then only, a cut is kept only where it was seen to fail.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from service.dashboard.formatting import plural
from tests.chaos.arguments import positive
from tests.chaos.schedule import Fault, Schedule, load
from tests.chaos.standing import Standing
from tests.chaos.telling import again

SPARE_S = 1.0
SHORTEST_S = 2.0

Fails = Callable[[Schedule], bool]


@dataclass(frozen=True, slots=True)
class Shrunk:
    """The shortest schedule that was seen to fail, and in how many trials it was found."""

    schedule: Schedule
    trials: int


def shrink(schedule: Schedule, fails: Fails, *, within_s: float) -> Shrunk:
    """Fewer faults and less time, as long as `fails` says so, for at most so many seconds and one trial."""
    give_up_at_s = time.monotonic() + within_s
    trials = 0
    best = schedule

    def still_fails(candidate: Schedule) -> bool:
        nonlocal trials, best
        if time.monotonic() > give_up_at_s:
            return False
        trials += 1
        if fails(candidate):
            best = candidate
            return True
        return False

    still_fails(replace(schedule, faults=[]))
    parts = 2
    while len(best.faults) >= 2 and time.monotonic() < give_up_at_s:
        chunks = _chunks(best.faults, parts)
        if any(still_fails(_rest(best, chunk)) for chunk in chunks):
            parts = max(2, parts - 1)
        elif parts >= len(best.faults):
            break
        else:
            parts = min(len(best.faults), parts * 2)
    while (shorter := _shorter(best)).duration_s < best.duration_s and still_fails(shorter):
        pass
    return Shrunk(best, trials)


def _chunks(faults: Sequence[Fault], parts: int) -> list[list[int]]:
    ids = [fault["id"] for fault in faults]
    size = -(-len(ids) // parts)
    return [ids[first : first + size] for first in range(0, len(ids), size)]


def _rest(schedule: Schedule, chunk: Sequence[int]) -> Schedule:
    return schedule.without(set(chunk))


def _shorter(schedule: Schedule) -> Schedule:
    """Half as long, but not shorter than its last ambient fault needs."""
    last_s = max(
        (fault["at_s"] + fault.get("lasts_s", 0.0) for fault in schedule.faults if "at_s" in fault), default=0.0
    )
    return replace(schedule, duration_s=max(SHORTEST_S, last_s + SPARE_S, schedule.duration_s / 2))


def failing_in(standing: Standing, folder: Path, properties: Sequence[str], *, rate: float) -> Fails:
    """A trial: a run of the schedule breaks one of these properties."""

    def fails(candidate: Schedule) -> bool:
        judged = standing.run(candidate, folder / "trial.jsonl", rate=rate)
        return bool(set(properties) & set(judged.broken))

    return fails


def main(words: list[str]) -> int:
    """0 when it was cut down to one that was seen to fail, 2 when it did not fail."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos shrink", description="Cuts a failing schedule down.")
    parser.add_argument("schedule", type=Path)
    parser.add_argument("--within-s", type=positive, default=300.0)
    parser.add_argument("--rate", type=positive, default=450.0)
    parser.add_argument("--out", type=Path, default=Path("chaos-shrunk.json"))
    asked = parser.parse_args(words)
    schedule, console = load(asked.schedule), Console()
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as folder,
        Standing(Path(folder), world=schedule.world) as standing,
    ):
        first = standing.run(schedule, Path(folder) / "first.jsonl", rate=asked.rate)
        if not first.broken:
            console.print("it did not fail: nothing to cut down", highlight=False)
            return 2
        console.print(f"broken: {', '.join(first.broken)}", highlight=False)
        fails = failing_in(standing, Path(folder), first.broken, rate=asked.rate)
        shrunk = shrink(schedule, fails, within_s=asked.within_s)
    shrunk.schedule.save(asked.out)
    console.print(
        f"{plural(len(schedule.faults), 'fault')} cut down to {len(shrunk.schedule.faults)}, {schedule.duration_s:g} s"
        f" to {shrunk.schedule.duration_s:g} s, in {plural(shrunk.trials, 'run')}; again: {again(asked.out)}",
        highlight=False,
        soft_wrap=True,
    )
    return 0
