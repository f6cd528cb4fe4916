"""Where the views look: the locks of all instances, the tables, the audit, and this instance's health."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from db.audit import AuditReport, audit
from db.errors import DatabaseError
from locks import Locker
from locks.contention import Contention
from service.reading import Reading
from service.refusals import Overloaded

AUDIT_EVERY_S = 60.0
AUDIT_STATEMENT_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class AuditSeen:
    """The last audit; `at` in unix seconds. `report` is None when it could not look, and `problem` says why."""

    at: float
    took_s: float
    report: AuditReport | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Looking:
    """What views read from; nothing here changes anything."""

    contention: Contention
    locker: Locker
    reading: Reading
    audit: Callable[[], Awaitable[AuditSeen]]
    dependencies: Callable[[], Mapping[str, bool]]
    instance_id: str
    entry_limit: int


class AuditOnDemand:
    """An audit for whoever looks, at most one a minute; large tables take longer than it may, and it says so."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._last: AuditSeen | None = None
        self._lock = asyncio.Lock()

    async def look(self) -> AuditSeen:
        """The last one, at most a minute old."""
        async with self._lock:
            if self._last is None or time.time() - self._last.at > AUDIT_EVERY_S:
                self._last = await self._audit()
            return self._last

    async def _audit(self) -> AuditSeen:
        started_at_s = time.monotonic()
        report, problem = None, ""
        try:
            report = await self._reading.run(
                lambda database: audit(database, statement_timeout_s=AUDIT_STATEMENT_TIMEOUT_S)
            )
        except (DatabaseError, Overloaded) as error:
            problem = str(error)
        return AuditSeen(time.time(), time.monotonic() - started_at_s, report, problem)
