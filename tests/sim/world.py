"""Virtual time: what is to happen, in its order. Two runs of one seed are the same to the last event."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

# When, in which order among those of the same moment, whom it happens to, what.
Entry = tuple[float, int, object, Callable[..., None], tuple[Any, ...]]

SOON_S = 0.05  # how late what a search delays may be
A_MOMENT_S = 1e-9


class World:
    """All that is to happen, by the true time in seconds since the beginning. For one run.

    `seed`: of every generator of random numbers. Each actor draws from one of its own, by its name, so that what one of
    them does more or less changes nothing for the others: a run without one of its faults is the same run until then.

    `delays`: pairs (n, places), in order: what would be the n-th event comes later, just behind so many others of its
    actor's; and then perhaps also what would be the n-th now. `watch` is asked of each event before it happens.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now_s = 0.0
        self.events = 0  # that have happened so far
        self.delays: Sequence[tuple[int, int]] = ()
        self.watch: Callable[[Entry], None] | None = None
        self._heap: list[Entry] = []
        self._number = 0
        self._checksum = 0

    def random(self, name: str) -> random.Random:
        """Random numbers of one actor's own."""
        return random.Random(f"{self.seed}/{name}")

    def at(self, at_s: float, actor: object, happen: Callable[..., None], *arguments: Any) -> None:
        """Something is to happen to an actor; what is overdue happens next, in the order of its time."""
        self._number += 1
        heappush(self._heap, (at_s, self._number, actor, happen, arguments))

    def run(self, *, until_s: float, events: int | None = None) -> None:
        """Goes on until then, or until so many events have happened since the beginning."""
        while self._heap and self._heap[0][0] <= until_s:
            if self.events == events:
                return
            entry = heappop(self._heap)
            if self.watch is not None:
                self.watch(entry)
            if self.delays and self.delays[0][0] == self.events:
                (_, places), *self.delays = self.delays
                self._delay(entry, places)
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
        """What is to happen soon after that time, in order."""
        return sorted(entry for entry in self._heap if entry[0] <= at_s + SOON_S)

    def behind(self, entry: Entry) -> list[Entry]:
        """What is to happen to the same actor soon after."""
        return [each for each in self.soon(entry[0]) if each[2] is entry[2]]

    def _delay(self, entry: Entry, places: int) -> None:
        behind = self.behind(entry)
        if len(behind) >= places:
            _, _, actor, happen, arguments = entry
            self.at(behind[places - 1][0] + A_MOMENT_S, actor, happen, *arguments)
        else:
            self._happen(entry)

    def _happen(self, entry: Entry) -> None:
        at_s, _, _, happen, arguments = entry
        if at_s > self.now_s:
            self.now_s = at_s
        self.events += 1
        happen(*arguments)
