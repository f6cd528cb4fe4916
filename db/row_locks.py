"""Who waits in Postgres for one appointment's row, and for whom."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from db.database import Database


@dataclass(frozen=True, slots=True)
class BlockedSession:
    """A session that cannot lock the row yet. `blocked_by`: the pids whose end, or next COMMIT, it waits for."""

    pid: int
    application_name: str
    state: str
    waits_for: str
    waited_s: float
    blocked_by: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BlockingSession:
    """A session that others wait for, at first or at second hand. `transaction_s`: since its transaction began."""

    pid: int
    application_name: str
    state: str
    transaction_s: float | None


@dataclass(frozen=True, slots=True)
class RowLocks:
    """Everybody around one row: who waits for it in the order of coming, and whom they wait for."""

    blocked: tuple[BlockedSession, ...]
    blocking: tuple[BlockingSession, ...]


def row_locks(database: Database, appointment_id: int) -> RowLocks:
    """The sessions that wait for the row of this appointment, as they are at this moment.

    The first in line holds the row's tuple lock while it waits for the transaction that has the row; those behind it
    wait for the tuple lock. A row is found by its place, so one that was just moved by an update is found anew.
    """

    def work(connection: sa.Connection) -> RowLocks:
        rows = connection.execute(sa.text(_BLOCKED), {"appointment_id": appointment_id}).all()
        blocked = tuple(BlockedSession(**{**row._mapping, "blocked_by": tuple(row.blocked_by)}) for row in rows)
        waiting = {each.pid for each in blocked}
        others = sorted({pid for each in blocked for pid in each.blocked_by} - waiting)
        found = connection.execute(sa.text(_BLOCKING), {"pids": others}).all() if others else []
        return RowLocks(blocked, tuple(BlockingSession(**row._mapping) for row in found))

    return database.read(work)


# A ctid is (page, tuple), as pg_locks names them. Whoever stands first in line has the tuple lock granted.
_BLOCKED = """
WITH place AS (
    SELECT (ctid::text::point)[0]::int AS page, (ctid::text::point)[1]::smallint AS tuple
    FROM appointment_info WHERE id = :appointment_id
)
SELECT activity.pid,
       activity.application_name,
       coalesce(activity.state, '') AS state,
       coalesce(activity.wait_event, '') AS waits_for,
       extract(epoch FROM clock_timestamp() - coalesce(min(ours.waitstart), activity.query_start))::float8 AS waited_s,
       pg_blocking_pids(activity.pid) AS blocked_by
FROM place
JOIN pg_locks AS row_lock
  ON row_lock.locktype = 'tuple'
 AND row_lock.database = (SELECT oid FROM pg_database WHERE datname = current_database())
 AND row_lock.relation = 'appointment_info'::regclass
 AND row_lock.page = place.page
 AND row_lock.tuple = place.tuple
JOIN pg_stat_activity AS activity ON activity.pid = row_lock.pid
LEFT JOIN pg_locks AS ours ON ours.pid = row_lock.pid AND NOT ours.granted
WHERE activity.wait_event_type = 'Lock'
GROUP BY activity.pid, activity.application_name, activity.state, activity.wait_event, activity.query_start
ORDER BY waited_s DESC, activity.pid
"""

_BLOCKING = """
SELECT pid, application_name, coalesce(state, '') AS state,
       extract(epoch FROM clock_timestamp() - xact_start)::float8 AS transaction_s
FROM pg_stat_activity
WHERE pid = ANY(:pids)
ORDER BY pid
"""
