"""Demo data: users with coupons, and appointments between them; seeding again adds only what is missing."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from db.database import Database
from db.tables import CHAMPAGNE

SEED_STATEMENT_TIMEOUT_S = 600.0

_SEED_LOCK = 0x7365_6564  # "seed"; one seeding at a time, so that two do not both add what is missing


@dataclass(frozen=True, slots=True)
class SeedReport:
    """What one seeding added, and how many demo appointments there are now."""

    granted_users: int
    created_appointments: int
    created_prices: int
    demo_appointments: int


def seed(database: Database, *, appointments: int, users: int, coupons: int) -> SeedReport:
    """Sees to it that users 1 to `users` were once granted `coupons` and have `appointments` between them.

    What is there stays as it is. Raises ValueError as check_counts() does.
    """
    check_counts(appointments=appointments, users=users, coupons=coupons)
    grants = {"users": users, "coupons": coupons, "coupon_id": CHAMPAGNE}

    def work(connection: sa.Connection) -> SeedReport:
        _be_the_only_one(connection)
        granted = connection.execute(sa.text(_GRANT), grants).rowcount
        prices = connection.execute(sa.text(_PRICE), {"users": users}).rowcount
        existing = connection.execute(sa.text(_COUNT_APPOINTMENTS)).scalar_one()
        missing = {"first": existing + 1, "last": appointments, "users": users}
        created = connection.execute(sa.text(_MAKE_APPOINTMENTS), missing).rowcount
        return SeedReport(granted, created, prices, demo_appointments=existing + created)

    return database.transaction(work)


def check_counts(*, appointments: int, users: int, coupons: int) -> None:
    """Raises ValueError for numbers with which there can be no such data."""
    if min(appointments, users, coupons) < 0:
        raise ValueError("there cannot be fewer than 0 appointments, users or coupons")
    if appointments and users < 2:
        raise ValueError("an appointment needs 2 users")


def next_open_appointment(database: Database, *, default_coupon_count: int = 1) -> tuple[int, int] | None:
    """The first open, not yet charged appointment whose inviter can pay, and this inviter; None if none."""
    statement = sa.text(_NEXT_OPEN)
    values = {"default_count": default_coupon_count, "coupon_id": CHAMPAGNE}

    def work(connection: sa.Connection) -> tuple[int, int] | None:
        _allow_long_statements(connection)
        row = connection.execute(statement, values).one_or_none()
        return (row.id, row.user_id) if row else None

    return database.read(work)


def _be_the_only_one(connection: sa.Connection) -> None:
    _allow_long_statements(connection)
    milliseconds = str(round(SEED_STATEMENT_TIMEOUT_S * 1000))
    connection.execute(sa.select(sa.func.set_config("lock_timeout", milliseconds, True)))
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SEED_LOCK)))


def _allow_long_statements(connection: sa.Connection) -> None:
    milliseconds = str(round(SEED_STATEMENT_TIMEOUT_S * 1000))
    connection.execute(sa.select(sa.func.set_config("statement_timeout", milliseconds, True)))


# Through coupon_grant, so that the balances add up, and in the order in which charges lock balances.
_GRANT = """
WITH granted AS (
    INSERT INTO coupon_grant (user_id, coupon_id, count, reference)
    SELECT number, :coupon_id, :coupons, 'demo:user:' || number
    FROM generate_series(1, CAST(:users AS bigint)) AS number
    WHERE CAST(:coupons AS bigint) > 0
    ON CONFLICT (reference) DO NOTHING
    RETURNING user_id, coupon_id, count
)
INSERT INTO user_coupon (user_id, coupon_id, count)
SELECT user_id, coupon_id, count FROM granted ORDER BY user_id
ON CONFLICT (user_id, coupon_id) DO UPDATE SET count = user_coupon.count + excluded.count
"""

# Meeting user 2 costs 2, user 3 costs 3, user 4 costs nothing; everybody else costs the default.
_PRICE = """
INSERT INTO coupon_price (other_user_id, count)
SELECT other_user_id, count
FROM (VALUES (2, 2), (3, 3), (4, 0)) AS price (other_user_id, count)
WHERE other_user_id <= :users
ON CONFLICT (other_user_id) DO NOTHING
"""

# The demo's appointments are those with a negative prepare_id: -1, -2, and so on.
_COUNT_APPOINTMENTS = "SELECT coalesce(max(-prepare_id), 0) FROM appointment_info WHERE prepare_id < 0"
_MAKE_APPOINTMENTS = """
INSERT INTO appointment_info (user_id, invitee_user_id, prepare_id)
SELECT inviter + 1, (inviter + distance) % :users + 1, -number
FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS number
CROSS JOIN LATERAL (
    SELECT (number - 1) % :users, 1 + (number - 1) / :users % (:users - 1)
) AS pair (inviter, distance)
ORDER BY number
"""

_NEXT_OPEN = """
SELECT appointment.id, appointment.user_id
FROM appointment_info AS appointment
LEFT JOIN coupon_price AS price ON price.other_user_id = appointment.invitee_user_id
LEFT JOIN user_coupon AS balance ON balance.user_id = appointment.user_id AND balance.coupon_id = :coupon_id
WHERE appointment.status = 1 AND NOT appointment.is_consume
  AND coalesce(balance.count, 0) >= coalesce(price.count, :default_count)
ORDER BY appointment.id
LIMIT 1
"""
