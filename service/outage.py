"""LOCK_OUTAGE: what happens to entries while Redis is out of reach."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from locks import LockStoreDown
from service.pending_charge import PendingCharge, TimedEntry
from service.refusals import Overloaded


class OutageRule(Protocol):
    """What happens to entries while Redis is out of reach."""

    async def charge(self, submit: Callable[[], PendingCharge]) -> TimedEntry:
        """Charges on the row lock alone, or raises."""


class RefuseWithoutLock:
    """LOCK_OUTAGE=refuse: no lock, no entry."""

    async def charge(self, submit: Callable[[], PendingCharge]) -> TimedEntry:
        """Raises LockStoreDown."""
        raise LockStoreDown("Redis is out of reach, and entries need the lock")


class ProceedOnRowLock:
    """LOCK_OUTAGE=proceed: the row lock decides alone, behind a bulkhead, since the crowd now stands at the rows."""

    def __init__(self, *, concurrent: int, waiting: int) -> None:
        self._slots = asyncio.Semaphore(concurrent)
        self._room = concurrent + waiting

    async def charge(self, submit: Callable[[], PendingCharge]) -> TimedEntry:
        """Raises Overloaded when too many are waiting already, else as the charge."""
        if self._room == 0:
            raise Overloaded("Redis is out of reach, and as many entries as may go on without it are under way")
        self._room -= 1
        try:
            async with self._slots:
                return await submit()
        finally:
            self._room += 1
