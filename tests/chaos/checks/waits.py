"""Who waits for a lock, and when."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import cached_property, lru_cache
from typing import NamedTuple

from tests.chaos.checks.evidence import FOREVER, Event, Evidence

Process = tuple[int | str, int]


class Wait(NamedTuple):
    """Somebody in this process waits for a lock from `began` until `ended` (ns); FOREVER: the history does not tell."""

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
        return {wait.process for wait in self.by_name.get(name, ()) if wait.began <= t < wait.ended}

    @cached_property
    def by_name(self) -> dict[str, list[Wait]]:
        """Every wait of every process, by the lock."""
        deaths = {(death["i"], death["life"]): death["t"] for death in self._evidence.by_kind["died"]}
        waits: dict[str, list[Wait]] = defaultdict(list)
        counts: Counter[tuple[str, Process]] = Counter()
        began: dict[tuple[str, Process], int] = {}
        for event in self._evidence.by_kind["point"]:
            if not (step := step_of(event)):
                continue
            name, process, t = event["name"], (event["i"], event.get("life", 0)), event["t"]
            counts[name, process] = max(0, counts[name, process] + step)
            if counts[name, process]:
                began.setdefault((name, process), t)
            elif (name, process) in began:
                waits[name].append(Wait(name, process, began.pop((name, process)), t))
        for (name, process), t in began.items():
            waits[name].append(Wait(name, process, t, deaths.get(process, FOREVER - 1) + 1))
        return dict(waits)


@lru_cache(maxsize=1)
def waiting_of(evidence: Evidence) -> Waiting:
    """The waits of this history; several properties ask for them."""
    return Waiting(evidence)


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
