"""One loop keeps all leases extended, and declares lost, by the local clock, those that it could not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from locks.errors import LockStoreDown, LossReason
from locks.events import Extended, Listener, Lost, Unknown
from locks.keys import packed_keys
from locks.lease import SHORTEST_LEASE_S, Lease, milliseconds
from locks.store import ExtendOutcome, LockStore
from locks.suspension import call_when

RENEWALS_PER_LEASE = 3
LOOKS_PER_LEASE = 12
# Leases due within one slot are looked at together: one timer, and their renewals leave in one write.
SLOT_S = 0.004
LATE_S = 0.05


class Renewal:
    """Knows every lease of this process from its grant to its end. Times are seconds of Clock.monotonic_s."""

    def __init__(self, store: LockStore, emit: Listener, on_lost: Callable[[Lease, LossReason], None]) -> None:
        self._store = store
        self._now_s = store.clock.monotonic_s
        self._emit = emit
        self._on_lost = on_lost
        self._slots: dict[int, dict[Lease, None]] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def watch(self, lease: Lease) -> None:
        """From now on the lease is extended in time, or at least its end is noticed. Again after its end was moved."""
        self._look_at(lease, _renewal_due_s(lease) if lease.keep_extended else lease.deadline_s)

    def forget(self, lease: Lease) -> None:
        """The lease has ended."""
        slot = self._slots.get(lease.due_slot)
        if slot is not None:
            slot.pop(lease, None)

    def lose(self, lease: Lease, reason: LossReason) -> None:
        """Tells the holder, once, that its lease is gone."""
        if lease.ended:
            return
        self.forget(lease)
        self._on_lost(lease, reason)
        lease.declare_lost(reason)
        self._emit(Lost(lease.name, lease.fencing_token, lease.held_s, reason, lease.for_whom))

    def look_at_all(self) -> None:
        """Timers are late: every lease is judged by the clock, once what Redis has answered meanwhile is read."""
        leases = [lease for slot in self._slots.values() for lease in slot]
        for timer in self._timers.values():
            timer.cancel()
        self._slots.clear()
        self._timers.clear()
        soon_s = self._now_s() + SLOT_S
        for lease in leases:
            self._look_at(lease, soon_s)

    def close(self) -> None:
        """Stops watching; what is still held runs out by itself."""
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        self._slots.clear()
        self._timers.clear()

    def _look_at(self, lease: Lease, due_s: float) -> None:
        number = int(due_s / SLOT_S)
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = {}
            self._timers[number] = call_when(self._now_s, number * SLOT_S, self._look, number)
        if lease.due_slot != number:
            self.forget(lease)
            lease.due_slot = number
        slot[lease] = None

    def _look(self, number: int) -> None:
        now_s = self._now_s()
        if now_s - number * SLOT_S > LATE_S:
            # The loop was blocked. What Redis has answered meanwhile is read before anything is judged by the clock.
            self._timers[number] = asyncio.get_running_loop().call_later(0.001, self._look_now, number)
            return
        self._look_now(number)

    def _look_now(self, number: int) -> None:
        self._timers.pop(number, None)
        now_s = self._now_s()
        for lease in self._slots.pop(number):
            self._attend(lease, now_s)

    def _attend(self, lease: Lease, now_s: float) -> None:
        if lease.ended:
            return
        # A slot begins a moment before what falls into it is due: the end of a lease is never noticed too late.
        ahead_s = now_s + SLOT_S
        if ahead_s >= lease.deadline_s:
            unreachable = lease.renewing or lease.renewal_unanswered
            self.lose(lease, LossReason.UNREACHABLE if unreachable else LossReason.EXPIRED)
        elif not lease.keep_extended:
            self._look_at(lease, lease.deadline_s)
        elif ahead_s < _renewal_due_s(lease):
            self._look_at(lease, _renewal_due_s(lease))
        else:
            if not lease.renewing:
                self._start(lease)
            self._look_at(lease, min(lease.deadline_s, ahead_s + lease.lease_ttl_s / LOOKS_PER_LEASE))

    def _start(self, lease: Lease) -> None:
        left_s = lease.holds_until_s - self._now_s()
        if left_s < SHORTEST_LEASE_S:
            lease.keep_extended = False
            return
        lease.renewing = True
        task = asyncio.create_task(self._renew(lease, min(lease.lease_ttl_s, left_s)), name="lock-renewal")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _renew(self, lease: Lease, lease_ttl_s: float) -> None:
        is_last = lease_ttl_s < lease.lease_ttl_s  # up to max_hold_s
        try:
            if lease.ended:  # since this was begun
                return
            sent_at_s, outcome = await extend(self._store, lease, lease_ttl_s)
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
        if is_last:
            lease.keep_extended = False
        self._emit(Extended(lease.name, lease.fencing_token))


async def extend(store: LockStore, lease: Lease, lease_ttl_s: float) -> tuple[float, ExtendOutcome]:
    """Asks for more time; when the answered question was sent, and its answer. Raises LockStoreDown, ValueError."""
    sent_at_s, asked_as = 0.0, ""
    lease_ms, keys = milliseconds(lease_ttl_s), packed_keys(lease.name)

    def command(_: object) -> str:
        nonlocal sent_at_s, asked_as
        sent_at_s, asked_as = store.clock.monotonic_s(), lease.known_as
        return store.scripts.extend(
            keys, asked_as, grant_fence=lease.grant_fence, lease_ms=lease_ms, fencing_token=lease.fencing_token
        )

    lease.unanswered += 1  # until its answer is there, it may be done later, and last for longer than its holder counts
    outcome = ExtendOutcome((await store.ask(lease.name, command)).decode())
    if outcome is not ExtendOutcome.EXTENDED and asked_as != lease.known_as:
        # A server that had lost the script was asked once more, behind the turn that has given the lease its own id.
        outcome = ExtendOutcome((await store.ask(lease.name, command)).decode())
    lease.unanswered -= 1
    return sent_at_s, outcome


def _renewal_due_s(lease: Lease) -> float:
    return lease.deadline_s - lease.lease_ttl_s * (1 - 1 / RENEWALS_PER_LEASE)
