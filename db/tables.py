"""The schema as SQLAlchemy Core tables. Names follow the origin's; invariants stand in constraints where they can.

No foreign key leads from `user_coupon` or `user_consume` to `coupon_info` or `prop_info`: every charge would take a
share lock on the one champagne row. None leads to `appointment_info` either: the charge has locked and checked that
very row.
"""

from __future__ import annotations

from enum import IntEnum

import sqlalchemy as sa
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    LargeBinary,
    SmallInteger,
    Text,
)

metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    }
)

CHAMPAGNE = 1


class AppointmentStatus(IntEnum):
    """`appointment_info.status`."""

    OPEN = 1
    ENDED = 2
    CANCELLED = 3


class ActionType(IntEnum):
    """`appointment_action.type`."""

    ENTER = 1


def _now() -> Column[object]:
    return Column("created_at", DateTime(timezone=True), nullable=False, server_default=sa.func.now())


appointment_info = sa.Table(
    "appointment_info",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("user_id", BigInteger, nullable=False),
    Column("invitee_user_id", BigInteger, nullable=False),
    Column("prepare_id", BigInteger),
    Column("status", SmallInteger, nullable=False, server_default=sa.text("1")),
    Column("is_consume", Boolean, nullable=False, server_default=sa.false()),
    Column("lock_fence", BigInteger),
    CheckConstraint("status in (1, 2, 3)", name="status"),
    CheckConstraint("user_id <> invitee_user_id", name="two_people"),
    postgresql_with={"fillfactor": 70},  # room for the charge's update beside the row it replaces
)

appointment_action = sa.Table(
    "appointment_action",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("appointment_id", BigInteger, nullable=False),
    Column("user_id", BigInteger, nullable=False),
    Column("type", SmallInteger, nullable=False),
    _now(),
    Index(None, "appointment_id"),
)

coupon_info = sa.Table(
    "coupon_info",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
)

prop_info = sa.Table(
    "prop_info",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
)

user_coupon = sa.Table(
    "user_coupon",
    metadata,
    Column("user_id", BigInteger, primary_key=True, autoincrement=False),
    Column("coupon_id", BigInteger, primary_key=True, autoincrement=False),
    Column("count", BigInteger, nullable=False, server_default=sa.text("0")),
    CheckConstraint("count >= 0", name="count"),
    postgresql_with={"fillfactor": 70},
)

coupon_grant = sa.Table(
    "coupon_grant",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("user_id", BigInteger, nullable=False),
    Column("coupon_id", BigInteger, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("reference", Text, nullable=False, unique=True),
    _now(),
    CheckConstraint("count > 0", name="count"),
    Index(None, "user_id"),
)

coupon_price = sa.Table(
    "coupon_price",
    metadata,
    Column("other_user_id", BigInteger, primary_key=True, autoincrement=False),
    Column("count", BigInteger, nullable=False),
    CheckConstraint("count >= 0", name="count"),
)

user_consume = sa.Table(
    "user_consume",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("appointment_id", BigInteger, nullable=False, unique=True),
    Column("user_id", BigInteger, nullable=False),
    Column("other_user_id", BigInteger, nullable=False),
    Column("coupon_id", BigInteger, nullable=False),
    Column("prop_id", BigInteger, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("lock_fence", BigInteger),
    _now(),
    CheckConstraint("count > 0", name="count"),
    Index(None, "user_id"),
)

lock_audit = sa.Table(
    "lock_audit",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("lock_name", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("holder", Text),
    Column("fencing_token", BigInteger),
)

# Digests of sessions that are signed out and of codes that were used: never what they are digests of.
spent_token = sa.Table(
    "spent_token",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("spent_at", DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    Column("expires_at", DateTime(timezone=True), nullable=False),
)
