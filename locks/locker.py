"""Locker.hold(name): wait, acquire, keep extended, release."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from typing import Self

from locks.errors import LockBusy, LockStoreDown, LockStoreRefused, LossReason, TooManyWaiters
from locks.events import (
    Acquired,
    Extended,
    GaveUp,
    Listener,
    Released,
    StoreLost,
    StoreUp,
    Waiting,
    WakeSource,
    ignore,
)
from locks.hold import Hold
from locks.keys import LockKeys, keys_of
from locks.lease import Lease
from locks.link import Address, Link
from locks.renewal import Renewal
from locks.store import (
    GREETING,
    ExtendOutcome,
    Granted,
    LockStore,
    QueueLimits,
    Refused,
    ReleaseOutcome,
)
from locks.waiting import Patience, Waiter, Waiters

SHORTEST_LEASE_S, LONGEST_LEASE_S = 0.1, 3600
# A lease's timer looks a moment after the holder's end: Redis removes a key in the millisecond after it.
TIMER_SLACK_S = 0.002


class Locker:
    """Every lock of this process, over two connections: one for commands, one for messages. For one event loop."""

    def __init__(
        self,
        url: str,
        *,
        instance_id: str,
        command_timeout_s: float = 0.5,
        max_waiters: int = 10_000,
        queue_limits: QueueLimits | None = None,
        listener: Listener = ignore,
    ) -> None:
        self.instance_id = instance_id
        self._emit = listener
        self._command_timeout_s = command_timeout_s
        self._limits = queue_limits or QueueLimits()
        self._heartbeat_s = self._limits.alive_ms / 3000
        # A lease id is a capability, so its random part is the secret; the counter only saves random bytes.
        self._lease_prefix = secrets.token_urlsafe(12)
        self._lease_numbers = itertools.count(1)
        self._waiters = Waiters(max_waiters=max_waiters)
        address = Address.from_url(url)
        channel = f"lock-wake:{secrets.token_hex(8)}"
        self._commands = Link(
            address,
            command_timeout_s=command_timeout_s,
            greeting=GREETING,
            on_up=lambda: self._emit(StoreUp()),
            on_lost=lambda reason: self._emit(StoreLost(reason)),
        )
        self._messages = Link(
            address,
            command_timeout_s=command_timeout_s,
            greeting=[("SUBSCRIBE", channel)],
            on_message=self._waiters.on_message,
        )
        self._store = LockStore(self._commands, channel=channel, limits=self._limits)
        self._renewal = Renewal(self._store, listener)

    @classmethod
    def connect(
        cls, url: str, *, instance_id: str, command_timeout_s: float = 0.5, listener: Listener = ignore
    ) -> Self:
        """A locker for `async with`, which raises LockStoreDown when Redis does not answer at the start.

        url: redis:// or rediss://. Raises ValueError for any other.
        """
        return cls(url, instance_id=instance_id, command_timeout_s=command_timeout_s, listener=listener)

    async def __aenter__(self) -> Self:
        self.open()
        if not await self.up_within(max(1.0, 2 * self._command_timeout_s)):
            await self.close()
            raise LockStoreDown(self._commands.last_error)
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def open(self) -> None:
        """Begins to connect; until Redis answers, every call raises LockStoreDown."""
        self._commands.open()
        self._messages.open()

    async def up_within(self, wait_s: float) -> bool:
        """Waits for the first connections, or for those lost a moment ago; whether they are there."""
        return await self._commands.up_within(wait_s) and await self._messages.up_within(wait_s)

    async def close(self) -> None:
        """Closes the connections. Leases still held are neither extended nor released: they run out by themselves."""
        self._renewal.close()
        await self._messages.close()
        await self._commands.close()

    @property
    def is_up(self) -> bool:
        """Whether Redis answers, as far as is known."""
        return self._commands.is_up

    @property
    def waiter_count(self) -> int:
        """How many callers of this process wait in a lock's queue."""
        return len(self._waiters)

    def hold(self, name: str, *, lease_ttl_s: float = 10.0, wait_s: float | None = None) -> Hold:
        """`async with` holds the lock, kept extended; when it is lost the body is cancelled and LeaseLost comes out.

        Raises LockBusy after wait_s (None waits for ever), LockStoreDown, TooManyWaiters, ValueError.
        """
        return Hold(self, name, lease_ttl_s=lease_ttl_s, wait_s=wait_s)

    async def acquire(
        self,
        name: str,
        *,
        lease_ttl_s: float = 10.0,
        wait_s: float | None = None,
        keep_extended: bool = False,
    ) -> Lease:
        """A lease on `name`, which ends after lease_ttl_s unless it is extended or released.

        Raises LockBusy after wait_s (0: at once, None: never), LockStoreDown, TooManyWaiters, ValueError.
        """
        keys = keys_of(name)
        _check_lease(lease_ttl_s)
        lease_id = f"{self._lease_prefix}.{next(self._lease_numbers):x}.{secrets.token_urlsafe(9)}"
        attempt = _Attempt(name, keys, lease_id, lease_ttl_s, Patience(wait_s), keep_extended)
        try:
            if wait_s is not None and wait_s <= 0:
                return await self._acquire_now(attempt)
            return await self._acquire_in_turn(attempt)
        except LockBusy:
            self._emit(GaveUp(name, attempt.patience.waited_s, "busy", attempt.queued))
            raise
        except LockStoreDown:
            self._emit(GaveUp(name, attempt.patience.waited_s, "store-down", attempt.queued))
            raise
        except asyncio.CancelledError:
            # The command may be on the wire or the lock on its way to us. This one travels behind it.
            self._store.give_back(attempt.keys, attempt.lease_id)
            self._emit(GaveUp(name, attempt.patience.waited_s, "cancelled", attempt.queued))
            raise

    async def extend(self, lease: Lease, lease_ttl_s: float) -> None:
        """See Lease.extend."""
        _check_lease(lease_ttl_s)
        lease.raise_if_lost()
        sent_at_s = time.monotonic()
        outcome = await self._store.extend(lease.keys, lease.lease_id, lease_ms=round(lease_ttl_s * 1000))
        if outcome is not ExtendOutcome.EXTENDED:
            self._renewal.lose(lease, LossReason(outcome.value))
        lease.raise_if_lost()
        lease.extended(sent_at_s=sent_at_s, lease_ttl_s=lease_ttl_s)
        self._renewal.watch(lease)
        self._emit(Extended(lease.name, lease.fencing_token))

    async def release(self, lease: Lease) -> bool:
        """See Lease.release."""
        if lease.ended:
            return False
        lease.ended = True
        try:
            outcome = await self._store.release(lease.keys, lease.lease_id)
        except LockStoreDown:
            held_s = time.monotonic() - lease.acquired_at_s
            self._emit(Released(lease.name, lease.fencing_token, held_s, still_ours=False, handed_over=False))
            raise
        held_s = time.monotonic() - lease.acquired_at_s
        still_ours = outcome is not ReleaseOutcome.NOT_OURS
        handed_over = outcome is ReleaseOutcome.HANDED_OVER
        self._emit(Released(lease.name, lease.fencing_token, held_s, still_ours, handed_over))
        return still_ours

    def notice_lapse(self, lease: Lease) -> None:
        """Declares a lease lost whose time is over, where a blocked event loop has not looked in time."""
        if lease.is_lost:
            self._renewal.lose(lease, LossReason.EXPIRED)

    async def _acquire_now(self, attempt: _Attempt) -> Lease:
        sent_at_s = time.monotonic()
        answer = await self._answered(attempt, queue=False)
        if isinstance(answer, Granted):
            return self._granted(attempt, answer.fencing_token, sent_at_s, WakeSource.NONE)
        raise LockBusy(attempt.name, waited_s=attempt.patience.waited_s, expires_in_s=answer.expires_in_s)

    async def _acquire_in_turn(self, attempt: _Attempt) -> Lease:
        if self._waiters.full:
            raise TooManyWaiters(f"{len(self._waiters)} callers of this process wait already")
        waiter = self._waiters.join(attempt.lease_id)
        try:
            sent_at_s = time.monotonic()
            answer = await self._answered(attempt, queue=True)
            if isinstance(answer, Granted):
                return self._granted(attempt, answer.fencing_token, sent_at_s, WakeSource.NONE)
            attempt.queued = True
            self._emit(Waiting(attempt.name))
            return await self._wait_for_turn(attempt, waiter, answer)
        finally:
            self._waiters.leave(attempt.lease_id)

    async def _wait_for_turn(self, attempt: _Attempt, waiter: Waiter, answer: Refused) -> Lease:
        while True:
            wake_source = await waiter.wait(*self._pause(attempt, answer))
            if attempt.patience.over and waiter.granted_fence is None:
                self._store.give_back(attempt.keys, attempt.lease_id)
                raise LockBusy(attempt.name, waited_s=attempt.patience.waited_s, expires_in_s=answer.expires_in_s)
            # For a handoff this call is the confirmation: it makes the short claim a whole lease.
            sent_at_s = time.monotonic()
            waiter.granted_fence = None
            answer_now = await self._answered(attempt, queue=True)
            if isinstance(answer_now, Granted):
                return self._granted(attempt, answer_now.fencing_token, sent_at_s, wake_source)
            answer = answer_now

    def _pause(self, attempt: _Attempt, answer: Refused) -> tuple[float, WakeSource]:
        pause_s, source = self._heartbeat_s, WakeSource.HEARTBEAT
        if answer.place == 0 and answer.expires_in_s is not None and answer.expires_in_s + TIMER_SLACK_S < pause_s:
            pause_s, source = answer.expires_in_s + TIMER_SLACK_S, WakeSource.TIMER
        return attempt.patience.left_s(pause_s), source

    async def _answered(self, attempt: _Attempt, *, queue: bool) -> Granted | Refused:
        # Asking again is harmless, so a connection that comes back at once costs a waiter nothing but a moment.
        ask = self._store.acquire_or_queue if queue else self._store.acquire
        lease_ms = round(attempt.lease_ttl_s * 1000)
        try:
            return await ask(attempt.keys, attempt.lease_id, lease_ms=lease_ms)
        except LockStoreRefused:
            raise
        except LockStoreDown:
            # Also where the caller does not wait: the lost command may have taken the lock.
            if not await self._commands.up_within(self._command_timeout_s):
                raise
            return await ask(attempt.keys, attempt.lease_id, lease_ms=lease_ms)

    def _granted(self, attempt: _Attempt, fencing_token: int, sent_at_s: float, wake_source: WakeSource) -> Lease:
        lease = Lease(
            self,
            attempt.name,
            attempt.keys,
            attempt.lease_id,
            fencing_token=fencing_token,
            lease_ttl_s=attempt.lease_ttl_s,
            sent_at_s=sent_at_s,
            waited_s=time.monotonic() - attempt.patience.started_at_s,
            stood_in_line=wake_source is not WakeSource.NONE,
            keep_extended=attempt.keep_extended,
        )
        self._renewal.watch(lease)
        takeover = wake_source is WakeSource.TIMER
        handoff_s = time.monotonic() - sent_at_s if wake_source is WakeSource.HANDOFF else None
        self._emit(Acquired(attempt.name, fencing_token, lease.waited_s, wake_source, takeover, handoff_s))
        return lease


def _check_lease(lease_ttl_s: float) -> None:
    if not SHORTEST_LEASE_S <= lease_ttl_s <= LONGEST_LEASE_S:
        raise ValueError(f"lease_ttl_s is {SHORTEST_LEASE_S} to {LONGEST_LEASE_S} seconds, not {lease_ttl_s!r}")


class _Attempt:
    """One call of acquire."""

    __slots__ = ("keep_extended", "keys", "lease_id", "lease_ttl_s", "name", "patience", "queued")

    def __init__(
        self,
        name: str,
        keys: LockKeys,
        lease_id: str,
        lease_ttl_s: float,
        patience: Patience,
        keep_extended: bool,
    ) -> None:
        self.name = name
        self.keys = keys
        self.lease_id = lease_id
        self.lease_ttl_s = lease_ttl_s
        self.patience = patience
        self.keep_extended = keep_extended
        self.queued = False
