"""`lock-only`: our own lock, and nothing behind it. Charges once, until a holder is paused past its lease."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import sqlalchemy as sa

from db.charging import Entry
from locks import Hold, LeaseLost, LockBusy, Locker
from service.entering import EntryRequest, lock_name
from service.listeners import Listeners
from service.refusals import ChargeInProgress
from service.settings import Settings
from tests.chaos.guards.statements import Appointment, read_appointment
from tests.chaos.guards.transactions import Transactions


class LockOnly:
    """Believes that whoever has got the lease is alone until COMMIT. Nobody looks at the lease again on the way."""

    def __init__(self, locker: Locker, transactions: Transactions, *, lease_ttl_s: float, lock_wait_s: float) -> None:
        self._locker = locker
        self._transactions = transactions
        self._lease_ttl_s = lease_ttl_s
        self._lock_wait_s = lock_wait_s

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, instance_id: str, listeners: Listeners) -> AsyncIterator[LockOnly]:
        """Ready to let people in, until the end of the block."""
        assert settings.redis_url is not None
        locker = Locker(
            settings.redis_url.get_secret_value(),
            instance_id=instance_id,
            command_timeout_s=settings.command_timeout_s,
            listener=listeners.on_lock_event,
        )
        await locker.open()
        await locker.up_within(settings.command_timeout_s)
        try:
            async with Transactions(settings, listeners.on_charge_event) as transactions:
                yield cls(locker, transactions, lease_ttl_s=settings.lease_ttl_s, lock_wait_s=settings.lock_wait_s)
        finally:
            await locker.close()

    async def enter(self, request: EntryRequest) -> Entry:
        """Raises ChargeInProgress, LockStoreDown, and as Transactions.enter."""
        charge: asyncio.Task[Entry] | None = None
        try:
            async with self._hold(request):
                charge = asyncio.create_task(
                    self._transactions.enter(request, read=read_appointment, is_charged=_the_row_said_so)
                )
                return await asyncio.shield(charge)
        except LockBusy as busy:
            raise _in_progress() from busy
        except LeaseLost as lost:
            # The transaction knows nothing of leases and goes on. What becomes of it is the answer.
            if charge is None:
                raise _in_progress() from lost
            return await charge

    def _hold(self, request: EntryRequest) -> Hold:
        return self._locker.hold(
            lock_name(request.appointment_id),
            lease_ttl_s=self._lease_ttl_s,
            wait_s=self._lock_wait_s,
            request_id=request.request_id,
        )


def _the_row_said_so(_connection: sa.Connection, appointment: Appointment, _request: EntryRequest) -> bool:
    return bool(appointment.is_consume)


def _in_progress() -> ChargeInProgress:
    return ChargeInProgress("another entry into this appointment is under way", retry_after_s=1.0)
