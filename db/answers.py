"""What an error of the driver means: the server's answer before COMMIT or at it, or that there was none."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg2
from psycopg2.errors import UniqueViolation
from sqlalchemy.exc import DBAPIError

from db.errors import CommitUnknown, Conflict, DatabaseDown, DatabaseError, IdTaken, TimedOut
from db.sequences import sequence_of_key

SERIALIZATION_FAILURE = "40001"
DEADLOCK_DETECTED = "40P01"
LOCK_NOT_AVAILABLE = "55P03"
QUERY_CANCELED = "57014"
DUPLICATE_PREPARED_STATEMENT = "42P05"
INSUFFICIENT_PRIVILEGE = "42501"
OPERATOR_INTERVENTION = "57P"
IDLE_FOR_TOO_LONG = "idle-session timeout"  # 57P05: libpq keeps the code of a session's last words to itself

# Classes of answers that are about the statement and its values. Every other one is about the session or the server
# (read-only, a stale plan, a prepared statement that is gone, a full disk): another connection may hear otherwise.
ABOUT_THE_STATEMENT = ("21", "22", "23", "42", "44", "54", "P0")
# Raised by psycopg2 itself, before anything is sent.
NEVER_SENT = (psycopg2.ProgrammingError, psycopg2.DataError, psycopg2.NotSupportedError)


def translated(error: DBAPIError | psycopg2.Error) -> DatabaseError:
    """Before COMMIT has run, whatever broke has written nothing.

    DatabaseDown means that this connection is of no more use, and that another one may be.
    """
    orig = _of_the_driver(error)
    code = getattr(orig, "pgcode", None)
    told = first_line(error)
    if code in (SERIALIZATION_FAILURE, DEADLOCK_DETECTED):
        return Conflict(told)
    if code in (LOCK_NOT_AVAILABLE, QUERY_CANCELED):
        return TimedOut(told)
    if isinstance(orig, UniqueViolation) and (sequence := sequence_of_key(orig.diag.constraint_name)):
        return IdTaken(f"{sequence} is behind its table, and gave an id that is taken: see chargeonce audit")
    if _is_about_the_statement(orig, code):
        return DatabaseError(told)
    return DatabaseDown(told)


def translated_at_commit(error: DBAPIError | psycopg2.Error) -> DatabaseError:
    """Once COMMIT may have run, only two answers say that nothing is written; all else has to be settled by reading."""
    if getattr(_of_the_driver(error), "pgcode", None) in (SERIALIZATION_FAILURE, DEADLOCK_DETECTED):
        return Conflict(first_line(error))
    return CommitUnknown(first_line(error))


def lost(error: BaseException, notices: Sequence[str] = ()) -> str | None:
    """Why a connection that stood is none any more; None where it stands, or was just idle for longer than may be.

    `notices`: the connection's. The last words of a server to a session that is idle are among them.
    """
    orig = _of_the_driver(error)
    code = getattr(orig, "pgcode", None)
    if isinstance(orig, NEVER_SENT) or not (code is None or code.startswith(OPERATOR_INTERVENTION)):
        return None
    reason = next((notice.strip() for notice in reversed(notices) if notice.startswith("FATAL")), first_line(error))
    return None if IDLE_FOR_TOO_LONG in reason else reason


def is_told_by_server(error: BaseException) -> bool:
    """Whether what the error says are the words of a server or its driver, with names and addresses perhaps."""
    if not isinstance(error, DatabaseError) or isinstance(error, IdTaken):
        return False
    return isinstance(error.__cause__, DBAPIError | psycopg2.Error)


def first_line(error: BaseException) -> str:
    """What the server said, without hints and positions."""
    return str(_of_the_driver(error)).strip().split("\n", 1)[0]


def _of_the_driver(error: BaseException) -> BaseException:
    return error.orig or error if isinstance(error, DBAPIError) else error


def _is_about_the_statement(orig: BaseException, code: str | None) -> bool:
    if code is None:
        return isinstance(orig, NEVER_SENT)
    return code.startswith(ABOUT_THE_STATEMENT) and code != DUPLICATE_PREPARED_STATEMENT
