"""A lease: the right to act under a lock for a time, and the truth about its end."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from locks.clock import Clock
from locks.errors import LeaseLost, LossReason
from locks.for_whom import read_for_whom

_log = logging.getLogger("locks")

SHORTEST_LEASE_S, LONGEST_LEASE_S = 0.1, 3600
LATE_S = 0.1  # so much later than it was asked for, an extension makes the server's lease longer than its holder's


class LeaseKeeper(Protocol):
    """What a lease asks of the locker that granted it."""

    @property
    def clock(self) -> Clock: ...

    async def extend(self, lease: Lease, lease_ttl_s: float) -> None: ...

    def release(self, lease: Lease) -> Coroutine[Any, Any, bool]: ...

    def finish(self, lease: Lease) -> None: ...

    def export(self, lease: Lease) -> str: ...


class Lease:
    """One grant of one lock, by this process's monotonic clock, read before the command that granted it was sent."""

    __slots__ = (
        "_keeper",
        "_lost_event",
        "_on_lost",
        "acquired_at_s",
        "asked_once",
        "deadline_s",
        "due_slot",
        "ended",
        "fencing_token",
        "for_whom",
        "grant_fence",
        "granted_as",
        "holds_until_s",
        "is_for_body",
        "is_unconfirmed",
        "keep_extended",
        "known_as",
        "lease_id",
        "lease_ttl_s",
        "loss_reason",
        "may_outlast",
        "name",
        "renewal_unanswered",
        "renewing",
        "stood_in_line",
        "task",
        "unanswered",
        "waited_s",
    )

    def __init__(
        self,
        keeper: LeaseKeeper,
        name: str,
        lease_id: str,
        *,
        fencing_token: int,
        lease_ttl_s: float,
        sent_at_s: float,
        waited_s: float,
        stood_in_line: bool,
        keep_extended: bool,
        for_whom: str,
    ) -> None:
        self._keeper = keeper
        self._lost_event: asyncio.Event | None = None
        self._on_lost: Callable[[], None] | None = None
        self.name = name
        self.lease_id = lease_id
        self.fencing_token = fencing_token
        self.lease_ttl_s = lease_ttl_s
        self.keep_extended = keep_extended
        self.for_whom = for_whom
        self.waited_s = waited_s
        self.stood_in_line = stood_in_line
        self.asked_once = False  # its id went to the server in one command only, so no other grant can have the same
        self.acquired_at_s = sent_at_s
        self.deadline_s = sent_at_s + lease_ttl_s - margin_s(lease_ttl_s)
        self.ended = False
        self.loss_reason: LossReason | None = None
        self.renewing = False
        self.renewal_unanswered = False
        self.due_slot = 0
        self.is_unconfirmed = False
        self.is_for_body = False  # held by a hold, so its id does not leave the process
        # What the server knows it by: for a moment the id of the turn before it, and the token of its run's last turn.
        self.known_as = lease_id
        self.grant_fence = fencing_token
        self.granted_as = lease_id  # the id that its line stood under, and old looks go by: its run's
        self.may_outlast = False  # Redis may keep it for longer than its holder counts
        self.unanswered = 0  # extensions and turns that were asked for, and have not been answered, or never will be
        self.holds_until_s = math.inf
        self.task: asyncio.Task[Any] | None = None  # that acquired it, where it is kept extended, until it ends

    def __repr__(self) -> str:
        how = self.loss_reason or ("over" if self.ended else f"{self.remaining_s():.3f} s left")
        return f"<Lease on {self.name!r}, fencing token {self.fencing_token}, {how}>"

    @property
    def request_id(self) -> str:
        """The request for which it is held, '' where none was named."""
        return read_for_whom(self.for_whom).request_id

    @property
    def owner(self) -> str | None:
        """Who holds it, in the words of whoever acquired it."""
        return read_for_whom(self.for_whom).owner

    @property
    def lost(self) -> asyncio.Event:
        """Set when the lease ended without its holder's release."""
        if self._lost_event is None:
            self._lost_event = asyncio.Event()
            if self.loss_reason is not None:
                self._lost_event.set()
        return self._lost_event

    @property
    def is_lost(self) -> bool:
        """Whether the lease ended without its holder's release: found out already, or by the clock just now."""
        return self.loss_reason is not None or (not self.ended and self.remaining_s() <= 0)

    @property
    def held_s(self) -> float:
        """Seconds since it was granted."""
        return self._keeper.clock.monotonic_s() - self.acquired_at_s

    def remaining_s(self) -> float:
        """Seconds for which the lease is certainly ours, by the local clock; 0.0 when it is not."""
        if self.ended:
            return 0.0
        return max(0.0, self.deadline_s - self._keeper.clock.monotonic_s())

    def raise_if_lost(self) -> None:
        """Raises LeaseLost when the lease is gone."""
        if self.is_lost:
            raise self.loss()

    def raise_if_over(self) -> None:
        """Raises LeaseLost when the lease is gone, or was released or exported."""
        if self.ended or self.is_lost:
            raise self.loss()

    def loss(self) -> LeaseLost:
        """The error that says how this lease was lost."""
        return LeaseLost(self.name, reason=self.loss_reason or LossReason.EXPIRED, fencing_token=self.fencing_token)

    async def extend(self, lease_ttl_s: float) -> None:
        """Gives the lease `lease_ttl_s` from now; the fencing token stays.

        Raises LeaseLost, ValueError, or LockStoreDown (then the old end stands).
        """
        await self._keeper.extend(self, lease_ttl_s)

    def release(self) -> Coroutine[Any, Any, bool]:
        """Gives the lock back, to the next waiter if one stands. True while it was still ours. Raises LockStoreDown."""
        return self._keeper.release(self)

    def finish(self) -> None:
        """Gives the lock back because its work is done for all: whoever waits for it gets Dismissed instead of a turn.

        Sent, and not waited for. python-redis-lock programs that wait cannot be told, and get their turns.
        """
        self._keeper.finish(self)

    def export(self) -> str:
        """Hands the lease over to whoever gives this text to Locker.adopt(); from now on it is not ours, nor extended.

        The text is a capability: whoever has it can extend and release the lease. Raises LeaseLost.
        """
        return self._keeper.export(self)

    def when_lost(self, tell: Callable[[], None] | None) -> None:
        """Calls `tell` once the loss is known; one listener, the holder's; None: nobody is to be told any more."""
        self._on_lost = tell

    def extended(self, *, sent_at_s: float, lease_ttl_s: float) -> None:
        """Redis has confirmed the extension that was sent at `sent_at_s`, and counts from when it got that."""
        self.lease_ttl_s = lease_ttl_s
        self.deadline_s = min(sent_at_s + lease_ttl_s - margin_s(lease_ttl_s), self.holds_until_s)
        self.may_outlast = self.may_outlast or self._keeper.clock.monotonic_s() - sent_at_s > LATE_S
        self.renewal_unanswered = False

    def bound(self, max_hold_s: float, *, from_s: float) -> None:
        """It is held until then at most, whoever extends it."""
        self.holds_until_s = from_s + max_hold_s
        self.deadline_s = min(self.deadline_s, self.holds_until_s)

    def begins_unconfirmed(self, *, ends_at_s: float) -> None:
        """It has begun, and its whole time is being asked for; until that is confirmed it ends at `ends_at_s`."""
        self.is_unconfirmed = True
        self.deadline_s = min(self.deadline_s, ends_at_s)

    def confirmed(self, *, sent_at_s: float) -> None:
        """Redis has confirmed a lease that had begun before, by the command that was sent at `sent_at_s`."""
        self.is_unconfirmed = False
        ends_at_s = min(sent_at_s + self.lease_ttl_s - margin_s(self.lease_ttl_s), self.holds_until_s)
        self.deadline_s = max(self.deadline_s, ends_at_s)

    def declare_lost(self, reason: LossReason) -> None:
        """The lease is gone; its holder is told."""
        self.ended = True
        self.loss_reason = reason
        if self._lost_event is not None:
            self._lost_event.set()
        if self._on_lost is not None:
            try:
                self._on_lost()
            except Exception:
                # It is told in the midst of looking after many leases.
                _log.exception("what was to hear of the loss of a lease on %r raised", self.name)


def margin_s(lease_ttl_s: float) -> float:
    """What two clocks may drift apart during a lease, and the holder's time to stop: 1 % and 2 ms."""
    return 0.01 * lease_ttl_s + 0.002


def is_over(lease_ttl_s: float, *, after_s: float) -> bool:
    """Whether a lease that was asked for so long ago has ended meanwhile: its grant was heard too late to be used."""
    return after_s >= lease_ttl_s - margin_s(lease_ttl_s)


def check_max_hold_s(max_hold_s: float | None, *, lease_ttl_s: float, keep_extended: bool = True) -> None:
    """Raises ValueError for one that is shorter than the lease, or bounds a lease that has an end of its own."""
    if max_hold_s is None:
        return
    if not keep_extended:
        raise ValueError("max_hold_s is for a lease that is kept extended")
    if not max_hold_s >= lease_ttl_s:
        raise ValueError(f"max_hold_s is lease_ttl_s ({lease_ttl_s!r}) or longer, not {max_hold_s!r}")


def check_wait_s(wait_s: float | None) -> None:
    """Raises ValueError for a time that is none."""
    if wait_s is not None and not wait_s >= 0:
        raise ValueError(f"wait_s is 0 or more seconds, or None, not {wait_s!r}")


def milliseconds(lease_ttl_s: float) -> int:
    """A lease as Redis counts it. Raises ValueError outside 0.1 to 3600 seconds."""
    if not SHORTEST_LEASE_S <= lease_ttl_s <= LONGEST_LEASE_S:
        raise ValueError(f"lease_ttl_s is {SHORTEST_LEASE_S} to {LONGEST_LEASE_S} seconds, not {lease_ttl_s!r}")
    return round(lease_ttl_s * 1000)
