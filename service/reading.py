"""Everything but the charge that needs the database: one transaction, one hop to a bounded pool of threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from db.database import Database
from db.errors import CommitUnknown, DatabaseDown
from service.refusals import Overloaded
from service.shares import Limit
from service.turns import Turns

Result = TypeVar("Result")


class Reading:
    """Runs short database work off the event loop, for callers by turns. For one event loop."""

    def __init__(
        self, database: Database, *, name: str, threads: int, max_waiting: int, caller_share: float, timeout_s: float
    ) -> None:
        """`timeout_s`: of which half may go by before a thread is reached, so that the database has the other half."""
        self._database = database
        self._threads = ThreadPoolExecutor(threads, name)
        self._turns = Turns(threads)
        self._places = Limit("requests that need the database", max_waiting, caller_share=caller_share)
        self._timeout_s = timeout_s

    @property
    def busy_count(self) -> int:
        """How many threads are at work."""
        return self._turns.taken_count

    @property
    def waiting_count(self) -> int:
        """How much waits for a thread."""
        return self._turns.waiting_count

    async def run(self, work: Callable[[Database], Result], *, caller: int) -> Result:
        """What `work` has read. Raises what it raises, and DatabaseDown when the database takes too long.

        Raises Overloaded or TooManyRequests where it was never begun; nor is it when whoever asks is cancelled before.
        """
        return await self._in_time(work, caller, DatabaseDown)

    async def write(self, work: Callable[[Database], Result], *, caller: int) -> Result:
        """What `work` returns. As run(), but CommitUnknown when the database takes too long: nobody stops it."""
        return await self._in_time(work, caller, CommitUnknown)

    def close(self) -> None:
        """Begins nothing any more, and waits for nobody."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_time(
        self, work: Callable[[Database], Result], caller: int, late: type[DatabaseDown | CommitUnknown]
    ) -> Result:
        loop = asyncio.get_running_loop()
        late_at_s = loop.time() + self._timeout_s
        with self._places.place(caller):
            try:
                await self._turns.take(caller, wait_s=self._timeout_s / 2)
            except TimeoutError as error:
                raise Overloaded("too many requests wait for the database") from error
            # There are as many turns as threads: from here on it has begun.
            future = loop.run_in_executor(self._threads, work, self._database)
            future.add_done_callback(self._ended)
            done, _ = await asyncio.wait([future], timeout=late_at_s - loop.time())
        if not done:
            raise late("the database has not answered in time")
        return future.result()

    def _ended(self, future: asyncio.Future[Result]) -> None:
        self._turns.give_back()
        if not future.cancelled():
            future.exception()
