"""What the turns on one name say: how many, how fair, how long anybody waited, and whether two were inside at once.

Pure: the candidates noted times by one clock, here they are judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Turn(NamedTuple):
    """One task's visit, times in microseconds from the window's begin. A fencing token of 0 is none."""

    process: int
    task: int
    waits_us: int
    enters_us: int
    leaves_us: int
    fencing_token: int = 0


class Waiting(NamedTuple):
    """A task that had not got in when the window ended."""

    process: int
    task: int
    waits_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnStatistics:
    """What a round found. `passed_on` are the turns of another task than the turn before."""

    turns: int
    passed_on: int
    fewest_turns: int
    most_turns: int
    longest_wait_s: float
    mean_cycle_s: float
    tasks: int
    faults: tuple[str, ...]

    @property
    def fairness(self) -> float:
        """Fewest turns over most turns: 1.0 is fair."""
        return self.fewest_turns / self.most_turns if self.most_turns else 0.0

    @property
    def longest_wait_rounds(self) -> float:
        """The longest wait, in rounds of everybody's one turn."""
        return self.longest_wait_s / (self.tasks * self.mean_cycle_s)


def read(lines: Iterable[dict[str, Any]]) -> tuple[list[Turn], list[Waiting]]:
    """The turns of all processes in the order of entering, and who still waited."""
    turns, waiting = [], []
    for process, line in enumerate(lines):
        turns += [Turn(process, *each) for each in line["turns"]]
        waiting += [Waiting(process, *each) for each in line["waiting"]]
    turns.sort(key=lambda turn: (turn.enters_us, turn.leaves_us))
    return turns, waiting


def judge(
    turns: Sequence[Turn], waiting: Sequence[Waiting], *, processes: int, tasks_per_process: int, window_us: int
) -> TurnStatistics:
    """Turns count when they begin within the window; whoever still waits has waited until its end at least."""
    counts = {(process, task): 0 for process in range(processes) for task in range(tasks_per_process)}
    longest_us, passed_on, before = 0, 0, None
    for turn in turns:
        who = (turn.process, turn.task)
        if 0 <= turn.enters_us < window_us:
            counts[who] += 1
            passed_on += who != before
            longest_us = max(longest_us, turn.enters_us - turn.waits_us)
        before = who
    longest_us = max([longest_us, *(window_us - each.waits_us for each in waiting)])
    total = sum(counts.values())
    return TurnStatistics(
        turns=total,
        passed_on=passed_on,
        fewest_turns=min(counts.values()),
        most_turns=max(counts.values()),
        longest_wait_s=longest_us / 1e6,
        mean_cycle_s=window_us / 1e6 / max(total, 1),
        tasks=len(counts),
        faults=_faults(turns, total),
    )


def _faults(turns: Sequence[Turn], total: int) -> tuple[str, ...]:
    inside_until_us, last_token, overlaps, fallen = -(10**18), 0, 0, 0
    for turn in turns:
        overlaps += turn.enters_us < inside_until_us
        inside_until_us = max(inside_until_us, turn.leaves_us)
        if turn.fencing_token:
            fallen += turn.fencing_token <= last_token
            last_token = turn.fencing_token
    faults = []
    if overlaps:
        faults.append(f"{overlaps} times a task entered while another was inside")
    if fallen:
        faults.append(f"{fallen} times a fencing token did not rise")
    if not total:
        faults.append("nobody got a turn")
    return tuple(faults)
