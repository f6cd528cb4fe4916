"""The ground of the race: one Postgres and one Valkey, and for each guard a database of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psycopg2
import redis
import sqlalchemy as sa

from db.migrate import migrate
from service.embedded import EmbeddedServers
from tests.chaos.guards import SCHEMA_OF_GUARD
from tests.harness import driver_url

COUPONS_PER_USER = 1_000_000
SAMPLE_EVERY_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Charged:
    """What Postgres holds for some appointments, each of which should be charged once."""

    appointments: int
    overcharged: int
    uncharged: int
    most_charges: int
    coupons_too_many: int


class Ground:
    """Both servers, running, with a migrated database to copy. Blocking."""

    def __init__(self, database_url: str, redis_url: str) -> None:
        self._template_url = database_url
        self.redis_url = redis_url

    def new_track(self, guard: str, *, appointments: int) -> Track:
        """A database for this guard with so many open appointments, each between two people of its own; no locks."""
        name = f"race_{guard.replace('-', '_')}"
        template = sa.make_url(self._template_url).database
        _run(self._template_url, f'CREATE DATABASE {name} TEMPLATE "{template}"')
        track = Track(_beside(self._template_url, name), self.redis_url)
        _run(track.database_url, *SCHEMA_OF_GUARD[guard])
        _run(track.database_url, *SEED, values={"appointments": appointments, "count": COUPONS_PER_USER})
        with closing(redis.Redis.from_url(self.redis_url)) as client:
            client.flushall()
        return track


@dataclass(frozen=True, slots=True)
class Track:
    """Where one guard is raced: appointments 1..n, number k between the users 2k - 1 (who invited) and 2k."""

    database_url: str
    redis_url: str

    def participants(self, appointment_id: int) -> tuple[int, int]:
        """Inviter and invitee."""
        return 2 * appointment_id - 1, 2 * appointment_id

    def charged(self, appointment_ids: Sequence[int]) -> Charged:
        """What is charged for these appointments."""
        with closing(psycopg2.connect(_plain(self.database_url))) as connection, connection.cursor() as cursor:
            cursor.execute(COUNT, {"ids": list(appointment_ids)})
            overcharged, uncharged, most_charges, coupons_too_many = cursor.fetchone() or (0, 0, 0, 0)
        return Charged(
            appointments=len(appointment_ids),
            overcharged=overcharged,
            uncharged=uncharged,
            most_charges=most_charges,
            coupons_too_many=int(coupons_too_many),
        )


class Sessions:
    """Looks at a database's sessions from a thread of its own, for as long as it is open: the most that were there."""

    def __init__(self, database_url: str) -> None:
        self.most = 0
        self.most_waiting_for_a_row = 0
        self.looks = 0
        self._connection = psycopg2.connect(_plain(database_url))
        self._connection.autocommit = True
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sessions")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._connection.close()

    def _watch(self) -> None:
        with self._connection.cursor() as cursor:
            while not self._over.wait(SAMPLE_EVERY_S):
                cursor.execute(SESSIONS)
                there, waiting = cursor.fetchone() or (0, 0)
                self.most = max(self.most, there)
                self.most_waiting_for_a_row = max(self.most_waiting_for_a_row, waiting)
                self.looks += 1


@contextmanager
def race_ground(folder: Path) -> Iterator[Ground]:
    """Embedded servers in `folder`; gone at the end, whatever happens. Raises EmbeddedError."""
    with EmbeddedServers.start(folder / "servers") as servers:
        addresses = servers.addresses
        assert addresses.database_url is not None
        assert addresses.redis_url is not None
        migrate(addresses.database_url)
        yield Ground(addresses.database_url, addresses.redis_url)


SEED = (
    """
    INSERT INTO coupon_grant (user_id, coupon_id, count, reference)
        SELECT id, 1, %(count)s, 'race-' || id FROM generate_series(1, 2 * %(appointments)s) id
    """,
    """
    INSERT INTO user_coupon (user_id, coupon_id, count)
        SELECT id, 1, %(count)s FROM generate_series(1, 2 * %(appointments)s) id
    """,
    """
    INSERT INTO appointment_info (id, user_id, invitee_user_id) OVERRIDING SYSTEM VALUE
        SELECT id, 2 * id - 1, 2 * id FROM generate_series(1, %(appointments)s) id
    """,
    "ANALYZE",
)

COUNT = """
SELECT count(*) FILTER (WHERE charges > 1), count(*) FILTER (WHERE charges = 0),
       coalesce(max(charges), 0), coalesce(sum(coupons - one_charge), 0)
FROM (
    SELECT count(charge.id) AS charges, coalesce(sum(charge.count), 0) AS coupons,
           coalesce(min(charge.count), 0) AS one_charge
    FROM unnest(%(ids)s) asked (id) LEFT JOIN user_consume charge ON charge.appointment_id = asked.id
    GROUP BY asked.id
) each
"""

SESSIONS = """
SELECT count(*), count(*) FILTER (WHERE wait_event_type = 'Lock')
FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


def _run(url: str, *statements: str, values: Mapping[str, Any] | None = None) -> None:
    with closing(psycopg2.connect(_plain(url))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement, values)


def _beside(url: str, name: str) -> str:
    return sa.make_url(url).set(database=name).render_as_string(hide_password=False)


def _plain(url: str) -> str:
    return driver_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
