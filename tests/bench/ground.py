"""The ground that all candidates share: one Postgres, one Valkey, users with plenty of coupons, fresh appointments."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import redis

from db.migrate import migrate
from service.embedded import EmbeddedServers
from tests.harness import driver_url

from .cpu import parent_of

CHAMPAGNE = 1
COUPONS_PER_USER = 1_000_000_000
DURABLE = ("fsync", "synchronous_commit", "full_page_writes")


class GroundError(Exception):
    """The bench cannot be run on these servers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Appointments:
    """Open appointments with consecutive ids; `payer_ids[k]` is the inviter of `first_id + k`, who enters and pays."""

    first_id: int
    payer_ids: list[int]
    invitee_ids: list[int]

    def by_inviters(self) -> Iterator[tuple[int, int]]:
        """Each appointment with its inviter, in the order of the ids."""
        return enumerate(self.payer_ids, self.first_id)

    @property
    def last_id(self) -> int:
        """The highest id."""
        return self.first_id + len(self.payer_ids) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What Postgres holds for a range of appointments."""

    charges: int
    entries: int
    marked: int


class Ground:
    """Both servers, running, migrated, and with users. Blocking."""

    def __init__(self, *, database_url: str, redis_url: str, folder: Path, users: int) -> None:
        self.database_url = database_url
        self.redis_url = redis_url
        self.folder = folder
        self.users = users
        self._next_id = 1
        self._seeds = random.Random(42)

    def prepare(self) -> None:
        """Schema, users, coupons and prices. Raises GroundError when a commit here would not be durable."""
        migrate(self.database_url)
        settings = self.postgres_settings()
        off = [name for name in DURABLE if settings[name] != "on"]
        if off:
            raise GroundError(f"{', '.join(off)} must be on, or the figures mean nothing")
        self.run(SEED_USERS, {"users": self.users, "count": COUPONS_PER_USER})

    def new_appointments(self, count: int) -> Appointments:
        """Seeds open appointments: inviters drawn evenly from `users` payers, invitees from as many others."""
        return self._seeded(count, first_payer_id=1, payers=self.users)

    def new_appointments_of(self, payer_id: int, count: int) -> Appointments:
        """The same, but one payer has invited to them all."""
        return self._seeded(count, first_payer_id=payer_id, payers=1)

    def fill(self, count: int) -> int:
        """Seeds so many open appointments, too many to be listed; the first id."""
        first_id, self._next_id = self._next_id, self._next_id + count
        values = {"first": first_id, "last": first_id + count - 1, "first_payer": 1, "payers": self.users}
        self.run(SEED_APPOINTMENTS, values | {"users": self.users, "seed": self._seeds.uniform(-1, 1)})
        return first_id

    def inviters_of(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Each of these appointments with its inviter, in this order."""
        query = "select id, user_id from appointment_info where id = any(%(ids)s)"
        inviters = {row[0]: row[1] for row in self.rows(query, {"ids": list(ids)})}
        return [(each, inviters[each]) for each in ids]

    def _seeded(self, count: int, *, first_payer_id: int, payers: int) -> Appointments:
        first_id, self._next_id = self._next_id, self._next_id + count
        bounds = {"first": first_id, "last": first_id + count - 1, "users": self.users}
        drawn = {"first_payer": first_payer_id, "payers": payers, "seed": self._seeds.uniform(-1, 1)}
        self.run(SEED_APPOINTMENTS, bounds | drawn)
        rows = self.rows(
            "select user_id, invitee_user_id from appointment_info where id between %(first)s and %(last)s order by id",
            bounds,
        )
        return Appointments(first_id=first_id, payer_ids=[row[0] for row in rows], invitee_ids=[row[1] for row in rows])

    def settle(self) -> None:
        """Gives every candidate the same start: statistics fresh, dead rows gone, nothing left to write back."""
        with closing(psycopg2.connect(self.plain_url)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("vacuum (analyze)")
                cursor.execute("checkpoint")

    def count(self, appointments: Appointments) -> Counted:
        """What is charged, entered, and marked as consumed."""
        return self.count_between(appointments.first_id, appointments.last_id)

    def count_between(self, first_id: int, last_id: int) -> Counted:
        """The same for a range of ids, both included."""
        (row,) = self.rows(COUNT, {"first": first_id, "last": last_id})
        return Counted(charges=row[0], entries=row[1], marked=row[2])

    def count_all(self) -> Counted:
        """The same for everything."""
        return self.count_between(1, self._next_id - 1)

    def postgres_settings(self) -> dict[str, str]:
        """Version, and every setting that bears on the figures or is not the default."""
        rows = self.rows(
            "select name, current_setting(name) from pg_settings"
            " where name = any(%(names)s) or source not in ('default', 'client', 'override') order by name",
            {"names": ["server_version", "shared_buffers", "wal_sync_method", "commit_delay", *DURABLE]},
        )
        return dict(rows)

    def valkey_version(self) -> str:
        """As the server tells it."""
        info = self._valkey_info()
        return str(info.get("valkey_version") or info["redis_version"])

    def process_roots(self) -> dict[str, list[int]]:
        """The pids whose trees are the two servers; without Postgres where its postmaster cannot be found."""
        with closing(psycopg2.connect(self.plain_url)) as connection:
            postmaster_pid = parent_of(connection.info.backend_pid)
        roots = {"valkey": [int(self._valkey_info()["process_id"])]}
        return roots if postmaster_pid is None else roots | {"postgres": [postmaster_pid]}

    def environment(self) -> dict[str, str]:
        """For a program of this repository: these servers, a data folder of its own, no setting of the caller's."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CHARGEONCE_")}
        return inherited | {
            "CHARGEONCE_DATABASE_URL": self.database_url,
            "CHARGEONCE_REDIS_URL": self.redis_url,
            "CHARGEONCE_DATA_DIR": str(self.folder / "data"),
        }

    def libpq_environment(self) -> dict[str, str]:
        """The address for libpq programs, so that no password stands on a command line."""
        names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
        parts = psycopg2.extensions.parse_dsn(self.plain_url)
        return {names[key]: str(value) for key, value in parts.items() if key in names}

    @property
    def plain_url(self) -> str:
        """The database's address, as psycopg2 takes it."""
        return driver_url(self.database_url).set(drivername="postgresql").render_as_string(hide_password=False)

    def _valkey_info(self) -> dict[str, Any]:
        with closing(redis.Redis.from_url(self.redis_url)) as client:
            return client.info("server")

    def run(self, script: str, values: dict[str, Any]) -> None:
        """Statements in one transaction."""
        with closing(psycopg2.connect(self.plain_url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(script, values)

    def rows(self, query: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        """What a query finds."""
        with closing(psycopg2.connect(self.plain_url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(query, values)
            return cursor.fetchall()


# Invitees have coupons too: in a crowd, whoever is first pays.
SEED_USERS = """
insert into coupon_grant (user_id, coupon_id, count, reference)
    select id, 1, %(count)s, 'bench-' || id from generate_series(1, 2 * %(users)s) id;
insert into user_coupon (user_id, coupon_id, count)
    select id, 1, %(count)s from generate_series(1, 2 * %(users)s) id;
insert into coupon_price (other_user_id, count)
    select id, 1 + id %% 3 from generate_series(%(users)s + 1, 2 * %(users)s) id
"""

# Drawn one by one, so that concurrent charges now and then have the same payer.
SEED_APPOINTMENTS = """
select setseed(%(seed)s);
insert into appointment_info (id, user_id, invitee_user_id) overriding system value
    select id, %(first_payer)s + floor(random() * %(payers)s), 1 + %(users)s + floor(random() * %(users)s)
    from generate_series(%(first)s, %(last)s) id;
select setval('appointment_info_id_seq', %(last)s)
"""

COUNT = """
select (select count(*) from user_consume where appointment_id between %(first)s and %(last)s),
       (select count(*) from appointment_action where appointment_id between %(first)s and %(last)s),
       (select count(*) from appointment_info where id between %(first)s and %(last)s and is_consume)
"""


@contextmanager
def shared_ground(folder: Path, *, users: int) -> Iterator[Ground]:
    """Embedded servers in `folder`, prepared; stopped at the end, whatever happens."""
    with shared_servers(folder) as (database_url, redis_url):
        ground = Ground(database_url=database_url, redis_url=redis_url, folder=folder, users=users)
        ground.prepare()
        yield ground


@contextmanager
def shared_servers(folder: Path) -> Iterator[tuple[str, str]]:
    """The addresses of embedded servers in `folder`; stopped at the end, whatever happens."""
    servers = EmbeddedServers.start(folder / "servers")
    try:
        database_url, redis_url = servers.addresses.database_url, servers.addresses.redis_url
        assert database_url
        assert redis_url
        yield database_url, redis_url
    finally:
        servers.stop()
