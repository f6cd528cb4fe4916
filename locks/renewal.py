"""One loop keeps all leases extended, and declares lost, by the local clock, those that it could not."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time

from locks.errors import LockStoreDown, LossReason
from locks.events import Extended, Listener, Lost, Unknown
from locks.lease import Lease
from locks.store import ExtendOutcome, LockStore

RENEWALS_PER_LEASE = 3
LOOKS_PER_LEASE = 12


class Renewal:
    """Knows every lease of this process from its grant to its end. Times are time.monotonic() seconds."""

    def __init__(self, store: LockStore, emit: Listener) -> None:
        self._store = store
        self._emit = emit
        self._looks: list[tuple[float, int, Lease]] = []
        self._numbers = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    def watch(self, lease: Lease) -> None:
        """From now on the lease is extended in time, or at least its end is noticed. Again after its end was moved."""
        self._look_at(lease, _renewal_due_s(lease) if lease.keep_extended else lease.deadline_s)

    def lose(self, lease: Lease, reason: LossReason) -> None:
        """Tells the holder, once, that its lease is gone."""
        if lease.ended:
            return
        lease.declare_lost(reason)
        self._emit(Lost(lease.name, lease.fencing_token, time.monotonic() - lease.acquired_at_s, reason))

    def close(self) -> None:
        """Stops watching; what is still held runs out by itself."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        self._looks.clear()

    def _look_at(self, lease: Lease, due_s: float) -> None:
        lease.look_number = next(self._numbers)
        heapq.heappush(self._looks, (due_s, lease.look_number, lease))
        if self._timer is None or due_s < self._timer_due_s:
            self._arm(due_s)

    def _arm(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due_s = due_s
        self._timer = asyncio.get_running_loop().call_later(max(0.0, due_s - time.monotonic()), self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = time.monotonic()
        looks = self._looks
        while looks and (looks[0][0] <= now_s or looks[0][2].ended):
            _, number, lease = heapq.heappop(looks)
            if not lease.ended and lease.look_number == number:
                self._attend(lease, now_s)
        if looks:
            self._arm(looks[0][0])  # whatever was armed meanwhile: the next look need not be that of the last attended

    def _attend(self, lease: Lease, now_s: float) -> None:
        if now_s >= lease.deadline_s:
            unreachable = lease.renewing or lease.renewal_unanswered
            self.lose(lease, LossReason.UNREACHABLE if unreachable else LossReason.EXPIRED)
        elif not lease.keep_extended:
            self._look_at(lease, lease.deadline_s)
        elif now_s < _renewal_due_s(lease):
            self._look_at(lease, _renewal_due_s(lease))
        else:
            if not lease.renewing:
                self._start(lease)
            self._look_at(lease, min(lease.deadline_s, now_s + lease.lease_ttl_s / LOOKS_PER_LEASE))

    def _start(self, lease: Lease) -> None:
        lease.renewing = True
        task = asyncio.create_task(self._renew(lease), name="lock-renewal")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _renew(self, lease: Lease) -> None:
        sent_at_s = time.monotonic()
        lease_ttl_s = lease.lease_ttl_s
        try:
            outcome = await self._store.extend(lease.keys, lease.lease_id, lease_ms=round(lease_ttl_s * 1000))
        except LockStoreDown:
            # Redis did not answer. Unknown is not extended, so the old deadline stands.
            lease.renewal_unanswered = True
            if not lease.ended:
                self._emit(Unknown(lease.name, lease.fencing_token))
            return
        finally:
            lease.renewing = False
        if lease.ended:
            return
        if outcome is not ExtendOutcome.EXTENDED:
            self.lose(lease, LossReason(outcome.value))
            return
        lease.extended(sent_at_s=sent_at_s, lease_ttl_s=lease_ttl_s)
        self._emit(Extended(lease.name, lease.fencing_token))


def _renewal_due_s(lease: Lease) -> float:
    return lease.deadline_s - lease.lease_ttl_s * (1 - 1 / RENEWALS_PER_LEASE)
