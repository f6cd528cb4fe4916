"""Counts of many events, written to their series at once: a step of a shared series costs more than the event does."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter as Multiset
from collections.abc import Sequence

from prometheus_client import Counter, Gauge, Histogram

Countable = Counter | Gauge


class Tally:
    """What happens in one tick of the event loop reaches the series when it ends; without a loop, at once."""

    def __init__(self) -> None:
        self._steps: dict[Countable, int] = {}
        self._values: dict[Histogram, list[float]] = {}
        self._scheduled = False

    def step(self, series: Countable, by: int = 1) -> None:
        """Counts up, or a gauge also down."""
        self._steps[series] = self._steps.get(series, 0) + by
        if not self._scheduled:
            self._schedule()

    def observe(self, series: Histogram, value: float) -> None:
        """One more value."""
        values = self._values.get(series)
        if values is None:
            self._values[series] = [value]
        else:
            values.append(value)
        if not self._scheduled:
            self._schedule()

    def write(self) -> None:
        """Everything counted so far."""
        self._scheduled = False
        steps, self._steps = self._steps, {}
        values, self._values = self._values, {}
        for series, by in steps.items():
            if by:
                series.inc(by)
        for histogram, observed in values.items():
            observe_all(histogram, observed)

    def _schedule(self) -> None:
        try:
            asyncio.get_running_loop().call_soon(self.write)
        except RuntimeError:
            self.write()
        else:
            self._scheduled = True


def observe_all(histogram: Histogram, values: Sequence[float]) -> None:
    """Like histogram.observe for each value, with one step a bucket: prometheus_client has no such call."""
    if len(values) == 1:
        histogram.observe(values[0])
        return
    histogram._sum.inc(sum(values))
    bounds = histogram._upper_bounds
    for bucket, count in Multiset([bisect_left(bounds, value) for value in values]).items():
        histogram._buckets[bucket].inc(count)
