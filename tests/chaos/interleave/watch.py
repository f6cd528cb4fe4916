"""What the servers say about who waits for whom: the proof that a handler cannot go on, in place of a guess by time."""

from __future__ import annotations

import time
from collections.abc import Collection

import psycopg2
import redis

from locks.keys import keys_of
from tests.harness import driver_url

PATIENCE_S = 30.0  # an upper bound; everything waited for here takes milliseconds

_SESSIONS = "select pid from pg_stat_activity where client_port = any(%s)"
_BLOCKED = "select pid from unnest(%s::int[]) as session (pid) where pg_blocking_pids(pid) <> '{}'"


class StepperError(Exception):
    """The order could not be stepped through; that says nothing about the product."""


class Watch:
    """Connections of its own to both servers. Blocking."""

    def __init__(self, database_url: str, redis_url: str) -> None:
        url = driver_url(database_url).set(drivername="postgresql")
        self._database = psycopg2.connect(url.render_as_string(hide_password=False))
        self._database.autocommit = True
        self._cursor = self._database.cursor()
        self._redis = redis.Redis.from_url(redis_url)

    def sessions(self, ports: Collection[int]) -> list[int]:
        """The sessions with these client ports, by their pids."""
        self._cursor.execute(_SESSIONS, (list(ports),))
        return [row[0] for row in self._cursor.fetchall()]

    def blocked(self, pids: Collection[int]) -> set[int]:
        """Of these sessions those that wait for a lock that another session holds."""
        self._cursor.execute(_BLOCKED, (list(pids),))
        return {row[0] for row in self._cursor.fetchall()}

    def queue_of(self, lock_name: str) -> tuple[str | None, int]:
        """The lease id that holds the lock, and how many processes stand in line for it."""
        keys = keys_of(lock_name)
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.get(keys.lock)
        pipeline.zcard(keys.queue)
        holder, count = pipeline.execute()
        return None if holder is None else holder.decode(), count

    def end_lease(self, lock_name: str) -> None:
        """The lease runs out now: its key is gone, as when it expires."""
        self._redis.delete(keys_of(lock_name).lock)

    def until_gone(self, ports: Collection[int]) -> None:
        """Returns once Postgres has ended these sessions, whose client is dead. Raises StepperError."""
        give_up_at_s = time.monotonic() + PATIENCE_S
        while True:
            if not self.sessions(ports):
                return
            if time.monotonic() > give_up_at_s:
                raise StepperError("Postgres has not noticed that a client is dead")
            time.sleep(0.0005)

    def close(self) -> None:
        """Ends both connections."""
        self._database.close()
        self._redis.close()
