"""Whether this instance may take traffic: looked at in the background, so that a probe costs and waits for nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from concurrent.futures import Executor

import sqlalchemy as sa

from db.database import Database
from db.errors import DatabaseError
from locks import Locker
from service.lock_store_health import LockStoreHealth
from service.observe import DEPENDENCIES, Metrics

_LOOK = sa.text("SELECT 1")


class Health:
    """What is known of the database and of the lock store, at most one interval old."""

    def __init__(
        self, database: Database, executor: Executor, locker: Locker, metrics: Metrics, *, interval_s: float
    ) -> None:
        self._database = database
        self._executor = executor
        self.lock_store = LockStoreHealth(locker)
        self._metrics = metrics
        self._interval_s = interval_s
        self._up = dict.fromkeys(DEPENDENCIES, False)
        self._database_look: asyncio.Future[bool] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def dependencies(self) -> Mapping[str, bool]:
        """Each dependency's name, and whether it answers."""
        return {**self._up, "lock_store": self.lock_store.is_up}

    async def start(self) -> None:
        """Looks once, then goes on looking."""
        await self._look()
        self._task = asyncio.create_task(self._watch(), name="health")

    async def stop(self) -> None:
        """Stops looking."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            wake_at_s = loop.time() + self._interval_s
            await asyncio.sleep(self._interval_s)
            self._metrics.loop_lag_seconds.observe(max(0.0, loop.time() - wake_at_s))
            await self._look()

    async def _look(self) -> None:
        self._up["database"], _ = await asyncio.gather(self._database_answers(), self.lock_store.look())
        for dependency, up in self.dependencies.items():
            self._metrics.dependency_up.labels(dependency).set(up)

    async def _database_answers(self) -> bool:
        # One look at a time: a database that hangs must not take one thread after the other.
        if self._database_look is None:
            loop = asyncio.get_running_loop()
            self._database_look = loop.run_in_executor(self._executor, _answers, self._database)
        done, _ = await asyncio.wait([self._database_look], timeout=self._interval_s)
        if not done:
            return False
        answers = self._database_look.result()
        self._database_look = None
        return answers


def _answers(database: Database) -> bool:
    try:
        database.transaction(lambda connection: connection.execute(_LOOK).scalar_one())
    except DatabaseError:
        return False
    return True
