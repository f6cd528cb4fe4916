"""The tables behind the orders: seeds their casts at one go, and reads at one go what became of them. Blocking."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import closing

import psycopg2
from psycopg2.extras import execute_values

from tests.harness import driver_url

from .judging import Charge, EntryRow, Tables
from .scenes import Cast

_FIRST_ID = """
select 1 + greatest((select max(id) from appointment_info), (select max(user_id) from coupon_grant), 1000000)
"""


class Ledger:
    """A migrated database, to which casts are added behind everything that is there."""

    def __init__(self, database_url: str) -> None:
        url = driver_url(database_url).set(drivername="postgresql")
        self.port = url.port or 5432
        self._connection = psycopg2.connect(url.render_as_string(hide_password=False))
        self._connection.autocommit = True
        self._cursor = self._connection.cursor()

    def run(self, statements: Sequence[str]) -> None:
        """Each by itself."""
        for statement in statements:
            self._cursor.execute(statement)

    def first_id(self) -> int:
        """From here on neither an appointment nor a user has a number; drawn, since others may share the locks."""
        self._cursor.execute(_FIRST_ID)
        return int(self._cursor.fetchall()[0][0]) + random.randrange(10**12)

    def deadlocks(self) -> int:
        """How many Postgres has had to end in this database, as told by the sessions that are over."""
        with closing(psycopg2.connect(self._connection.dsn, password=self._connection.info.password)) as other:
            cursor = other.cursor()
            cursor.execute("select deadlocks from pg_stat_database where datname = current_database()")
            return int(cursor.fetchall()[0][0])

    def seed(self, casts: Sequence[Cast]) -> None:
        """Appointments and coupons, with their grants."""
        appointments = [appointment for cast in casts for appointment in cast.appointments]
        purses = [purse for cast in casts for purse in cast.purses.items()]
        execute_values(
            self._cursor,
            "insert into appointment_info (id, user_id, invitee_user_id) overriding system value values %s",
            appointments,
            page_size=1000,
        )
        execute_values(
            self._cursor,
            "insert into coupon_grant (user_id, coupon_id, count, reference) values %s",
            purses,
            template="(%s, 1, %s, gen_random_uuid()::text)",
            page_size=1000,
        )
        execute_values(
            self._cursor,
            "insert into user_coupon (user_id, coupon_id, count) values %s",
            purses,
            template="(%s, 1, %s)",
            page_size=1000,
        )

    def read(self, casts: Sequence[Cast]) -> list[Tables]:
        """What there is of each cast."""
        read = [Tables() for _ in casts]
        of_appointment = {id_: mine for cast, mine in zip(casts, read, strict=True) for id_ in cast.appointment_ids}
        of_user = {user_id: mine for cast, mine in zip(casts, read, strict=True) for user_id in cast.purses}
        ids = (list(of_appointment),)
        for row in self._rows("id, appointment_id, user_id, count, lock_fence", "user_consume", "appointment_id", ids):
            of_appointment[row[1]].charges.append(Charge(*row))
        for row in self._rows("appointment_id, user_id, created_at", "appointment_action", "appointment_id", ids):
            of_appointment[row[0]].entries.append(EntryRow(*row))
        for id_, is_consume, fence in self._rows("id, is_consume, lock_fence", "appointment_info", "id", ids):
            of_appointment[id_].marks[id_] = (is_consume, fence)
        for user_id, count in self._rows("user_id, count", "user_coupon", "user_id", (list(of_user),)):
            of_user[user_id].balances[user_id] = count
        return read

    def close(self) -> None:
        """Ends its connection."""
        self._connection.close()

    def _rows(self, columns: str, table: str, key: str, ids: tuple[list[int]]) -> list[tuple]:  # type: ignore[type-arg]
        self._cursor.execute(f"select {columns} from {table} where {key} = any(%s)", ids)
        return self._cursor.fetchall()
