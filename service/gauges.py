"""Gauges that are set by looking, and not counted as things happen: queues, lanes, the oldest, the last audit."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Gauge

from db.audit import INVARIANTS
from locks import Locker
from locks.picture import HeldLock
from locks.pieces import in_pieces
from service.charging import QUEUES, Charging
from service.reading import Reading
from service.settings import Settings

INTERVAL_S = 1.0
# With so many leases that a look takes long, it is made at most as often as costs a fiftieth of this process' time.
LOOK_SHARE = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSeen:
    """One queue at one moment; `lanes` is 0 where nothing is worked off, only waited for."""

    depth: int
    limit: int
    lanes_busy: int = 0
    lanes: int = 0


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
        for queue in (*QUEUES, "read", "lock"):
            self.depth.labels(queue)

    def show_from_the_start(self, resource: str) -> None:
        """The two gauges of a resource."""
        self._resources.add(resource)
        self.oldest_held.labels(resource)
        self.oldest_wait.labels(resource)

    def set_queues(self, queues: Mapping[str, QueueSeen]) -> None:
        """What each queue looks like now."""
        for name, seen in queues.items():
            self.depth.labels(name).set(seen.depth)
            self.limit.labels(name).set(seen.limit)
            if seen.lanes:
                self.lanes_busy.labels(name).set(seen.lanes_busy)
                self.lanes.labels(name).set(seen.lanes)

    def set_locks(self, *, held_s: Mapping[str, float], waited_s: Mapping[str, float]) -> None:
        """The oldest of each resource; 0 where nobody holds, or waits."""
        for gauge, oldest_s in ((self.oldest_held, held_s), (self.oldest_wait, waited_s)):
            for resource in self._resources | oldest_s.keys():
                gauge.labels(resource).set(oldest_s.get(resource, 0.0))


class AuditGauges:
    """What the last audit has found. Before the first one nothing is known to be broken, and it is from 1970."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.holds = Gauge(
            "chargeonce_audit_holds",
            "1 while no invariant is broken, as of the last audit",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.broken = Gauge(
            "chargeonce_audit_broken_invariants",
            "Places that break an invariant, as of the last audit",
            ["invariant"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.at = Gauge(
            "chargeonce_audit_timestamp_seconds",
            "When the last audit ended, unix time",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.took = Gauge(
            "chargeonce_audit_seconds",
            "How long the last audit took",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.interval = Gauge(
            "chargeonce_audit_interval_seconds",
            "Between two audits; 0: none",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.holds.set(1)
        for invariant in INVARIANTS:
            self.broken.labels(invariant)


class Sampling:
    """Looks once a second. For one event loop."""

    def __init__(
        self,
        gauges: SampledGauges,
        locker: Locker,
        charging: Charging,
        reading: Reading,
        *,
        label_of: Callable[[str], str | None],
        settings: Settings,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """`label_of`: the resource that a lock's name is counted under; None where it is not."""
        self._gauges = gauges
        self._locker = locker
        self._charging = charging
        self._reading = reading
        self._label_of = label_of
        self._settings = settings
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Looks at the queues, and goes on looking at everything."""
        self._gauges.leases_limit.set(self._settings.max_leases)
        self._gauges.build_info.labels(version("chargeonce")).set(1)
        self._gauges.set_queues(self._queues())
        self._task = asyncio.create_task(self._watch(), name="gauges")

    async def stop(self) -> None:
        """Looks no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        took_s = 0.0
        while True:
            await asyncio.sleep(max(self._interval_s, LOOK_SHARE * took_s))
            took_s = await self._look()

    async def _look(self) -> float:
        """Returns how many seconds of this process' time it took."""
        began_at_s = time.monotonic()
        self._gauges.set_queues(self._queues())
        waited_s = [(name, max(ages_s)) for name, ages_s in self._locker.waits.items()]
        held: list[HeldLock] = [*self._locker.held, *self._locker.lending.all]
        oldest_held_s, oldest_wait_s = dict[str, float](), dict[str, float]()
        self._note_oldest(waited_s, oldest_wait_s)
        took_s = time.monotonic() - began_at_s
        async for piece in in_pieces(held, self._locker.clock, on_request=False):
            began_at_s = time.monotonic()
            self._note_oldest([(lease.name, lease.held_s) for lease in piece], oldest_held_s)
            took_s += time.monotonic() - began_at_s
        self._gauges.set_locks(held_s=oldest_held_s, waited_s=oldest_wait_s)
        return took_s

    def _note_oldest(self, seen: Iterable[tuple[str, float]], oldest_s: dict[str, float]) -> None:
        for name, seconds in seen:
            if (resource := self._label_of(name)) is not None:
                oldest_s[resource] = max(oldest_s.get(resource, 0.0), seconds)

    def _queues(self) -> Mapping[str, QueueSeen]:
        settings, reading = self._settings, self._reading
        # The three queues of charges share their limit.
        queues = {
            name: QueueSeen(depth=depth, limit=settings.max_waiting_charges, lanes_busy=busy, lanes=lanes)
            for name, (depth, busy, lanes) in self._charging.queues.items()
        }
        queues["read"] = QueueSeen(
            depth=reading.waiting_count,
            limit=settings.max_waiting_charges,
            lanes_busy=reading.busy_count,
            lanes=settings.read_threads,
        )
        queues["lock"] = QueueSeen(depth=self._locker.waiter_count, limit=settings.max_waiters)
        return queues
