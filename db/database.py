"""One engine, and one way to run a transaction on it."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import psycopg2
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from db.answers import first_line, lost, translated, translated_at_commit
from db.connecting import Connector
from db.errors import CommitUnknown, Conflict, DatabaseDown, DatabaseError, TimedOut

Result = TypeVar("Result")

RUNS_PER_WRITE = 2
DIALECT = "postgresql+psycopg2://"  # for an engine whose connections are made by a Connector


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseLimits:
    """Every wait has an end; seconds throughout."""

    pool_size: int = 6
    pool_wait_s: float = 2.0
    connect_timeout_s: float = 2.0
    statement_timeout_s: float = 2.0
    row_lock_timeout_s: float = 1.0
    idle_in_transaction_timeout_s: float = 2.0
    conflict_retries: int = 5


class Database:
    """Transactions on one Postgres, from any thread. Blocking: the service calls it from its bounded pool."""

    def __init__(self, url: str, *, limits: DatabaseLimits | None = None) -> None:
        """Raises ValueError for a URL that cannot be honoured."""
        self.limits = limits or DatabaseLimits()
        self.engine = sa.create_engine(
            DIALECT,
            creator=connector(url, self.limits).connect,
            pool_size=self.limits.pool_size,
            max_overflow=0,
            pool_timeout=self.limits.pool_wait_s,
        )
        sa.event.listen(self.engine, "handle_error", self._forget_what_is_down)
        self.on_lost: Callable[[str], None] | None = None  # hears why a connection was lost, in whichever thread
        self._closed = False

    def transaction(self, work: Callable[[sa.Connection], Result]) -> Result:
        """Runs `work` and commits; `work` must be repeatable.

        It is run again after a deadlock or a serialization failure, and once more, on a new connection, when the first
        one turns out to be dead or of no use before COMMIT was sent.
        Raises DatabaseDown, TimedOut, Conflict (nothing was written) or CommitUnknown (nobody knows yet).
        """

        def committed(connection: sa.Connection) -> Result:
            result = _done(work, connection)
            try:
                connection.commit()
            except DBAPIError as error:
                raise translated_at_commit(error) from error
            return result

        return self._repeated(committed)

    def settled_transaction(
        self, work: Callable[[sa.Connection], Result], standing: Callable[[sa.Connection], Result | None]
    ) -> Result:
        """Runs `work` as transaction() does, and where it is unknown what became of COMMIT, settles it by reading.

        `standing` waits for the end of a COMMIT that is still under way, and returns what stands of it, or None; it may
        write, for that is rolled back. Where nothing stands, `work` is run again.
        Raises CommitUnknown only when that could not be read.
        """
        for _ in range(RUNS_PER_WRITE):
            try:
                return self.transaction(work)
            except CommitUnknown as unknown:
                try:
                    found = self.read(standing)
                except DatabaseError as error:
                    raise unknown from error
            if found is not None:
                return found
        raise DatabaseDown("COMMIT failed, and nothing was written")

    def read(self, work: Callable[[sa.Connection], Result]) -> Result:
        """Runs `work`, which only reads, as transaction() does, but commits nothing: its end can leave no unknown.

        Raises DatabaseDown, TimedOut, Conflict.
        """

        def rolled_back(connection: sa.Connection) -> Result:
            result = _done(work, connection)
            with contextlib.suppress(DBAPIError):
                connection.rollback()
            return result

        return self._repeated(rolled_back)

    def forget_connections(self) -> None:
        """Closes every pooled connection; whoever comes next gets a new one."""
        self.engine.dispose()

    def close(self) -> None:
        """Closes every pooled connection, and opens none any more, not even for work that is run again."""
        self._closed = True
        self.engine.dispose()

    def _repeated(self, work: Callable[[sa.Connection], Result]) -> Result:
        attempt = 0
        while True:
            try:
                return self._on_connection(work)
            except Conflict:
                attempt += 1
                if attempt > self.limits.conflict_retries:
                    raise
                time.sleep(random.uniform(0.5, 1.5) * 0.002 * 2**attempt)

    def _on_connection(self, work: Callable[[sa.Connection], Result]) -> Result:
        with self._connect() as connection, contextlib.suppress(DatabaseDown):
            return work(connection)
        # The pool has forgotten that one, and all that are as old.
        with self._connect() as connection:
            return work(connection)

    def _forget_what_is_down(self, context: sa.ExceptionContext) -> None:
        """Has the pool close a connection, and those that are as old, after an answer that makes them useless."""
        error = context.original_exception
        if not isinstance(error, psycopg2.Error) or not isinstance(translated(error), DatabaseDown):
            return
        context.is_disconnect = True
        stood = context.connection is not None
        if stood and self.on_lost is not None and (reason := lost(error)) is not None:
            self.on_lost(reason)

    def _connect(self) -> sa.Connection:
        if self._closed:
            raise DatabaseDown("closed here")
        try:
            return self.engine.connect()
        except PoolTimeout as error:
            raise TimedOut(f"no database connection within {self.limits.pool_wait_s} s") from error
        except DBAPIError as error:
            raise DatabaseDown(first_line(error)) from error


def _done(work: Callable[[sa.Connection], Result], connection: sa.Connection) -> Result:
    try:
        return work(connection)
    except DBAPIError as error:
        raise translated(error) from error


def connector(url: str, limits: DatabaseLimits) -> Connector:
    """Makes the connections that have these limits. Raises ValueError for a URL that cannot be honoured."""
    settings = {
        "timezone": "UTC",
        "statement_timeout": _ms(limits.statement_timeout_s),
        "lock_timeout": _ms(limits.row_lock_timeout_s),
        "idle_in_transaction_session_timeout": _ms(limits.idle_in_transaction_timeout_s),
    }
    return Connector(url, settings=settings, connect_timeout_s=limits.connect_timeout_s)


def _ms(limit_s: float) -> str:
    return str(max(1, round(limit_s * 1000)))  # to Postgres 0 is no limit
