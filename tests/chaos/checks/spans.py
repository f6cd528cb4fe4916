"""Spans of time: when a fault was on, when a process stood still."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

Event = dict[str, Any]


class Fault(NamedTuple):
    """One injected fault; times in ns. `forgets`: whether data can be lost by it, or a clock be moved."""

    id: int | str
    kind: str
    scope: str
    began: int
    ended: int
    is_targeted: bool
    point: str | None
    forgets: bool


class Spans:
    """Spans (from, to) in ns, merged where they overlap or have no more than `apart` ns between them."""

    def __init__(self, spans: Iterable[tuple[int, int]], *, apart: int = 0) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []
        for begin, end in sorted(spans):
            if self._ends and begin <= self._ends[-1] + apart:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._begins.append(begin)
                self._ends.append(end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._begins, self._ends, strict=True))

    def within(self, begin: int, end: int) -> int:
        """How much of begin..end they cover, in ns."""
        first, after = bisect_right(self._ends, begin), bisect_left(self._begins, end)
        return sum(min(end, self._ends[k]) - max(begin, self._begins[k]) for k in range(first, after))

    def uncovered(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of begin..end that they do not cover."""
        for k in range(bisect_right(self._ends, begin), bisect_left(self._begins, end)):
            if begin < self._begins[k]:
                yield begin, self._begins[k]
            begin = self._ends[k]
        if begin < end:
            yield begin, end

    def touch(self, begin: int, end: int) -> bool:
        """Whether any of them has a moment in common with begin..end, both included."""
        return bisect_left(self._ends, begin) < bisect_right(self._begins, end)

    def passed(self, t: int, outside_ns: int) -> int:
        """When so much time outside of them has passed since `t`."""
        for k in range(bisect_right(self._ends, t), len(self._begins)):
            until_next = max(0, self._begins[k] - t)
            if outside_ns < until_next:
                break
            outside_ns -= until_next
            t = self._ends[k]
        return t + outside_ns

    def begin_before(self, t: int, *, slack: int) -> int:
        """The beginning of the span that `t` lies in, or that ended up to `slack` before; else `t`."""
        place = bisect_right(self._begins, t) - 1
        return self._begins[place] if place >= 0 and self._ends[place] + slack >= t else t


NO_SPANS = Spans(())


def faults_of(begun: Sequence[Event], healed: Sequence[Event], *, last_t: int) -> list[Fault]:
    """Every fault with its end; one that never healed lasts to the end of the history."""
    ends = {event["id"]: event["t"] for event in healed}
    return [
        Fault(
            event["id"],
            event["kind"],
            str(event.get("scope", "")),
            event["t"],
            ends.get(event["id"], last_t),
            bool(event.get("targeted")),
            event.get("point"),
            event.get("forgets", True),  # histories of before do not tell
        )
        for event in begun
    ]
