"""What an entry reads and writes, one statement at a time. Which of these run, and in which order, is the guard."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from db.decisions import AppointmentNotOpen, IllegalRequest, InsufficientCoupons
from db.records import ChargeRecord
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
from service.entering import EntryRequest

Appointment = sa.Row[Any]

_THIS_APPOINTMENT = appointment_info.c.id == sa.bindparam("appointment_id")
_OF_PAYER = sa.and_(user_coupon.c.user_id == sa.bindparam("payer_id"), user_coupon.c.coupon_id == CHAMPAGNE)

_READ_APPOINTMENT = sa.select(appointment_info).where(_THIS_APPOINTMENT)
_LOCK_APPOINTMENT = _READ_APPOINTMENT.with_for_update()
_FIND_ENTRY = sa.select(
    sa.exists().where(
        appointment_action.c.appointment_id == sa.bindparam("appointment_id"),
        appointment_action.c.type == ActionType.ENTER,
    )
)
_FIND_CHARGE = (
    sa.select(user_consume)
    .where(user_consume.c.appointment_id == sa.bindparam("appointment_id"))
    .order_by(user_consume.c.id)
    .limit(1)
)
_PRICE = sa.select(coupon_price.c["count"]).where(coupon_price.c.other_user_id == sa.bindparam("other_user_id"))
_BALANCE = sa.select(user_coupon.c["count"]).where(_OF_PAYER)
_TAKE_COUPONS = (
    sa.update(user_coupon)
    .where(_OF_PAYER, user_coupon.c["count"] >= sa.bindparam("taken"))
    .values(count=user_coupon.c["count"] - sa.bindparam("taken"))
)
_INSERT_CHARGE = sa.insert(user_consume).returning(user_consume)
_MARK_CONSUMED = sa.update(appointment_info).where(_THIS_APPOINTMENT).values(is_consume=True)
_INSERT_ENTRY = sa.insert(appointment_action).returning(appointment_action.c.created_at)


def read_appointment(connection: sa.Connection, request: EntryRequest) -> Appointment:
    """The appointment, unlocked. Raises IllegalRequest, AppointmentNotOpen."""
    return _permitted(connection.execute(_READ_APPOINTMENT, _of(request)).one_or_none(), request)


def lock_appointment(connection: sa.Connection, request: EntryRequest) -> Appointment:
    """The appointment, its row locked until the transaction's end. Raises as read_appointment."""
    return _permitted(connection.execute(_LOCK_APPOINTMENT, _of(request)).one_or_none(), request)


def has_entry(connection: sa.Connection, request: EntryRequest) -> bool:
    """Whether anybody has entered the appointment, as far as is committed."""
    return bool(connection.execute(_FIND_ENTRY, _of(request)).scalar_one())


def earlier_charge(connection: sa.Connection, request: EntryRequest) -> ChargeRecord:
    """The first charge of an appointment that was charged."""
    return _record(connection.execute(_FIND_CHARGE, _of(request)).one())


def charge(
    connection: sa.Connection, appointment: Appointment, request: EntryRequest, *, default_price: int
) -> ChargeRecord:
    """Takes the coupons of whoever enters, and writes the charge down. Raises InsufficientCoupons."""
    inviter_enters = request.user_id == appointment.user_id
    other_user_id = appointment.invitee_user_id if inviter_enters else appointment.user_id
    price = connection.execute(_PRICE, {"other_user_id": other_user_id}).scalar_one_or_none()
    count = default_price if price is None else price
    payer = {"payer_id": request.user_id}
    if connection.execute(_TAKE_COUPONS, {**payer, "taken": count}).rowcount == 0:
        available = connection.execute(_BALANCE, payer).scalar_one_or_none()
        raise InsufficientCoupons(required=count, available=available or 0, coupon_id=CHAMPAGNE)
    written = connection.execute(
        _INSERT_CHARGE,
        {
            "appointment_id": appointment.id,
            "user_id": request.user_id,
            "other_user_id": other_user_id,
            "coupon_id": CHAMPAGNE,
            "prop_id": CHAMPAGNE,
            "count": count,
        },
    ).one()
    connection.execute(_MARK_CONSUMED, _of(request))
    return _record(written)


def log_entry(connection: sa.Connection, request: EntryRequest) -> datetime:
    """Writes the ENTER row; when."""
    values = {"appointment_id": request.appointment_id, "user_id": request.user_id, "type": ActionType.ENTER}
    entered_at: datetime = connection.execute(_INSERT_ENTRY, values).scalar_one()
    return entered_at


def _of(request: EntryRequest) -> dict[str, int]:
    return {"appointment_id": request.appointment_id}


def _permitted(appointment: Appointment | None, request: EntryRequest) -> Appointment:
    if appointment is None or request.user_id not in (appointment.user_id, appointment.invitee_user_id):
        raise IllegalRequest("no such appointment of yours")
    if appointment.status != AppointmentStatus.OPEN:
        raise AppointmentNotOpen(AppointmentStatus(appointment.status))
    return appointment


def _record(row: sa.Row[Any]) -> ChargeRecord:
    return ChargeRecord(
        id=row.id,
        payer_id=row.user_id,
        coupon_id=row.coupon_id,
        prop_id=row.prop_id,
        count=row._mapping["count"],
        charged_at=row.created_at,
    )
