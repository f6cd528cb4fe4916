"""The charge: many requests in one transaction. Lock rows, decide, write, COMMIT; each request learns its own outcome.

Locks are taken in one order everywhere, appointments ascending, then coupons ascending: batches cannot deadlock.
For one event loop; every wait for Postgres has an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence

import psycopg2

from db.answers import translated, translated_at_commit
from db.batch import (
    Batch,
    Entry,
    HeldElsewhere,
    NotChargedYet,
    Progress,
    RepeatingBatch,
    Verdict,
    lock_free,
    lock_waiting,
)
from db.charging_statements import FIND_CHARGES, FIND_PARTICIPANTS, STATEMENTS
from db.connection import Connection, Row
from db.database import DatabaseLimits, connector
from db.decisions import ChargeRequest, Participants, Rules
from db.errors import CommitUnknown, Conflict, DatabaseDown, DatabaseError, TimedOut
from db.events import Committed, Committing, Listener, Settled, ignore
from db.prepared import script

__all__ = ["ANSWER_GRACE_S", "Charges", "Entry", "HeldElsewhere", "NotChargedYet", "Progress", "Verdict"]

SETTLE_PAUSE_S = 0.05
RUNS_PER_BATCH = 2
# The server ends a statement by its own limits. One that has not even said so in so much more time is frozen.
ANSWER_GRACE_S = 0.5


class Charges:
    """Charges on connections that it has for itself, as many as are needed at once."""

    def __init__(
        self,
        url: str,
        rules: Rules,
        *,
        limits: DatabaseLimits | None = None,
        settle_within_s: float = 2.0,
        listener: Listener = ignore,
    ) -> None:
        """Raises ValueError for a URL that cannot be honoured."""
        self._limits = limits or DatabaseLimits()
        self._connector = connector(url, self._limits)
        self._script = script(STATEMENTS)
        self._rules = rules
        self._settle_within_s = settle_within_s
        self._emit = listener
        self._idle: list[Connection] = []
        self.on_lost: Callable[[str], None] | None = None  # hears why a connection was lost, in the event loop
        self._answer_within_s = ANSWER_GRACE_S + max(self._limits.statement_timeout_s, self._limits.row_lock_timeout_s)

    async def charge_batch(self, requests: Sequence[ChargeRequest], progress: Progress | None = None) -> list[Verdict]:
        """One verdict a request, in their order; rows that others hold are not waited for (HeldElsewhere).

        Raises CommitUnknown when it could not be settled; any other DatabaseError means that nothing was written.
        Cancelled while `progress` says that nothing can have been committed, it writes nothing.
        """
        return await self._charge(lock_free(requests, self._rules, self._emit), progress or Progress())

    async def charge_waiting(
        self, requests: Sequence[ChargeRequest], progress: Progress | None = None
    ) -> list[Verdict]:
        """As charge_batch, but waits for rows that others hold, at most the row lock's limit (TimedOut)."""
        return await self._charge(lock_waiting(requests, self._rules, self._emit), progress or Progress())

    async def enter_again(self, requests: Sequence[ChargeRequest], progress: Progress | None = None) -> list[Verdict]:
        """Entries into appointments that are charged, without a lock; NotChargedYet for others. Raises likewise."""
        return await self._charge(RepeatingBatch(requests, self._rules, self._emit), progress or Progress())

    async def charged_among(self, appointment_ids: Collection[int]) -> list[int]:
        """Those of the appointments that are charged, without any lock. Raises DatabaseDown, TimedOut."""
        async with self._connection() as connection:
            rows = await self._ask(connection, FIND_CHARGES.with_values(appointment_ids=list(appointment_ids)))
        return [row[0] for row in rows]

    async def participants_of(self, appointment_ids: Collection[int]) -> dict[int, Participants]:
        """Of those of the appointments that exist, without any lock. Raises DatabaseDown, TimedOut."""
        async with self._connection() as connection:
            rows = await self._ask(connection, FIND_PARTICIPANTS.with_values(appointment_ids=list(appointment_ids)))
        return {row[0]: Participants(row[1], row[2]) for row in rows}

    def close(self) -> None:
        """Closes the connections that nobody uses."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _charge(self, batch: Batch, progress: Progress) -> list[Verdict]:
        for run in range(RUNS_PER_BATCH):
            started_at_s = time.monotonic()
            try:
                await self._run(batch, progress)
            except CommitUnknown:
                if not await self._had_committed(batch):
                    progress.may_have_committed = False
                    continue  # nothing was written, so it may run again
            except DatabaseDown:
                # A connection may have died, or become useless, while nobody used it. The next one is new.
                if run + 1 == RUNS_PER_BATCH:
                    raise
                continue
            transaction_s = time.monotonic() - started_at_s
            self._emit(Committed(batch.entry_count, batch.charge_count, transaction_s, batch.appointment_ids))
            return batch.verdicts
        raise DatabaseDown("COMMIT failed, and nothing was written")

    async def _run(self, batch: Batch, progress: Progress) -> None:
        """One transaction; again when it has lost against others (deadlock, serialization)."""
        attempt = 0
        while True:
            try:
                await self._once(batch, progress)
            except Conflict:
                progress.may_have_committed = False
                attempt += 1
                if attempt > self._limits.conflict_retries:
                    raise
                await asyncio.sleep(random.uniform(0.5, 1.5) * 0.002 * 2**attempt)
            else:
                return

    async def _once(self, batch: Batch, progress: Progress) -> None:
        async with self._connection() as connection:
            writing = await batch.begin(lambda command: self._ask(connection, command))
            if writing is None:
                await self._ask(connection, "COMMIT")  # of nothing
                return
            self._emit(Committing(batch.appointment_ids))
            progress.may_have_committed = True
            try:
                await connection.ask(f"{writing};COMMIT", within_s=self._answer_within_s)
            except psycopg2.Error as error:
                judged = translated if connection.has_failed_transaction else translated_at_commit
                translation = judged(error)
                progress.may_have_committed = isinstance(translation, CommitUnknown)
                raise translation from error
            except TimeoutError as error:
                raise CommitUnknown(str(error)) from error

    async def _had_committed(self, batch: Batch) -> bool:
        """Settles by reading whether the batch is in the tables. Raises CommitUnknown when that takes too long."""
        give_up_at_s = time.monotonic() + self._settle_within_s
        while True:
            try:
                async with self._connection() as connection:
                    await self._ask(connection, "BEGIN")
                    had_committed = await batch.is_in_the_tables(lambda command: self._ask(connection, command))
                    await self._ask(connection, "ROLLBACK")
            except DatabaseError as error:
                if time.monotonic() >= give_up_at_s:
                    raise CommitUnknown("what became of COMMIT is not known, and could not be settled") from error
                await asyncio.sleep(SETTLE_PAUSE_S)
            else:
                self._emit(Settled(batch.appointment_ids, had_committed))
                return had_committed

    async def _ask(self, connection: Connection, command: str) -> list[Row]:
        try:
            return await connection.ask(command, within_s=self._answer_within_s)
        except psycopg2.Error as error:
            raise translated(error) from error
        except TimeoutError as error:
            raise DatabaseDown(str(error)) from error

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        """One that nobody else uses meanwhile. Raises DatabaseDown.

        After an error it is closed, unless the error was about others' locks. What makes one useless makes all useless
        that are as old.
        """
        connection = await self._idle_or_new()
        try:
            yield connection
        except (Conflict, TimedOut):
            await _roll_back(connection)
            raise
        except DatabaseDown:
            connection.close()
            self.close()
            raise
        except BaseException:
            connection.close()
            raise
        finally:
            if connection.is_open:
                self._idle.append(connection)

    async def _idle_or_new(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return await Connection.open(self._connector, script=self._script, on_lost=self._lost)

    def _lost(self, reason: str) -> None:
        if self.on_lost is not None:
            self.on_lost(reason)


async def _roll_back(connection: Connection) -> None:
    try:
        await connection.ask("ROLLBACK", within_s=ANSWER_GRACE_S)
    except (psycopg2.Error, TimeoutError):
        connection.close()
