"""The first schema, and the champagne

Revision: 0001, after nothing
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_appointments()
    _create_coupons()
    _create_charges()
    _create_lock_audit()
    _add_champagne()


def _create_appointments() -> None:
    op.create_table(
        "appointment_info",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("invitee_user_id", sa.BigInteger, nullable=False),
        sa.Column("prepare_id", sa.BigInteger),
        sa.Column("status", sa.SmallInteger, nullable=False, server_default=sa.text("1")),
        sa.Column("is_consume", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("lock_fence", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="appointment_info_pkey"),
        sa.CheckConstraint("status in (1, 2, 3)", name=op.f("appointment_info_status_check")),
        sa.CheckConstraint("user_id <> invitee_user_id", name=op.f("appointment_info_two_people_check")),
        postgresql_with={"fillfactor": 70},
    )
    op.create_table(
        "appointment_action",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("appointment_id", sa.BigInteger, nullable=False),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("type", sa.SmallInteger, nullable=False),
        _created_at(),
        sa.PrimaryKeyConstraint("id", name="appointment_action_pkey"),
    )
    op.create_index("appointment_action_appointment_id_idx", "appointment_action", ["appointment_id"])


def _create_coupons() -> None:
    for table in ("coupon_info", "prop_info"):
        op.create_table(
            table,
            sa.Column("id", sa.BigInteger, autoincrement=False, nullable=False),
            sa.Column("name", sa.Text, nullable=False),
            sa.PrimaryKeyConstraint("id", name=f"{table}_pkey"),
        )
    op.create_table(
        "user_coupon",
        sa.Column("user_id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("coupon_id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.PrimaryKeyConstraint("user_id", "coupon_id", name="user_coupon_pkey"),
        sa.CheckConstraint("count >= 0", name=op.f("user_coupon_count_check")),
        postgresql_with={"fillfactor": 70},
    )
    op.create_table(
        "coupon_grant",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("coupon_id", sa.BigInteger, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("reference", sa.Text, nullable=False),
        _created_at(),
        sa.PrimaryKeyConstraint("id", name="coupon_grant_pkey"),
        sa.UniqueConstraint("reference", name="coupon_grant_reference_key"),
        sa.CheckConstraint("count > 0", name=op.f("coupon_grant_count_check")),
    )
    op.create_index("coupon_grant_user_id_idx", "coupon_grant", ["user_id"])


def _create_charges() -> None:
    op.create_table(
        "coupon_price",
        sa.Column("other_user_id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("other_user_id", name="coupon_price_pkey"),
        sa.CheckConstraint("count >= 0", name=op.f("coupon_price_count_check")),
    )
    op.create_table(
        "user_consume",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("appointment_id", sa.BigInteger, nullable=False),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("other_user_id", sa.BigInteger, nullable=False),
        sa.Column("coupon_id", sa.BigInteger, nullable=False),
        sa.Column("prop_id", sa.BigInteger, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("lock_fence", sa.BigInteger),
        _created_at(),
        sa.PrimaryKeyConstraint("id", name="user_consume_pkey"),
        sa.UniqueConstraint("appointment_id", name="user_consume_appointment_id_key"),
        sa.CheckConstraint("count > 0", name=op.f("user_consume_count_check")),
    )
    op.create_index("user_consume_user_id_idx", "user_consume", ["user_id"])


def _create_lock_audit() -> None:
    op.create_table(
        "lock_audit",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("lock_name", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("holder", sa.Text),
        sa.Column("fencing_token", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="lock_audit_pkey"),
    )


def _add_champagne() -> None:
    for table in ("coupon_info", "prop_info"):
        rows = sa.table(table, sa.column("id", sa.BigInteger), sa.column("name", sa.Text))
        op.bulk_insert(rows, [{"id": 1, "name": "champagne"}])


def _created_at() -> sa.Column[object]:
    return sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())
