"""What is looked at once a second, and not counted as it happens: queues, lanes, the oldest holder and waiter."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Gauge

INTERVAL_S = 1.0

# Name to waiting now, the most that may wait, lanes busy now, lanes there are.
Queues = Mapping[str, "QueueSeen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSeen:
    """One queue at one moment; `lanes` is 0 where nothing is worked off, only waited for."""

    depth: int
    limit: int
    lanes_busy: int = 0
    lanes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LocksSeen:
    """The locks of this instance at one moment: label of the resource, and for how long, seconds."""

    held_s: Iterable[tuple[str, float]]
    waited_s: Iterable[tuple[str, float]]


class SampledGauges:
    """Their series. All of them are "live": what a dead worker has said last is not shown any more."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, about: str, labels: tuple[str, ...], mode: str) -> Gauge:
            return Gauge(f"chargeonce_{name}", about, labels, registry=registry, multiprocess_mode=mode)  # type: ignore[arg-type]

        self.depth = gauge("queue_depth", "What waits, over all workers", ("queue",), "livesum")
        self.limit = gauge("queue_limit", "How much may wait, over all workers", ("queue",), "livesum")
        self.lanes_busy = gauge("database_lanes_busy", "Connections at work for a queue", ("queue",), "livesum")
        self.lanes = gauge("database_lanes", "Connections that a queue has", ("queue",), "livesum")
        self.oldest_held = gauge("lock_oldest_held_seconds", "Age of the oldest lease", ("resource",), "livemax")
        self.oldest_wait = gauge("lock_oldest_wait_seconds", "Wait of the longest waiter", ("resource",), "livemax")
        self.leases_limit = gauge("leases_limit", "How many leases may be held, over all workers", (), "livesum")
        self.build_info = gauge("build_info", "1, with the version as a label", ("version",), "livemax")
        self._resources: set[str] = set()

    def show_from_the_start(self, resource: str) -> None:
        """The two gauges of a resource."""
        self._resources.add(resource)
        self.oldest_held.labels(resource)
        self.oldest_wait.labels(resource)

    def set_queues(self, queues: Queues) -> None:
        """What each queue looks like now."""
        for name, seen in queues.items():
            self.depth.labels(name).set(seen.depth)
            self.limit.labels(name).set(seen.limit)
            if seen.lanes:
                self.lanes_busy.labels(name).set(seen.lanes_busy)
                self.lanes.labels(name).set(seen.lanes)

    def set_locks(self, locks: LocksSeen) -> None:
        """The oldest of each resource; 0 where nobody holds, or waits."""
        for gauge, seen in ((self.oldest_held, locks.held_s), (self.oldest_wait, locks.waited_s)):
            oldest = dict.fromkeys(self._resources, 0.0)
            for resource, seconds in seen:
                oldest[resource] = max(oldest.get(resource, 0.0), seconds)
            for resource, seconds in oldest.items():
                gauge.labels(resource).set(seconds)


class Sampling:
    """Looks once a second. For one event loop."""

    def __init__(
        self,
        gauges: SampledGauges,
        *,
        queues: Callable[[], Queues],
        locks: Callable[[], LocksSeen],
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._gauges = gauges
        self._queues = queues
        self._locks = locks
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Looks once, then goes on looking."""
        self._look()
        self._task = asyncio.create_task(self._watch(), name="gauges")

    async def stop(self) -> None:
        """Looks no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            self._look()

    def _look(self) -> None:
        self._gauges.set_queues(self._queues())
        self._gauges.set_locks(self._locks())


def held_for_s(acquired_at_s: float) -> float:
    """Seconds since, by the monotonic clock."""
    return max(0.0, time.monotonic() - acquired_at_s)
