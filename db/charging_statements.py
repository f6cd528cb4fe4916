"""What the charging transaction says to Postgres, in the order in which it is said.

Written with SQLAlchemy Core against db/tables.py, so that a renamed column is found before it is missed; planned once
a connection (db/prepared.py). Every parameter is an array: one statement serves a whole batch.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import BigInteger, Boolean, DateTime, SmallInteger
from sqlalchemy.dialects.postgresql import ARRAY, insert

from db.prepared import Prepared
from db.tables import (
    CHAMPAGNE,
    ActionType,
    AppointmentStatus,
    appointment_action,
    appointment_info,
    coupon_price,
    user_consume,
    user_coupon,
)

_CHAMPAGNE: sa.ColumnElement[int] = sa.literal_column(str(CHAMPAGNE))  # in the statement's text, not a parameter
_OPEN: sa.ColumnElement[int] = sa.literal_column(str(int(AppointmentStatus.OPEN)))


def _array(name: str) -> sa.ColumnElement[Any]:
    return sa.cast(sa.bindparam(name), ARRAY(BigInteger))


def _rows_of(alias: str, **columns: str) -> Any:
    """A table in the statement, one column for each array parameter: unnest(:a, :b)."""
    return (
        sa.func.unnest(*[_array(parameter) for parameter in columns.values()])
        .table_valued(*columns)
        .render_derived(name=alias)
    )


def _locking(*, skip_locked: bool) -> sa.Executable:
    """Locks the appointments that are asked for, ascending, and then the coupons of those who may have to pay.

    A row for each appointment: (0, its columns, the id that a charge of it would have, the id that the batch's first
    entry would have, the transaction's time), and one for each payer's coupons: (1, user id, count, …).
    The payers are an array that is made before the first of their rows is locked: so those come after all appointments.
    """
    row, asked = appointment_info.c, _rows_of("asked", appointment_id="appointment_ids", user_id="user_ids")
    inviter_price, invitee_price = coupon_price.alias("inviter_price"), coupon_price.alias("invitee_price")
    appointment = (
        sa.select(
            row.id,
            row.user_id,
            row.invitee_user_id,
            row.status,
            row.is_consume,
            row.lock_fence,
            inviter_price.c["count"].label("price_of_inviter"),
            invitee_price.c["count"].label("price_of_invitee"),
        )
        .outerjoin(inviter_price, inviter_price.c.other_user_id == row.user_id)
        .outerjoin(invitee_price, invitee_price.c.other_user_id == row.invitee_user_id)
        .where(row.id == sa.any_(_array("appointment_ids")))
        .order_by(row.id)
        .with_for_update(of=appointment_info, skip_locked=skip_locked)
        .cte("appointment")
    )
    is_due = sa.and_(sa.not_(appointment.c.is_consume), appointment.c.status == _OPEN)
    payers = (
        sa.select(asked.c.user_id)
        .join(appointment, appointment.c.id == asked.c.appointment_id)
        .where(is_due, asked.c.user_id.in_([appointment.c.user_id, appointment.c.invitee_user_id]))
    )
    coupons = (
        sa.select(user_coupon.c.user_id, user_coupon.c["count"])
        .where(
            user_coupon.c.coupon_id == _CHAMPAGNE,
            user_coupon.c.user_id == sa.any_(sa.func.array(payers.scalar_subquery())),
        )
        .order_by(user_coupon.c.user_id)
        .with_for_update()
        .cte("coupons")
    )
    new_charge_id = sa.case((is_due, _next_id(user_consume)), else_=sa.null())
    kinds: list[Any] = [BigInteger, SmallInteger, Boolean, *[BigInteger] * 5, DateTime(timezone=True)]
    nothing: list[sa.ColumnElement[Any]] = [sa.cast(sa.null(), kind) for kind in kinds]
    return sa.union_all(
        sa.select(sa.literal_column("0"), *appointment.c, new_charge_id, *_entry_id_and_time()),
        sa.select(sa.literal_column("1"), *coupons.c, *nothing),
    )


def _next_id(table: sa.Table) -> sa.ColumnElement[int]:
    return sa.func.nextval(sa.literal_column(f"'{table.name}_id_seq'"), type_=BigInteger)


def _entry_id_and_time() -> tuple[sa.ColumnElement[Any], sa.ColumnElement[Any]]:
    """The same for all rows: a subquery is run once."""
    return sa.select(_next_id(appointment_action)).scalar_subquery(), sa.func.now()


LOCK = Prepared("lock_rows", _locking(skip_locked=False))
LOCK_FREE = Prepared("lock_free_rows", _locking(skip_locked=True))
FIND_APPOINTMENTS = Prepared(
    "find_appointments",
    sa.select(appointment_info.c.id).where(appointment_info.c.id == sa.any_(_array("appointment_ids"))),
)
FIND_PARTICIPANTS = Prepared(
    "find_participants",
    sa.select(appointment_info.c.id, appointment_info.c.user_id, appointment_info.c.invitee_user_id).where(
        appointment_info.c.id == sa.any_(_array("appointment_ids"))
    ),
)

_CHARGE_COLUMNS = (
    user_consume.c.id,
    user_consume.c.user_id,
    user_consume.c.coupon_id,
    user_consume.c.prop_id,
    user_consume.c["count"],
    user_consume.c.created_at,
)
FIND_CHARGES = Prepared(
    "find_charges",
    sa.select(user_consume.c.appointment_id, *_CHARGE_COLUMNS).where(
        user_consume.c.appointment_id == sa.any_(_array("appointment_ids"))
    ),
)


def _finding_charged() -> sa.Select[Any]:
    """Appointments with their charges, as of one moment, without a lock: (columns, charge columns, entry id, time)."""
    row = appointment_info.c
    return (
        sa.select(
            row.id,
            row.user_id,
            row.invitee_user_id,
            row.status,
            row.is_consume,
            *_CHARGE_COLUMNS,
            *_entry_id_and_time(),
        )
        .outerjoin(user_consume, user_consume.c.appointment_id == row.id)
        .where(row.id == sa.any_(_array("appointment_ids")))
    )


FIND_CHARGED = Prepared("find_charged", _finding_charged())


def _write_all() -> sa.Insert:
    """Everything a batch writes, in one statement: coupons, charges, flags, ENTER rows.

    Ids were drawn before, so it has nothing to tell, and COMMIT can travel with it. Of the entries only the first has
    one: by it the batch is found again when the connection is lost meanwhile.
    """
    charge = sa.select(
        _rows_of(
            "charge_row",
            charge_id="charge_ids",
            appointment_id="appointment_ids",
            payer_id="payer_ids",
            other_user_id="other_user_ids",
            price="counts",
            fence="fences",
        )
    ).cte("charge")
    spent = _rows_of("spent", payer_id="spending_ids", spent_count="spent_counts")
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
            ["id", "appointment_id", "user_id", "other_user_id", "coupon_id", "prop_id", "count", "lock_fence"],
            sa.select(
                charge.c.charge_id,
                charge.c.appointment_id,
                charge.c.payer_id,
                charge.c.other_user_id,
                _CHAMPAGNE,
                _CHAMPAGNE,
                charge.c.price,
                charge.c.fence,
            ),
        )
        .cte("written")
    )
    return _entries().add_cte(spend.cte("spend"), mark.cte("mark"), written)


def _entries() -> sa.Insert:
    """The ENTER rows. The first of a batch has its id from the statement before, the others draw theirs here."""
    entrant = _rows_of("entrant", entry_id="entry_ids", appointment_id="entered_ids", user_id="entrant_ids")
    return sa.insert(appointment_action).from_select(
        ["id", "appointment_id", "user_id", "type"],
        sa.select(
            sa.func.coalesce(entrant.c.entry_id, _next_id(appointment_action)),
            entrant.c.appointment_id,
            entrant.c.user_id,
            sa.literal_column(str(int(ActionType.ENTER))),
        ),
    )


def _trying_entry() -> sa.Insert:
    """Gives a row back where nobody has, or is just writing, an entry of this id: for that one's end it waits."""
    tried = _rows_of("tried", entry_id="entry_ids")
    zero: sa.ColumnElement[int] = sa.literal_column("0")
    return (
        insert(appointment_action)
        .from_select(["id", "appointment_id", "user_id", "type"], sa.select(tried.c.entry_id, zero, zero, zero))
        .on_conflict_do_nothing()
        .returning(appointment_action.c.id)
    )


WRITE = Prepared("write_charges_and_entries", _write_all())
WRITE_ENTRIES = Prepared("write_entries", _entries())
FIND_ENTRY = Prepared(
    "find_entry",
    sa.select(appointment_action.c.created_at).where(appointment_action.c.id == sa.any_(_array("entry_ids"))),
)
TRY_ENTRY = Prepared("try_entry", _trying_entry())

STATEMENTS = (
    LOCK,
    LOCK_FREE,
    FIND_APPOINTMENTS,
    FIND_PARTICIPANTS,
    FIND_CHARGES,
    FIND_CHARGED,
    WRITE,
    WRITE_ENTRIES,
    FIND_ENTRY,
    TRY_ENTRY,
)
