"""The audit in the background: one worker of all that share a database looks, and all of them show what it has found.

Who looks is settled by our own lock, and the result is told where contention is told, in Redis: a table would have to
be written to by something that must change nothing. Without Redis or Postgres nobody looks, the last result stands, and
its growing age is what an alert watches.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import psycopg2
import sqlalchemy as sa
import structlog

from db.audit import AuditReport, AuditTotals, Invariant, audit
from db.charging import ANSWER_GRACE_S
from db.connecting import read_url
from db.database import Database
from db.errors import DatabaseError
from db.waiting import bound_waits_of_this_thread
from locks import Locker, LocksError
from locks.contention_store import ContentionStore
from service.gauges import AuditGauges
from service.observe import OWN

LEASE_TTL_S = 10.0
LOOK_S = 5.0
FIRST_AFTER_S = 2.0
KEPT_S = 24 * 3600.0

log = structlog.get_logger("chargeonce.audit")


@dataclass(frozen=True, slots=True)
class AuditDone:
    """One audit; `at` is when it ended, unix time."""

    report: AuditReport
    at: float
    took_s: float

    def text(self) -> str:
        """For Redis."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def read(cls, text: str) -> AuditDone:
        """What `text` has made. Raises ValueError, KeyError or TypeError for the text of another version."""
        values: dict[str, Any] = json.loads(text)
        report = values["report"]
        invariants = [Invariant(**invariant) for invariant in report["invariants"]]
        return cls(AuditReport(invariants, AuditTotals(**report["totals"])), values["at"], values["took_s"])


class Auditing:
    """Looks when it is due and nobody else does, and keeps up with what others have found. For one event loop."""

    def __init__(
        self,
        database: Database,
        locker: Locker,
        gauges: AuditGauges,
        *,
        database_url: str,
        interval_s: float,
        statement_timeout_s: float,
    ) -> None:
        """`database`: of its own, so that a long look takes nobody's connection."""
        self._database = database
        self._locker = locker
        self._store = ContentionStore(locker.store)
        self._gauges = gauges
        self._place = _place(database_url)
        self._interval_s = interval_s
        self._statement_timeout_s = statement_timeout_s
        self._thread = ThreadPoolExecutor(
            1, "audit", initializer=bound_waits_of_this_thread, initargs=(statement_timeout_s + ANSWER_GRACE_S,)
        )
        self._connections: set[Any] = set()
        sa.event.listen(database.engine, "connect", lambda raw, _: self._connections.add(raw))
        sa.event.listen(database.engine, "close", lambda raw, _: self._connections.discard(raw))
        self._last: AuditDone | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def last(self) -> AuditDone | None:
        """The last audit of any worker; None before the first."""
        return self._last

    def start(self) -> None:
        """Looks soon, and then every interval."""
        self._gauges.interval.set(self._interval_s)
        if self._interval_s:
            self._task = asyncio.create_task(self._watch(), name="audit")

    async def stop(self) -> None:
        """Looks no more; a look that is under way is called off."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._database.close()
        for raw in list(self._connections):
            with contextlib.suppress(OSError, psycopg2.Error), socket.socket(fileno=os.dup(raw.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread, however silent the server is
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _watch(self) -> None:
        await asyncio.sleep(min(FIRST_AFTER_S, self._interval_s / 2))
        while True:
            try:
                await self._keep_up()
                if await self._is_due():
                    await self._look_if_nobody_does()
            except LocksError as error:  # Redis is away, somebody else looks, or our lease was lost meanwhile
                log.debug("no audit", reason=str(error))
            except DatabaseError as error:
                log.warning("audit could not look", reason=str(error))
            await asyncio.sleep(min(LOOK_S, self._interval_s / 4))

    async def _look_if_nobody_does(self) -> None:
        async with self._locker.hold(f"{OWN}{self._place}", lease_ttl_s=LEASE_TTL_S, wait_s=0):
            await self._keep_up()
            if await self._is_due():  # nobody has looked between our look at the clock and our lease
                await self._look()

    async def _look(self) -> None:
        began_at_s = time.monotonic()
        report = await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: audit(self._database, statement_timeout_s=self._statement_timeout_s)
        )
        done = AuditDone(report, at=await self._store.now_s(), took_s=time.monotonic() - began_at_s)
        self._show(done)
        broken = {invariant.name: invariant.broken_count for invariant in report.invariants if invariant.broken_count}
        if broken:
            log.error("the audit has found broken invariants", broken=broken)
        unknown = {invariant.name: invariant.unknown for invariant in report.invariants if invariant.unknown}
        if unknown:
            log.warning("audit could not look at some invariants", unknown=unknown)
        kept_s = max(KEPT_S, 2 * self._interval_s)
        await self._store.put(self._place, done.text(), kept_ms=round(kept_s * 1000))

    async def _keep_up(self) -> None:
        told = await self._store.told(self._place)
        if told is not None:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # another version tells: we look ourselves
                self._show(AuditDone.read(told))

    async def _is_due(self) -> bool:
        return self._last is None or await self._store.now_s() - self._last.at >= self._interval_s

    def _show(self, done: AuditDone) -> None:
        if self._last is not None and done.at <= self._last.at:
            return
        self._last = done
        for invariant in done.report.invariants:
            self._gauges.broken.labels(invariant.name).set(invariant.broken_count)
        self._gauges.holds.set(not done.report.is_broken)
        self._gauges.took.set(done.took_s)
        self._gauges.at.set(done.at)


def _place(database_url: str) -> str:
    """Names the audit of one database, so that services of two databases may share a Redis. Not reversible."""
    parts = read_url(database_url)
    place = [parts.get(name, "") for name in ("host", "hostaddr", "port", "dbname", "options")]
    return f"audit/{hashlib.sha256(repr(place).encode()).hexdigest()[:12]}"
