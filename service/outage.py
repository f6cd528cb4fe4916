"""LOCK_OUTAGE: what happens to entries while Redis is out of reach."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from locks import LockStoreDown
from service.pending_charge import PendingCharge, TimedEntry
from service.shares import Limit


class OutageRule(Protocol):
    """What happens to entries while Redis is out of reach."""

    async def charge(self, user_id: int, submit: Callable[[], PendingCharge]) -> TimedEntry:
        """Charges on the row lock alone, or raises."""


class RefuseWithoutLock:
    """LOCK_OUTAGE=refuse: no lock, no entry."""

    async def charge(self, user_id: int, submit: Callable[[], PendingCharge]) -> TimedEntry:
        """Raises LockStoreDown."""
        raise LockStoreDown("Redis is out of reach, and entries need the lock")


class ProceedOnRowLock:
    """LOCK_OUTAGE=proceed: the row lock decides alone, behind a bulkhead, since the crowd now stands at the rows."""

    def __init__(self, *, concurrent: int, waiting: int, caller_share: float) -> None:
        self._slots = asyncio.Semaphore(concurrent)
        self._places = Limit("entries without Redis", concurrent + waiting, caller_share=caller_share)

    async def charge(self, user_id: int, submit: Callable[[], PendingCharge]) -> TimedEntry:
        """Raises TooManyRequests or Overloaded when too many are waiting already, else as the charge."""
        with self._places.place(user_id):
            async with self._slots:
                return await submit()
