"""One engine, one way to run a transaction, and the driver's errors translated into ours."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import psycopg2
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from db.connecting import Connector
from db.errors import CommitUnknown, Conflict, DatabaseDown, DatabaseError, TimedOut

Result = TypeVar("Result")

SERIALIZATION_FAILURE = "40001"
DEADLOCK_DETECTED = "40P01"
LOCK_NOT_AVAILABLE = "55P03"
QUERY_CANCELED = "57014"
IDLE_IN_TRANSACTION = "25P03"

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

    def transaction(self, work: Callable[[sa.Connection], Result]) -> Result:
        """Runs `work` and commits; a deadlock or a serialization failure runs it again, so `work` must be repeatable.

        Raises DatabaseDown, TimedOut, Conflict (nothing was written) or CommitUnknown (nobody knows yet).
        """
        attempt = 0
        while True:
            try:
                return self._once(work)
            except Conflict:
                attempt += 1
                if attempt > self.limits.conflict_retries:
                    raise
                time.sleep(random.uniform(0.5, 1.5) * 0.002 * 2**attempt)

    def close(self) -> None:
        """Closes every pooled connection."""
        self.engine.dispose()

    def _once(self, work: Callable[[sa.Connection], Result]) -> Result:
        with self._connect() as connection:
            try:
                result = work(connection)
            except DBAPIError as error:
                raise translated(error) from error
            try:
                connection.commit()
            except DBAPIError as error:
                raise translated_at_commit(error) from error
            return result

    def _connect(self) -> sa.Connection:
        try:
            return self.engine.connect()
        except PoolTimeout as error:
            raise TimedOut(f"no database connection within {self.limits.pool_wait_s} s") from error
        except DBAPIError as error:
            raise DatabaseDown(_first_line(error)) from error


def translated(error: DBAPIError | psycopg2.Error) -> DatabaseError:
    """Before COMMIT was sent, whatever broke has written nothing."""
    orig = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(orig, "pgcode", None)
    if code in (SERIALIZATION_FAILURE, DEADLOCK_DETECTED):
        return Conflict(_first_line(error))
    if code in (LOCK_NOT_AVAILABLE, QUERY_CANCELED):
        return TimedOut(_first_line(error))
    if code == IDLE_IN_TRANSACTION or _server_leaving(code):
        return DatabaseDown(_first_line(error))
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return DatabaseDown(_first_line(error))
    if isinstance(orig, psycopg2.OperationalError | psycopg2.InterfaceError):
        return DatabaseDown(_first_line(error))
    return DatabaseError(_first_line(error))


def translated_at_commit(error: DBAPIError | psycopg2.Error) -> DatabaseError:
    """While COMMIT is under way, a connection that is lost leaves an unknown."""
    code = getattr(error.orig if isinstance(error, DBAPIError) else error, "pgcode", None)
    if code is None or _server_leaving(code):
        return CommitUnknown(_first_line(error))
    return translated(error)


def _server_leaving(code: str | None) -> bool:
    return code is not None and code.startswith(("57P0", "08"))


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


def _first_line(error: BaseException) -> str:
    return str(getattr(error, "orig", error)).strip().split("\n", 1)[0]
