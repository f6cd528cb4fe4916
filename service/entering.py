"""The use case: hold the appointment's lease, charge, mint the room token.

Where a turn would have to be waited for, nobody stands in line who may not enter anyway, and whoever was refused once
takes no turn before the tables say that they may: a crowd of outsiders keeps no participant waiting. Whoever comes
after the charge takes no turn with the lock: an appointment that is known to be charged is entered at once, and those
who stand in line for the lock when it is charged are dismissed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from db.charging import NotChargedYet
from db.decisions import ChargeRequest, IllegalRequest, Outcome, StaleHolder
from locks import Dismissed, Hold, LeaseLost, LockBusy, Locker, LockStoreDown
from service.charged import ChargedAppointments
from service.charging import Charging
from service.outage import OutageRule
from service.participants import KnownParticipants
from service.pending_charge import PendingCharge, TimedEntry
from service.refusals import ChargeInProgress
from service.rtc_token import RoomToken, RoomTokenMint

# A holder found stale stands in line again. One that is stale again under a fresh lease meets a Redis whose clock was
# set back, and tokens with it: then the row lock decides alone, or nobody could enter until the clock has caught up.
STALE_TURNS = 2

_LOCK_PREFIX = "appointment:"


class EntryRequest(NamedTuple):
    """Who wants to enter which appointment; `other_user_id` where the caller says whom they expect to meet.

    `request_id` is shown with the lock's holder, so that whoever watches the lock knows which request has it.
    """

    appointment_id: int
    user_id: int
    other_user_id: int | None = None
    request_id: str = ""


class Entered(NamedTuple):
    """The entry stands in the tables, and here is the key to the room."""

    timed: TimedEntry
    channel: str
    room_token: RoomToken
    minted_in_s: float


class Entering:
    """Lets a user into an appointment's room, charged once whatever else races."""

    def __init__(
        self,
        locker: Locker,
        charging: Charging,
        charged: ChargedAppointments,
        participants: KnownParticipants,
        mint: RoomTokenMint,
        outage: OutageRule,
        *,
        lease_ttl_s: float,
        lock_wait_s: float,
        on_stale_holder: Callable[[str, int | None], None],
    ) -> None:
        self._locker = locker
        self._charging = charging
        self._charged = charged
        self._participants = participants
        self._mint = mint
        self._outage = outage
        self._lease_ttl_s = lease_ttl_s
        self._lock_wait_s = lock_wait_s
        self._on_stale_holder = on_stale_holder

    async def enter(self, request: EntryRequest) -> Entered:
        """Raises ChargeInProgress, LockStoreDown, TooManyWaiters, TooManyLeases, db's refusals, as Charging.submit."""
        try:
            timed = await self._let_in(request)
        except IllegalRequest:
            await self._participants.before_refusing(request.user_id)
            raise
        if timed.entry.outcome is not Outcome.FREE:
            self._charged.add(request.appointment_id)
        channel = f"appointment-{request.appointment_id}"
        began_at_s = time.perf_counter()
        room_token = self._mint.mint(channel=channel, user_id=request.user_id, now=time.time())
        return Entered(timed, channel, room_token, time.perf_counter() - began_at_s)

    async def _let_in(self, request: EntryRequest) -> TimedEntry:
        timed, appointment_id = None, request.appointment_id
        waits = appointment_id not in self._charged and self._locker.is_wanted(lock_name(appointment_id))
        if waits or self._participants.was_refused(request.user_id):
            await self._participants.refuse_outsider(_charge_request(request, None))
        if appointment_id in self._charged:
            timed = await self._enter_again(request, 0.0, "is_consume")
        return await self._charge(request) if timed is None else timed

    async def _charge(self, request: EntryRequest) -> TimedEntry:
        try:
            return await self._charge_in_turn(request, time.monotonic())
        except LockStoreDown:
            await self._participants.refuse_outsider(_charge_request(request, None))
            return await self._outage.charge(request.user_id, lambda: self._charge_without_lease(request))

    async def _charge_in_turn(self, request: EntryRequest, started_at_s: float) -> TimedEntry:
        stale_turns = 0
        while True:
            charge: PendingCharge | None = None
            try:
                async with self._hold(request, started_at_s) as lease:
                    token = lease.fencing_token if stale_turns < STALE_TURNS else None
                    guarded_by = "fence" if stale_turns else "lock" if lease.stood_in_line else "is_consume"
                    charge = self._charging.submit(_charge_request(request, token), lease, guarded_by=guarded_by)
                    timed = await charge
                    if timed.entry.outcome is not Outcome.FREE:
                        lease.finish()  # it is committed: nobody else needs a turn
                    return timed
            except Dismissed as dismissed:
                again = await self._enter_again(request, dismissed.waited_s, "lock")
                if again is not None:
                    return again
            except LockBusy as busy:
                raise self._in_progress(busy.expires_in_s) from busy
            except StaleHolder:
                stale_turns += 1
                self._on_stale_holder(lock_name(request.appointment_id), token)
            except LeaseLost:
                # In the middle: the row lock and the fencing token decide, not the lease.
                after_all = await _entry_after_all(charge)
                if after_all is not None:
                    return after_all
            if time.monotonic() - started_at_s > self._lock_wait_s:
                raise self._in_progress(None)

    async def _enter_again(self, request: EntryRequest, lock_wait_s: float, guarded_by: str) -> TimedEntry | None:
        """An entry into an appointment that was charged before; None where it was not, or may not be entered so."""
        wanted = _charge_request(request, None)
        try:
            return await self._charging.enter_again(wanted, lock_wait_s=lock_wait_s, guarded_by=guarded_by)
        except NotChargedYet:
            self._charged.forget(request.appointment_id)
            return None

    def _hold(self, request: EntryRequest, started_at_s: float) -> Hold:
        wait_s = max(0.0, started_at_s + self._lock_wait_s - time.monotonic())
        return self._locker.hold(
            lock_name(request.appointment_id),
            lease_ttl_s=self._lease_ttl_s,
            wait_s=wait_s,
            request_id=request.request_id,
        )

    def _charge_without_lease(self, request: EntryRequest) -> PendingCharge:
        return self._charging.submit(_charge_request(request, None), None, guarded_by="row_lock")

    def _in_progress(self, expires_in_s: float | None) -> ChargeInProgress:
        return ChargeInProgress(
            "another entry into this appointment is under way",
            retry_after_s=min(expires_in_s or self._lease_ttl_s, self._lease_ttl_s),
        )


def lock_name(appointment_id: int) -> str:
    """The lock of an appointment."""
    return f"{_LOCK_PREFIX}{appointment_id}"


def appointment_of(lock_name: str) -> int | None:
    """The appointment that a lock is for; None for any other lock."""
    prefix, _, number = lock_name.partition(":")
    return int(number) if f"{prefix}:" == _LOCK_PREFIX and number.isdecimal() else None


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
