"""One engine, one way to run a transaction, and the driver's errors translated into ours."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg2
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from db.connection import wait_for_answer
from db.errors import CommitUnknown, Conflict, DatabaseDown, DatabaseError, TimedOut

Result = TypeVar("Result")

_this_thread = threading.local()

SERIALIZATION_FAILURE = "40001"
DEADLOCK_DETECTED = "40P01"
LOCK_NOT_AVAILABLE = "55P03"
QUERY_CANCELED = "57014"
IDLE_IN_TRANSACTION = "25P03"


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


def bound_waits(within_s: float) -> None:
    """From now on no thread of this process waits longer than this for an answer of Postgres.

    The server's own limits are of no use when it is frozen, or out of reach without a word. psycopg2 has one such
    callback for all connections of a process; those of db/connection.py see to themselves.
    """
    psycopg2.extensions.set_wait_callback(
        lambda raw: wait_for_answer(raw, time.monotonic() + getattr(_this_thread, "within_s", within_s))
    )


def bound_waits_of_this_thread(within_s: float) -> None:
    """The same for one thread alone, whose work may take longer than that of the others."""
    _this_thread.within_s = within_s


class Database:
    """Transactions on one Postgres, from any thread. Blocking: the service calls it from its bounded pool."""

    def __init__(self, url: str, *, limits: DatabaseLimits | None = None, application_name: str = "chargeonce") -> None:
        self.limits = limits or DatabaseLimits()
        self.engine = sa.create_engine(
            driver_url(url),
            pool_size=self.limits.pool_size,
            max_overflow=0,
            pool_timeout=self.limits.pool_wait_s,
            connect_args=_session_arguments(self.limits, application_name),
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


def driver_url(url: str) -> sa.URL:
    """The URL with the driver written out: since SQLAlchemy 2.1 a plain postgresql:// means psycopg 3."""
    parsed = sa.make_url(url)
    if parsed.drivername in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+psycopg2")
    if parsed.drivername != "postgresql+psycopg2":
        raise ValueError(f"must start with postgresql://, not {parsed.drivername}://")
    return parsed


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


def connect_arguments(url: str, limits: DatabaseLimits, *, application_name: str = "chargeonce") -> Mapping[str, Any]:
    """What psycopg2.connect is to be given. Raises ValueError for a URL of another kind."""
    dialect = sa.dialects.registry.load("postgresql.psycopg2")()
    arguments: dict[str, Any] = dialect.create_connect_args(driver_url(url))[1]
    return arguments | _session_arguments(limits, application_name)


def _session_arguments(limits: DatabaseLimits, application_name: str) -> dict[str, Any]:
    return {
        "connect_timeout": max(1, round(limits.connect_timeout_s)),
        "application_name": application_name,
        "options": _session_options(limits),
    }


def _session_options(limits: DatabaseLimits) -> str:
    return (
        "-c timezone=UTC"
        f" -c statement_timeout={_ms(limits.statement_timeout_s)}"
        f" -c lock_timeout={_ms(limits.row_lock_timeout_s)}"
        f" -c idle_in_transaction_session_timeout={_ms(limits.idle_in_transaction_timeout_s)}"
    )


def _ms(limit_s: float) -> int:
    return max(1, round(limit_s * 1000))  # to Postgres 0 is no limit


def _first_line(error: BaseException) -> str:
    return str(getattr(error, "orig", error)).strip().split("\n", 1)[0]
