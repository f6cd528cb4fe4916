"""`entry-log`: the origin's first version. Charges if there is no ENTER row yet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import sqlalchemy as sa

from db.charging import Entry
from service.entering import EntryRequest
from service.listeners import Listeners
from service.settings import Settings
from tests.chaos.guards.statements import Appointment, has_entry, read_appointment
from tests.chaos.guards.transactions import Transactions


class EntryLog:
    """Believes that whoever finds no entry is the first. So do all who look before the first one has committed."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, _instance_id: str, listeners: Listeners) -> AsyncIterator[EntryLog]:
        """Ready to let people in, until the end of the block."""
        async with Transactions(settings, listeners.on_charge_event) as transactions:
            yield cls(transactions)

    async def enter(self, request: EntryRequest) -> Entry:
        """Raises as Transactions.enter."""
        return await self._transactions.enter(request, read=read_appointment, is_charged=_somebody_has_entered)


def _somebody_has_entered(connection: sa.Connection, _appointment: Appointment, request: EntryRequest) -> bool:
    return has_entry(connection, request)
