"""Virtual time: what is to happen, in its order. Two runs of one seed are the same to the last event."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import Any

# When, in which order among those of the same moment, whom it happens to, what.
Entry = tuple[float, int, object, Callable[..., None], tuple[Any, ...]]

SOON_S = 0.02  # how late what a search delays may be; what is later is a fault
A_MOMENT_S = 1e-9


class World:
    """All that is to happen, by the true time in seconds since the beginning. For one run.

    `seed`: of every generator of random numbers. Each actor draws from one of its own, by its name, so that what one of
    them does more or less changes nothing for the others: a run without one of its faults is the same run until then.

    `delays`: numbers, in order: what would be the n-th event comes later, just behind the next one of its actor's that
    `matters`, or in SOON_S where there is none; and then perhaps also what would be the n-th now. `watch` is asked of
    each event before it happens.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now_s = 0.0
        self.events = 0  # that have happened so far
        self.delays: Sequence[int] = ()
        self.matters: Callable[[Entry], bool] = lambda entry: True
        self.watch: Callable[[Entry], None] | None = None
        self._heap: list[Entry] = []
        self._late: list[Entry] = []  # what is kept back; it is on the heap as well
        self._number = 0
        self._checksum = 0

    def random(self, name: str) -> random.Random:
        """Random numbers of one actor's own."""
        return random.Random(f"{self.seed}/{name}")

    def at(self, at_s: float, actor: object, happen: Callable[..., None], *arguments: Any) -> None:
        """Something is to happen to an actor; what is overdue happens next, in the order of its time."""
        self._number += 1
        heappush(self._heap, (at_s, self._number, actor, happen, arguments))

    @property
    def announced(self) -> int:
        """How many events have been announced so far: each entry has its number."""
        return self._number

    def run(self, *, until_s: float, events: int | None = None) -> None:
        """Goes on until then, or until so many events have happened since the beginning."""
        while self._heap and self._heap[0][0] <= until_s:
            if self.events == events:
                return
            entry = heappop(self._heap)
            if self.watch is not None:
                self.watch(entry)
            if self._late and entry in self._late:
                self._late.remove(entry)
            if self.delays and self.delays[0] == self.events:
                self.delays = self.delays[1:]
                self._keep_back(entry)
            elif self._late:
                self._happen_before_late(entry)
            else:
                self._happen(entry)
        self.now_s = max(self.now_s, until_s)

    def note(self, what: str) -> None:
        """Something of this run that has to be the same in each of its repetitions."""
        self._checksum = zlib.crc32(what.encode(), self._checksum)

    @property
    def checksum(self) -> str:
        """Of everything that was noted, and of how many events there were."""
        return f"{zlib.crc32(str(self.events).encode(), self._checksum):08x}"

    def soon(self, at_s: float) -> list[Entry]:
        """What is to happen soon after that time, in order; what is kept back comes last."""
        entries = [entry for entry in self._heap if entry[0] <= at_s + SOON_S and entry not in self._late]
        return [*sorted(entries), *self._late]

    def _keep_back(self, entry: Entry) -> None:
        at_s, _, actor, happen, arguments = entry
        self._late.append(self._put(at_s + SOON_S, actor, happen, arguments))

    def _happen_before_late(self, entry: Entry) -> None:
        matters = self.matters(entry)
        self._happen(entry)
        if matters:
            self._let_go(entry)

    def _let_go(self, after: Entry) -> None:
        """What was kept back at the same actor has its turn now."""
        for late in [late for late in self._late if late[2] is after[2] and late[3] != after[3]]:
            self._late.remove(late)
            self._heap.remove(late)
            heapify(self._heap)
            self._put(self.now_s + A_MOMENT_S, *late[2:])

    def _put(self, at_s: float, actor: object, happen: Callable[..., None], arguments: tuple[Any, ...]) -> Entry:
        self._number += 1
        entry = at_s, self._number, actor, happen, arguments
        heappush(self._heap, entry)
        return entry

    def _happen(self, entry: Entry) -> None:
        at_s, _, _, happen, arguments = entry
        if at_s > self.now_s:
            self.now_s = at_s
        self.events += 1
        happen(*arguments)
