"""Transactions of the plain kind: a thread and a database connection for each request, one statement after another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Self

import sqlalchemy as sa

from db.charging import ANSWER_GRACE_S, Entry
from db.database import Database, DatabaseLimits
from db.decisions import Outcome
from db.errors import TimedOut
from db.events import ChargeEvent, Committed, Committing, Decided, Listener, RowsLocked
from db.waiting import bound_waits
from service.entering import EntryRequest
from service.refusals import ChargeInProgress
from service.settings import Settings
from tests.chaos.guards.statements import Appointment, charge, earlier_charge, log_entry

# As many as requests that a crowd sends to one instance at once: nobody waits for a thread, all wait in Postgres.
CONNECTIONS = 40

IsCharged = Callable[[sa.Connection, Appointment, EntryRequest], bool]
ReadAppointment = Callable[[sa.Connection, EntryRequest], Appointment]


class Transactions:
    """Runs whole transactions in threads, and tells in the event loop how far each one is. For one event loop."""

    def __init__(self, settings: Settings, listener: Listener) -> None:
        assert settings.database_url is not None
        limits = DatabaseLimits(
            pool_size=CONNECTIONS,
            pool_wait_s=settings.charge_timeout_s,
            connect_timeout_s=settings.database_connect_timeout_s,
            statement_timeout_s=settings.statement_timeout_s,
            row_lock_timeout_s=settings.row_lock_timeout_s,
            idle_in_transaction_timeout_s=settings.idle_in_transaction_timeout_s,
        )
        bound_waits(settings.statement_timeout_s + ANSWER_GRACE_S)
        self._database = Database(settings.database_url.get_secret_value(), limits=limits)
        self._default_price = settings.default_coupon_count
        self._threads = ThreadPoolExecutor(CONNECTIONS, "transaction")
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._unheard: set[Future[None]] = set()

    async def enter(self, request: EntryRequest, *, read: ReadAppointment, is_charged: IsCharged) -> Entry:
        """One entry: `read` the appointment, charge unless `is_charged` says that it is, log the entry, COMMIT.

        Raises db's refusals and errors; ChargeInProgress where another held the row for too long.
        """
        try:
            return await self._loop.run_in_executor(self._threads, self._enter, request, read, is_charged)
        except TimedOut as error:
            raise ChargeInProgress("the appointment's row was not to be had in time", retry_after_s=1.0) from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Returns once every transaction has ended, one way or the other."""
        for unheard in list(self._unheard):
            unheard.cancel()
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        self._database.close()

    def _enter(self, request: EntryRequest, read: ReadAppointment, is_charged: IsCharged) -> Entry:
        this = (request.appointment_id,)
        began_at_s = time.monotonic()

        def work(connection: sa.Connection) -> Entry:
            appointment = read(connection, request)
            self._tell(RowsLocked(this, ()))
            charged_before = is_charged(connection, appointment, request)
            self._tell(Decided(this))
            if charged_before:
                outcome, found = Outcome.ALREADY_CHARGED, earlier_charge(connection, request)
            else:
                outcome = Outcome.CHARGED
                found = charge(connection, appointment, request, default_price=self._default_price)
            entered_at = log_entry(connection, request)
            self._tell(Committing(this))
            return Entry(outcome, found, entered_at)

        entry = self._database.transaction(work)
        charges = 1 if entry.outcome is Outcome.CHARGED else 0
        self._tell(Committed(1, charges, time.monotonic() - began_at_s, this))
        return entry

    def _tell(self, event: ChargeEvent) -> None:
        """Returns once the listener has heard it, in the event loop: while it stands still there, the process does."""
        heard: Future[None] = Future()
        self._unheard.add(heard)
        try:
            self._loop.call_soon_threadsafe(self._hear, event, heard)
            heard.result()
        finally:
            self._unheard.discard(heard)

    def _hear(self, event: ChargeEvent, heard: Future[None]) -> None:
        if not heard.set_running_or_notify_cancel():
            return
        try:
            self._listener(event)
        finally:
            # Whatever the listener raises ends the loop, and must not leave a thread behind that waits for it.
            with suppress(Exception):
                heard.set_result(None)
