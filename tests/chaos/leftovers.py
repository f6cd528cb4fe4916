"""What is still there once everything is drained: keys, waiters, sessions, threads, processes; and the final tables."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import redis

from tests.chaos.history import History

LOOK_S = 0.05
# An instance has its loop's thread, those of its reads and of its health, and those that connect.
MOST_THREADS = 24

TABLES = {
    "user_consume": "id, appointment_id, user_id, other_user_id, count, lock_fence, created_at",
    "appointment_action": "id, appointment_id, user_id, created_at",
    "appointment_info": "id, user_id, invitee_user_id, status, is_consume, lock_fence",
    "user_coupon": "user_id, count",
    "coupon_grant": "user_id, count, reference",
    "chaos_register": "name, fence, value, op",
    "chaos_register_log": "n, name, fence, op, accepted",
}
# Of the many appointments only those that something has happened to.
TOUCHED = (
    " WHERE is_consume OR lock_fence IS NOT NULL OR id IN (SELECT appointment_id FROM appointment_action)"
    " OR id IN (SELECT appointment_id FROM user_consume)"
)

SNAPSHOT = """
SELECT (SELECT coalesce(sum(count), 0)::bigint FROM coupon_grant),
       (SELECT coalesce(sum(count), 0)::bigint FROM user_consume),
       (SELECT coalesce(sum(count), 0)::bigint FROM user_coupon),
       (SELECT coalesce(min(count), 0)::bigint FROM user_coupon),
       (SELECT deadlocks FROM pg_stat_database WHERE datname = current_database())
"""
SESSIONS = """
SELECT count(*), count(*) FILTER (WHERE state LIKE 'idle in transaction%') FROM pg_stat_activity
WHERE application_name = 'chargeonce' AND datname = current_database()
"""


def write_snapshot(history: History, database_url: str) -> None:
    """Balances as of one moment. Raises psycopg2.Error."""
    (row,) = _rows(database_url, SNAPSHOT)
    history.write("snapshot", **dict(zip(("granted", "spent", "left", "lowest", "deadlocks"), row, strict=True)))


def write_tables(history: History, database_url: str) -> None:
    """The final tables. Raises psycopg2.Error."""
    with closing(_session(database_url)) as session, session.cursor() as cursor:
        for table, columns in TABLES.items():
            cursor.execute(f"SELECT {columns} FROM {table}{TOUCHED if table == 'appointment_info' else ''} ORDER BY 1")
            rows = [plain(row) for row in cursor.fetchall()]
            history.write_rows(table, columns.split(", "), rows)


def write_left(
    history: History,
    database_url: str,
    redis_url: str | None,
    *,
    processes: Sequence[int],
    threads: int,
    settle_s: float,
) -> None:
    """Looks until nothing is left that could still go, or for settle_s. Raises psycopg2.Error, redis.RedisError."""
    give_up_at_s = time.monotonic() + settle_s
    while True:
        keys, going, waiters = ([], 0, 0) if redis_url is None else _keys(redis_url)
        ((sessions, idle),) = _rows(database_url, SESSIONS)
        if not (going or waiters or sessions) or time.monotonic() > give_up_at_s:
            break
        time.sleep(LOOK_S)
    history.write(
        "left",
        keys=keys[:100],
        waiters=waiters,
        idle_transactions=idle,
        sessions=sessions,
        threads=threads,
        processes=list(processes),
    )


def threads_too_many(pids: Sequence[int]) -> int:
    """How many threads these processes have over what they may have; 0 where there is no /proc."""
    return sum(max(0, _thread_count(pid) - MOST_THREADS) for pid in pids)


def _thread_count(pid: int) -> int:
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return 0


def _keys(redis_url: str) -> tuple[list[str], int, int]:
    """Keys that stay for ever and locks that are held, how many of these will still go, and how many stand in line."""
    left, going, waiters = [], 0, 0
    with closing(redis.Redis.from_url(redis_url, socket_timeout=5, decode_responses=True)) as client:
        for key in client.scan_iter(count=1000):
            stays = client.pttl(key) == -1
            if stays or key.startswith("lock:{"):
                left.append(key)
                going += not stays
            elif key.startswith("lock-queue:"):
                waiters += client.zcard(key)
    return left, going, waiters


def _rows(database_url: str, query: str) -> list[tuple[Any, ...]]:
    with closing(_session(database_url)) as session, session.cursor() as cursor:
        cursor.execute(query)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


def _session(database_url: str) -> Any:
    return psycopg2.connect(
        database_url, application_name="harness", connect_timeout=5, options="-c statement_timeout=30s"
    )


def plain(row: Iterable[object]) -> tuple[object, ...]:
    """The values of a row as JSON has them; times as text."""
    return tuple(value if isinstance(value, (int, str, bool, type(None))) else str(value) for value in row)
