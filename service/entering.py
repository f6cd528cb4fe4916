"""The use case: hold the appointment's lease, charge, mint the room token."""

from __future__ import annotations

import time
from dataclasses import dataclass

from db.charging import Entry
from db.decisions import ChargeRequest, StaleHolder
from locks import Hold, Lease, LeaseLost, LockBusy, Locker, LockStoreDown
from service.charging import Charging, PendingCharge, TimedEntry
from service.outage import OutageRule
from service.refusals import ChargeInProgress
from service.rtc_token import RoomToken, RoomTokenMint

# A holder found stale stands in line again. One that is stale again under a fresh lease meets a Redis whose clock was
# set back, and tokens with it: then the row lock decides alone, or nobody could enter until the clock has caught up.
STALE_TURNS = 2


@dataclass(frozen=True, slots=True)
class EntryRequest:
    """Who wants to enter which appointment; `other_user_id` where the caller says whom they expect to meet.

    `request_id` is shown with the lock's holder, so that whoever watches the lock knows which request has it.
    """

    appointment_id: int
    user_id: int
    other_user_id: int | None = None
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Entered:
    """The entry stands in the tables, and here is the key to the room. Seconds.

    `guarded_by`: the layer that would have kept it from charging twice: lock (it stood in line), is_consume (nobody
    was before it), row_lock (without a lease), fence (its first lease was found stale).
    """

    entry: Entry
    channel: str
    room_token: RoomToken
    guarded_by: str
    lock_wait_s: float
    queued_s: float
    transaction_s: float


class Entering:
    """Lets a user into an appointment's room, charged once whatever else races."""

    def __init__(
        self,
        locker: Locker,
        charging: Charging,
        mint: RoomTokenMint,
        outage: OutageRule,
        *,
        lease_ttl_s: float,
        lock_wait_s: float,
    ) -> None:
        self._locker = locker
        self._charging = charging
        self._mint = mint
        self._outage = outage
        self._lease_ttl_s = lease_ttl_s
        self._lock_wait_s = lock_wait_s

    async def enter(self, request: EntryRequest) -> Entered:
        """Raises ChargeInProgress, LockStoreDown, TooManyWaiters, TooManyLeases, db's refusals, as Charging.submit."""
        started_at_s = time.monotonic()
        try:
            turn = await self._charge_in_turn(request, started_at_s)
        except LockStoreDown:
            turn = _Turn(await self._outage.charge(lambda: self._charge_without_lease(request)), 0.0, "row_lock")
        channel = f"appointment-{request.appointment_id}"
        room_token = self._mint.mint(channel=channel, user_id=request.user_id, now=time.time())
        timed = turn.timed_entry
        return Entered(
            timed.entry, channel, room_token, turn.guarded_by, turn.lock_wait_s, timed.queued_s, timed.transaction_s
        )

    async def _charge_in_turn(self, request: EntryRequest, started_at_s: float) -> _Turn:
        stale_turns = 0
        while True:
            charge: PendingCharge | None = None
            try:
                async with self._hold(request, started_at_s) as lease:
                    token = lease.fencing_token if stale_turns < STALE_TURNS else None
                    charge = self._charging.submit(_charge_request(request, token), lease)
                    return _turn(await charge, lease, stale_turns)
            except LockBusy as busy:
                raise self._in_progress(busy.expires_in_s) from busy
            except StaleHolder:
                stale_turns += 1
            except LeaseLost:
                # In the middle: the row lock and the fencing token decide, not the lease.
                timed_entry = await _entry_after_all(charge)
                if timed_entry is not None:
                    return _turn(timed_entry, lease, stale_turns)
            if time.monotonic() - started_at_s > self._lock_wait_s:
                raise self._in_progress(None)

    def _hold(self, request: EntryRequest, started_at_s: float) -> Hold:
        wait_s = max(0.0, started_at_s + self._lock_wait_s - time.monotonic())
        return self._locker.hold(
            f"appointment:{request.appointment_id}",
            lease_ttl_s=self._lease_ttl_s,
            wait_s=wait_s,
            request_id=request.request_id,
        )

    def _charge_without_lease(self, request: EntryRequest) -> PendingCharge:
        return self._charging.submit(_charge_request(request, None), None)

    def _in_progress(self, expires_in_s: float | None) -> ChargeInProgress:
        return ChargeInProgress(
            "another entry into this appointment is under way",
            retry_after_s=min(expires_in_s or self._lease_ttl_s, self._lease_ttl_s),
        )


@dataclass(frozen=True, slots=True)
class _Turn:
    timed_entry: TimedEntry
    lock_wait_s: float
    guarded_by: str


def _turn(timed_entry: TimedEntry, lease: Lease, stale_turns: int) -> _Turn:
    guarded_by = "fence" if stale_turns else "lock" if lease.stood_in_line else "is_consume"
    return _Turn(timed_entry, lease.waited_s, guarded_by)


async def _entry_after_all(charge: PendingCharge | None) -> TimedEntry | None:
    """What became of a charge whose lease was lost; None when it had not begun."""
    if charge is None:
        return None
    try:
        return await charge
    except (LeaseLost, StaleHolder):
        return None


def _charge_request(request: EntryRequest, fencing_token: int | None) -> ChargeRequest:
    return ChargeRequest(request.appointment_id, request.user_id, fencing_token, request.other_user_id)
