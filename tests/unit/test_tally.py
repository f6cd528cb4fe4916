"""Counting many events at once comes to the same as counting each: compared with prometheus_client's own steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.tally import Tally, observe_all

BOUNDS = (0.001, 0.01, 0.1, 1.0)
# The bounds themselves, what lies between them, and what lies beyond.
VALUES = st.sampled_from([0.0, *BOUNDS, 0.0005, 0.05, 0.5, 1.5, 100.0]) | st.floats(0, 10)


Samples = dict[tuple[object, ...], object]


class Series:
    """One series of each kind, and all that a scrape would see of them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labelled = Histogram("seconds", "?", ["stage"], registry=self._registry, buckets=BOUNDS)
        self.lock_seconds, self.queue_seconds = labelled.labels("lock"), labelled.labels("queue")
        self.plain_seconds = Histogram("plain_seconds", "?", registry=self._registry, buckets=BOUNDS)
        self.counter = Counter("things", "?", ["kind"], registry=self._registry).labels("kind")
        self.gauge = Gauge("holders", "?", registry=self._registry)

    def samples(self) -> Samples:
        """Every sample but the times of creation; sums as exact as adding up in another order leaves them."""
        return {
            (sample.name, *sorted(sample.labels.items())): pytest.approx(sample.value, rel=1e-9, abs=1e-12)
            if sample.name.endswith("_sum")
            else sample.value
            for family in self._registry.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        }


@given(st.lists(VALUES, max_size=40), st.lists(VALUES, max_size=40))
def test_observe_all_is_observe_for_each(first: list[float], then: list[float]) -> None:
    at_once, one_by_one = Series(), Series()
    for values in (first, then):
        for at_once_series, series in [
            (at_once.lock_seconds, one_by_one.lock_seconds),
            (at_once.plain_seconds, one_by_one.plain_seconds),
        ]:
            observe_all(at_once_series, values)
            for value in values:
                series.observe(value)

    assert at_once.samples() == one_by_one.samples()


def test_of_one_tick_nothing_is_written_before_it_ends_and_everything_then() -> None:
    series = Series()

    async def count() -> Samples:
        tally = Tally()
        for value in (0.0005, 0.05, 0.05, 50.0):
            tally.step(series.counter)
            tally.observe(series.lock_seconds, value)
        tally.step(series.gauge, 3)
        tally.step(series.gauge, -1)
        before = series.samples()
        await asyncio.sleep(0)
        return before

    before = asyncio.run(count())

    assert before == Series().samples()
    assert series.samples() == counted(lambda other: count_each(other, [0.0005, 0.05, 0.05, 50.0], holders=2))


def test_several_ticks_add_up_and_gauges_go_down_again() -> None:
    series = Series()

    async def count() -> list[float]:
        tally, holders = Tally(), []
        for _ in range(5):
            for _ in range(3):
                tally.step(series.counter)
                tally.step(series.gauge)
                tally.observe(series.queue_seconds, 0.5)
            await asyncio.sleep(0)
            holders.append(series.gauge._value.get())
        for _ in range(15):
            tally.step(series.gauge, -1)
        await asyncio.sleep(0)
        return holders

    assert asyncio.run(count()) == [3, 6, 9, 12, 15]
    expected = Series()
    expected.counter.inc(15)
    for _ in range(15):
        expected.queue_seconds.observe(0.5)
    assert series.samples() == expected.samples()


def test_what_rises_and_falls_in_one_tick_is_not_touched() -> None:
    series = Series()
    steps: list[float] = []

    class Watched(Gauge):
        def inc(self, amount: float = 1) -> None:
            steps.append(amount)

    watched = Watched("watched", "?", registry=None)

    async def count() -> None:
        tally = Tally()
        tally.step(watched)
        tally.step(watched, -1)
        await asyncio.sleep(0)

    asyncio.run(count())
    assert steps == []
    assert series.samples() == Series().samples()


def test_without_a_loop_each_step_is_written_at_once() -> None:
    series, tally = Series(), Tally()

    tally.step(series.counter)
    tally.observe(series.lock_seconds, 0.05)

    assert series.samples() == counted(lambda other: count_each(other, [0.05], holders=0))


def test_it_outlives_the_loop_it_counted_in() -> None:
    series, tally = Series(), Tally()

    async def one() -> None:
        tally.step(series.counter)
        await asyncio.sleep(0)

    for _ in range(3):
        asyncio.run(one())

    assert series.samples() == counted(lambda other: other.counter.inc(3))


# Helpers


def counted(count: Callable[[Series], None]) -> Samples:
    """The samples after counting in prometheus_client's own way."""
    series = Series()
    count(series)
    return series.samples()


def count_each(series: Series, values: Sequence[float], *, holders: int) -> None:
    for value in values:
        series.counter.inc()
        series.lock_seconds.observe(value)
    series.gauge.inc(holders)
