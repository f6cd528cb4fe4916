"""Everything but the charge that needs the database: one transaction, one hop to a bounded pool of threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from db.database import Database
from db.errors import CommitUnknown, DatabaseDown
from service.refusals import Overloaded

Result = TypeVar("Result")


class Reading:
    """Runs short database work off the event loop."""

    def __init__(self, database: Database, executor: Executor, *, max_waiting: int, timeout_s: float) -> None:
        self._database = database
        self._executor = executor
        self._max_waiting = self._room = max_waiting
        self._timeout_s = timeout_s

    @property
    def under_way_count(self) -> int:
        """How much is being read or waits for a thread."""
        return self._max_waiting - self._room

    async def run(self, work: Callable[[Database], Result]) -> Result:
        """What `work` has read. Raises what it raises, Overloaded, or DatabaseDown when it takes too long."""
        try:
            return await self._in_time(work)
        except TimeoutError as error:
            raise DatabaseDown(str(error)) from error

    async def write(self, work: Callable[[Database], Result]) -> Result:
        """What `work` returns. As run(), but CommitUnknown when it takes too long: nobody stops it."""
        try:
            return await self._in_time(work)
        except TimeoutError as error:
            raise CommitUnknown(str(error)) from error

    async def _in_time(self, work: Callable[[Database], Result]) -> Result:
        if self._room == 0:
            raise Overloaded("too many requests wait for the database")
        self._room -= 1
        future = asyncio.get_running_loop().run_in_executor(self._executor, work, self._database)
        future.add_done_callback(self._leave)
        done, _ = await asyncio.wait([future], timeout=self._timeout_s)
        if not done:
            raise TimeoutError("the database has not answered in time")
        return future.result()

    def _leave(self, future: asyncio.Future[Result]) -> None:
        self._room += 1
        if not future.cancelled():
            future.exception()
