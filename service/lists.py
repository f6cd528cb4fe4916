"""All locks as a list, for callers by turns: what one costs, in time and in memory, grows with the number of locks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from locks.contention import Contention
from locks.listing import ListedLock, LockPage, Sort
from service.refusals import Overloaded
from service.turns import Turns

AT_ONCE = 2
WAIT_S = 4.0  # a page waits 5 s for all that it shows


class Lists:
    """Lists of the locks of all instances. For one event loop."""

    def __init__(self, contention: Contention) -> None:
        self._contention = contention
        self._turns = Turns(AT_ONCE)

    async def page(self, *, sort: Sort, limit: int, cursor: str | None, search: str, caller: int) -> LockPage:
        """As Contention.locks. Raises also Overloaded."""
        async with self._turn(caller):
            return await self._contention.locks(sort=sort, limit=limit, cursor=cursor, search=search)

    async def all(self, *, sort: Sort, search: str, caller: int) -> Sequence[ListedLock]:
        """As Contention.all_locks. Raises also Overloaded."""
        async with self._turn(caller):
            return await self._contention.all_locks(sort=sort, search=search)

    @asynccontextmanager
    async def _turn(self, caller: int) -> AsyncIterator[None]:
        try:
            await self._turns.take(caller, wait_s=WAIT_S)
        except TimeoutError as error:
            raise Overloaded("too many lists of locks are asked for") from error
        try:
            yield
        finally:
            self._turns.give_back()
