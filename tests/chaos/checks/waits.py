"""Who waits for a lock, and when."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from tests.chaos.checks.evidence import Event, Evidence

Process = tuple[int | str, int]


class Wait(NamedTuple):
    """A process waits for a lock from `began` to `ended` (ns): somebody in it does, all the time."""

    name: str
    process: Process
    began: int
    ended: int


class Waiting:
    """The waits of one history."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence

    def at(self, name: str, t: int) -> set[Process]:
        """The processes that have begun to wait for it and neither got it as often nor gave up, nor died before `t`."""
        times, processes, steps = self._steps.get(name, ([], [], []))
        counts: Counter[Process] = Counter()
        for place in range(bisect_right(times, t)):
            process = processes[place]
            counts[process] = max(0, counts[process] + steps[place])
        deaths = self._deaths
        return {process for process, count in counts.items() if count > 0 and deaths.get(process, t) >= t}

    def waits(self) -> Iterator[Wait]:
        """Every wait of every process, those of one lock together."""
        for name, steps in self._steps.items():
            counts: Counter[Process] = Counter()
            began: dict[Process, int] = {}
            for t, process, step in zip(*steps, strict=True):
                counts[process] = max(0, counts[process] + step)
                if counts[process] == 0:
                    if process in began:
                        yield self._wait(name, process, began.pop(process), t)
                else:
                    began.setdefault(process, t)
            for process, t in began.items():
                yield self._wait(name, process, t, self._evidence.last_t)

    def _wait(self, name: str, process: Process, began: int, ended: int) -> Wait:
        return Wait(name, process, began, min(ended, self._deaths.get(process, ended)))

    @cached_property
    def _deaths(self) -> dict[Process, int]:
        return {(death["i"], death["life"]): death["t"] for death in self._evidence.by_kind["died"]}

    @cached_property
    def _steps(self) -> dict[str, tuple[list[int], list[Process], list[int]]]:
        steps: dict[str, tuple[list[int], list[Process], list[int]]] = defaultdict(lambda: ([], [], []))
        for event in self._evidence.by_kind["point"]:
            step = step_of(event)
            if step:
                times, processes, changes = steps[event["name"]]
                times.append(event["t"])
                processes.append((event["i"], event.get("life", 0)))
                changes.append(step)
        return dict(steps)


def step_of(event: Event) -> int:
    """By how many this point changes the number of those who wait in its process."""
    match event["p"]:
        case "waiting":
            return 1
        case "acquired":
            return -1 if event.get("queued") else 0
        case "gave_up":
            return -1 if event.get("queued", True) else 0
    return 0
