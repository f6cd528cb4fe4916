"""`row-only`: `FOR UPDATE` and `is_consume`, no lock in front. Charges once; all wait with a connection each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import sqlalchemy as sa

from db.charging import Entry
from service.entering import EntryRequest
from service.listeners import Listeners
from service.settings import Settings
from tests.chaos.guards.statements import Appointment, lock_appointment
from tests.chaos.guards.transactions import Transactions


class RowOnly:
    """Lets one at a time look at the row. The others wait in Postgres, each with a transaction and a connection."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, _instance_id: str, listeners: Listeners) -> AsyncIterator[RowOnly]:
        """Ready to let people in, until the end of the block."""
        async with Transactions(settings, listeners.on_charge_event) as transactions:
            yield cls(transactions)

    async def enter(self, request: EntryRequest) -> Entry:
        """Raises as Transactions.enter."""
        return await self._transactions.enter(request, read=lock_appointment, is_charged=_the_locked_row_says_so)


def _the_locked_row_says_so(_connection: sa.Connection, appointment: Appointment, _request: EntryRequest) -> bool:
    return bool(appointment.is_consume)
