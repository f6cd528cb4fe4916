"""One caller of acquire while it waits, and what it is given."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from locks.events import WakeSource
from locks.lease import Lease


class Waiter:
    """One caller of acquire, from its refusal to its lease."""

    __slots__ = (
        "begins_at_once",
        "ends_at_s",
        "for_whom",
        "future",
        "keep_extended",
        "lease",
        "lease_ms",
        "lease_ttl_s",
        "started_at_s",
        "timer",
    )

    def __init__(
        self,
        *,
        lease_ttl_s: float,
        lease_ms: int,
        keep_extended: bool,
        for_whom: str,
        started_at_s: float,
        wait_s: float | None,
        begins_at_once: bool,
    ) -> None:
        self.lease_ttl_s = lease_ttl_s
        self.lease_ms = lease_ms
        self.keep_extended = keep_extended
        self.begins_at_once = begins_at_once  # under the claim, while the whole lease is being confirmed
        self.for_whom = for_whom
        self.started_at_s = started_at_s
        self.ends_at_s = None if wait_s is None else started_at_s + wait_s
        self.future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self.timer: asyncio.TimerHandle | None = None
        self.lease: Lease | None = None

    def came_after_us(self, other: Waiter) -> int:
        """Microseconds; not below zero."""
        return max(0, int((self.started_at_s - other.started_at_s) * 1_000_000))

    def waited_s(self, now_s: float) -> float:
        """Seconds since the call began."""
        return now_s - self.started_at_s

    def age_us(self, now_s: float) -> int:
        """The same in microseconds: what its place in line goes by."""
        return int(self.waited_s(now_s) * 1_000_000)

    def refuse(self, error: Exception) -> None:
        """Ends the wait without a lease."""
        self.stop_timer()
        if not self.future.done():
            self.future.set_exception(error)

    def grant(self, lease: Lease) -> None:
        """Ends the wait with a lease; whoever cancelled it meanwhile gives the lease back."""
        self.stop_timer()
        self.lease = lease
        if not self.future.done():
            self.future.set_result(lease)

    def stop_timer(self) -> None:
        """Its patience is of no interest any more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


@dataclass(frozen=True, slots=True)
class Grant:
    """What a line was given: for its first waiter. `sent_at_s`: when the command that did it was sent.

    `ends_at_s`: its lease ends then at the latest, until the server has confirmed it; None: it is confirmed.
    """

    lease_id: str = field(repr=False)
    fencing_token: int
    sent_at_s: float
    source: WakeSource
    takeover: bool
    handoff_s: float | None
    ends_at_s: float | None = None
