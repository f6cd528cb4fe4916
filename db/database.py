"""One engine, and one way to run a transaction on it."""

from __future__ import annotations

import contextlib
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

from db.answers import first_line, translated, translated_at_commit
from db.connection import wait_for_answer
from db.errors import Conflict, DatabaseDown, TimedOut

Result = TypeVar("Result")

_this_thread = threading.local()


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
        sa.event.listen(self.engine, "handle_error", _forget_what_is_down)
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


def _forget_what_is_down(context: sa.ExceptionContext) -> None:
    """Has the pool close a connection, and those that are as old, after an answer that makes them useless."""
    error = context.original_exception
    if isinstance(error, psycopg2.Error) and isinstance(translated(error), DatabaseDown):
        context.is_disconnect = True


def driver_url(url: str) -> sa.URL:
    """The URL with the driver written out: since SQLAlchemy 2.1 a plain postgresql:// means psycopg 3."""
    parsed = sa.make_url(url)
    if parsed.drivername in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+psycopg2")
    if parsed.drivername != "postgresql+psycopg2":
        raise ValueError(f"must start with postgresql://, not {parsed.drivername}://")
    return parsed


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
