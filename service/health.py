"""Whether this instance may take traffic: looked at in the background, so that a probe costs and waits for nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from concurrent.futures import Executor

import sqlalchemy as sa
import structlog

from db.database import Database
from db.errors import DatabaseError
from locks import Locker
from service.lock_store_health import LockStoreHealth
from service.observe import DEPENDENCIES, Metrics

# What an entry does first, but on no row. A server that only reads refuses it: a standby, a read-only database.
_LOOK = sa.text("SELECT 1 FROM appointment_info WHERE false FOR UPDATE")

log = structlog.get_logger("chargeonce.health")


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
        self._down_since: dict[str, float] = {}
        self._database_look: asyncio.Future[str | None] | None = None
        self._database_lost = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def dependencies(self) -> Mapping[str, bool]:
        """Each dependency's name, and whether it answers; the database: whether it takes writes."""
        return {**self._up, "lock_store": self.lock_store.is_up}

    @property
    def down_since(self) -> Mapping[str, float | None]:
        """Each dependency that does not answer, and since when as far as a look has told; unix time."""
        return {name: self._down_since.get(name) for name, is_up in self.dependencies.items() if not is_up}

    async def start(self) -> None:
        """Looks once, then goes on looking."""
        self._loop = asyncio.get_running_loop()
        await self._look()
        self._task = asyncio.create_task(self._watch(), name="health")

    async def stop(self) -> None:
        """Stops looking."""
        self._loop = None
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def database_lost(self, reason: str) -> None:
        """A connection to the database was lost; from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._log_lost, reason)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            wake_at_s = loop.time() + self._interval_s
            await asyncio.sleep(self._interval_s)
            self._metrics.loop_lag_seconds.observe(max(0.0, loop.time() - wake_at_s))
            await self._look()

    async def _look(self) -> None:
        was_lost = self._database_lost
        reason, _ = await asyncio.gather(self._why_database_is_down(), self.lock_store.look())
        if reason is not None:
            self._log_lost(reason)
        elif was_lost:  # and not only meanwhile: then this look may have begun before that
            self._database_lost = False
            log.info("database up")
        if reason is None and not self._up["database"]:
            self._database.forget_connections()  # those of reads may lead to a server that only reads, and is behind
        self._up["database"] = reason is None
        for dependency, up in self.dependencies.items():
            self._metrics.dependency_up.labels(dependency).set(up)
            if up:
                self._down_since.pop(dependency, None)
            else:
                self._down_since.setdefault(dependency, time.time())

    def _log_lost(self, reason: str) -> None:
        """One line, however many connections go, until it is back."""
        if not self._database_lost:
            log.error("database lost", reason=reason)
        self._database_lost = True

    async def _why_database_is_down(self) -> str | None:
        # One look at a time: a database that hangs must not take one thread after the other.
        if self._database_look is None:
            loop = asyncio.get_running_loop()
            self._database_look = loop.run_in_executor(self._executor, _why_down, self._database)
        done, _ = await asyncio.wait([self._database_look], timeout=self._interval_s)
        if not done:
            return f"no answer within {self._interval_s:g} s"
        reason = self._database_look.result()
        self._database_look = None
        return reason


def _why_down(database: Database) -> str | None:
    try:
        database.read(lambda connection: connection.execute(_LOOK))
    except DatabaseError as error:
        return str(error)
    return None
