"""Latency and rate over time, and how soon waiters took over from the dead: numbers for the charts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.chaos.checks.evidence import OK, Evidence
from tests.chaos.checks.takeover import GRACE_MS, takeovers_of
from tests.chaos.report.moments import origin_of

MOST_BINS = 120
SHORTEST_BIN_S = 0.25
EDGES_MS = (0, 5, 10, 15, 20, 30, 40, GRACE_MS, 75, 100, 250)
NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Bin:
    """What was answered within one stretch of time, `at_s` after the beginning: by event (ok, refused, unknown)."""

    at_s: float
    p50_ms: float | None
    p99_ms: float | None
    per_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Series:
    """The bins, each `width_s` long, and the latency over the whole run."""

    width_s: float
    bins: Sequence[Bin]
    p50_ms: float | None
    p99_ms: float | None
    answers: Mapping[str, int]

    @property
    def length_s(self) -> float:
        """From the beginning of the first bin to the end of the last."""
        return len(self.bins) * self.width_s


def series_of(evidence: Evidence) -> Series:
    """Successful entries' latency, and every operation's end, by the time of the answer."""
    answered = [(each, each.answer) for each in evidence.operations if each.answer is not None]
    origin = origin_of(evidence)
    last_t = max((answer["t"] for _, answer in answered), default=evidence.last_t)
    length_s = max((last_t - origin) / NS, SHORTEST_BIN_S)
    width_s = max(SHORTEST_BIN_S, length_s / MOST_BINS)
    latencies: list[list[float]] = [[] for _ in range(int(length_s / width_s) + 1)]
    ends: list[Counter[str]] = [Counter() for _ in latencies]
    for operation, answer in answered:
        number = int((answer["t"] - origin) / NS / width_s)
        ends[number][answer["e"]] += 1
        if operation.result == OK and operation.f == "enter":
            latencies[number].append((answer["t"] - operation.invoked) / 1e6)
    bins = [
        Bin(number * width_s, quantile(took, 0.5), quantile(took, 0.99), {k: n / width_s for k, n in ended.items()})
        for number, (took, ended) in enumerate(zip(latencies, ends, strict=True))
    ]
    every = [each for took in latencies for each in took]
    return Series(width_s, bins, quantile(every, 0.5), quantile(every, 0.99), sum(ends, Counter()))


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that so large a share of the values does not exceed; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@dataclass(frozen=True, slots=True)
class Column:
    """So many takeovers with a time up to an edge; `late`: over the limit."""

    label: str
    count: int
    late: bool


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many ms over the dead holder's remaining lease its successor acquired, where an undisturbed waiter stood."""

    over_ms: Sequence[float]
    columns: Sequence[Column]
    nobody: int
    left_out: int

    @property
    def late(self) -> int:
        """How many took longer than the limit, or never."""
        return self.nobody + sum(each > GRACE_MS for each in self.over_ms)


def takeover_histogram(evidence: Evidence) -> Histogram:
    """The takeovers that the checker counts."""
    takeovers, excluded = takeovers_of(evidence)
    over_ms = sorted(each.excess_ms for each in takeovers if each.excess_ms is not None)
    columns = [
        Column(_between(low, high), sum(low < each <= high for each in over_ms), low >= GRACE_MS)
        for low, high in pairwise((-math.inf, *EDGES_MS, math.inf))
    ]
    return Histogram(over_ms, columns, len(takeovers) - len(over_ms), sum(excluded.values()))


def _between(low: float, high: float) -> str:
    if low == -math.inf:
        return "≤ 0"
    return f"> {low:g}" if high == math.inf else f"{low:g}–{high:g}"
