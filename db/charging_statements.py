"""What the charging transaction says to Postgres, in the order in which it is said.

Written with SQLAlchemy Core against db/tables.py, so that a renamed column is found before it is missed; planned once
a connection (db/prepared.py). Every parameter is an array: one statement serves a whole batch.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import BigInteger
from sqlalchemy.dialects.postgresql import ARRAY

from db.prepared import Prepared
from db.tables import (
    CHAMPAGNE,
    ActionType,
    appointment_action,
    appointment_info,
    coupon_price,
    user_consume,
    user_coupon,
)

_CHAMPAGNE: sa.ColumnElement[int] = sa.literal_column(str(CHAMPAGNE))  # in the statement's text, not a parameter


def _array(name: str) -> sa.ColumnElement[Any]:
    return sa.cast(sa.bindparam(name), ARRAY(BigInteger))


def _rows_of(alias: str, **columns: str) -> Any:
    """A table in the statement, one column for each array parameter: unnest(:a, :b)."""
    return (
        sa.func.unnest(*[_array(parameter) for parameter in columns.values()])
        .table_valued(*columns)
        .render_derived(name=alias)
    )


def _select_appointments() -> sa.Select[Any]:
    row = appointment_info.c
    inviter_price, invitee_price = coupon_price.alias("inviter_price"), coupon_price.alias("invitee_price")
    return (
        sa.select(
            row.id,
            row.user_id,
            row.invitee_user_id,
            row.status,
            row.is_consume,
            row.lock_fence,
            inviter_price.c["count"],
            invitee_price.c["count"],
        )
        .outerjoin(inviter_price, inviter_price.c.other_user_id == row.user_id)
        .outerjoin(invitee_price, invitee_price.c.other_user_id == row.invitee_user_id)
        .where(row.id == sa.any_(_array("ids")))
        .order_by(row.id)
    )


LOCK_APPOINTMENTS = Prepared("lock_appointments", _select_appointments().with_for_update(of=appointment_info))
LOCK_FREE_APPOINTMENTS = Prepared(
    "lock_free_appointments", _select_appointments().with_for_update(of=appointment_info, skip_locked=True)
)
FIND_APPOINTMENTS = Prepared(
    "find_appointments", sa.select(appointment_info.c.id).where(appointment_info.c.id == sa.any_(_array("ids")))
)

LOCK_COUPONS = Prepared(
    "lock_coupons",
    sa.select(user_coupon.c.user_id, user_coupon.c["count"])
    .where(user_coupon.c.coupon_id == _CHAMPAGNE, user_coupon.c.user_id == sa.any_(_array("payer_ids")))
    .order_by(user_coupon.c.user_id)
    .with_for_update(),
)

_CHARGE_COLUMNS = (
    user_consume.c.appointment_id,
    user_consume.c.id,
    user_consume.c.user_id,
    user_consume.c.coupon_id,
    user_consume.c.prop_id,
    user_consume.c["count"],
    user_consume.c.created_at,
)
FIND_CHARGES = Prepared(
    "find_charges", sa.select(*_CHARGE_COLUMNS).where(user_consume.c.appointment_id == sa.any_(_array("ids")))
)


def _write_all() -> sa.Select[Any]:
    """Everything a batch writes, in one statement: coupons, charges, flags, ENTER rows.

    A row for each charge, or one row without: (an entry's id, time of entry, the columns of the charge).
    """
    charge = sa.select(
        _rows_of(
            "charge_row",
            appointment_id="appointment_ids",
            payer_id="payer_ids",
            other_user_id="other_user_ids",
            price="counts",
            fence="fences",
        )
    ).cte("charge")
    spent = _rows_of("spent", payer_id="spending_ids", spent_count="spent_counts")
    entrant = _rows_of("entrant", appointment_id="entered_ids", user_id="entrant_ids")
    spend = (
        sa.update(user_coupon)
        .values(count=user_coupon.c["count"] - spent.c.spent_count)
        .where(user_coupon.c.coupon_id == _CHAMPAGNE, user_coupon.c.user_id == spent.c.payer_id)
    )
    mark = (
        sa.update(appointment_info)
        .values(is_consume=sa.true(), lock_fence=charge.c.fence)
        .where(appointment_info.c.id == charge.c.appointment_id)
    )
    written = (
        sa.insert(user_consume)
        .from_select(
            ["appointment_id", "user_id", "other_user_id", "coupon_id", "prop_id", "count", "lock_fence"],
            sa.select(
                charge.c.appointment_id,
                charge.c.payer_id,
                charge.c.other_user_id,
                _CHAMPAGNE,
                _CHAMPAGNE,
                charge.c.price,
                charge.c.fence,
            ),
        )
        .returning(*_CHARGE_COLUMNS)
        .cte("written")
    )
    entered = (
        sa.insert(appointment_action)
        .from_select(
            ["appointment_id", "user_id", "type"],
            sa.select(entrant.c.appointment_id, entrant.c.user_id, sa.literal_column(str(int(ActionType.ENTER)))),
        )
        .returning(appointment_action.c.id, appointment_action.c.created_at)
        .cte("entered")
    )
    last = sa.select(
        sa.func.max(entered.c.id).label("entry_id"), sa.func.max(entered.c.created_at).label("entered_at")
    ).subquery("last_entry")
    return (
        sa.select(last, written)
        .select_from(last.outerjoin(written, sa.true()))
        .add_cte(spend.cte("spend"), mark.cte("mark"))
    )


WRITE = Prepared("write_charges_and_entries", _write_all())

FIND_ENTRY = sa.select(
    sa.exists().where(
        appointment_action.c.id == sa.bindparam("entry_id"),
        appointment_action.c.created_at == sa.bindparam("entered_at"),
    )
)

STATEMENTS = (LOCK_APPOINTMENTS, LOCK_FREE_APPOINTMENTS, FIND_APPOINTMENTS, LOCK_COUPONS, FIND_CHARGES, WRITE)
