"""Appointments: made, shown with their charge and entries, opened and closed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from db.database import Database
from db.records import ChargeRecord
from db.tables import ActionType, AppointmentStatus, appointment_action, appointment_info, user_consume


@dataclass(frozen=True, slots=True)
class EntryRecord:
    """One entry into an appointment: one ENTER row of appointment_action."""

    user_id: int
    entered_at: datetime


@dataclass(frozen=True, slots=True)
class Appointment:
    """An appointment as it stood at one moment, with its charge, and its entries oldest first."""

    id: int
    user_id: int
    invitee_user_id: int
    prepare_id: int | None
    status: AppointmentStatus
    is_consume: bool
    charge: ChargeRecord | None
    entries: list[EntryRecord]


def create_appointment(
    database: Database, *, user_id: int, invitee_user_id: int, prepare_id: int | None = None
) -> Appointment:
    """Makes an open appointment in which nobody has entered yet. Two calls make two appointments."""
    new = insert(appointment_info).values(user_id=user_id, invitee_user_id=invitee_user_id, prepare_id=prepare_id)
    same = new.on_conflict_do_nothing(index_elements=["id"]).returning(appointment_info.c.id)
    made: list[int] = []

    def work(connection: sa.Connection) -> Appointment:
        row = connection.execute(new.returning(appointment_info)).one()
        made.append(row.id)
        return Appointment(
            id=row.id,
            user_id=row.user_id,
            invitee_user_id=row.invitee_user_id,
            prepare_id=row.prepare_id,
            status=AppointmentStatus(row.status),
            is_consume=row.is_consume,
            charge=None,
            entries=[],
        )

    def standing(connection: sa.Connection) -> Appointment | None:
        """Who wants to write a row of the same id waits for one under way, and cannot where it stands."""
        if connection.execute(same.values(id=made[-1])).one_or_none() is not None:
            return None
        found = _read(connection, made[-1], entry_limit=1)
        # The id alone does not do: after a crash a sequence may give the same id again.
        is_ours = found is not None and (found.user_id, found.invitee_user_id) == (user_id, invitee_user_id)
        return found if is_ours else None

    return database.settled_transaction(work, standing)


def find_appointment(
    database: Database, appointment_id: int, *, entry_limit: int, of_user: int | None = None
) -> Appointment | None:
    """The appointment with its newest `entry_limit` entries, all of one moment; None when there is none.

    `of_user`: only where this user takes part. Whoever does not cannot tell by the time it takes what there is.
    """
    return database.read(lambda connection: _read(connection, appointment_id, entry_limit, of_user))


def set_status(
    database: Database, appointment_id: int, status: AppointmentStatus, *, entry_limit: int
) -> Appointment | None:
    """Opens, ends or cancels the appointment, and returns it as it then is; None when there is none."""
    # The update is the first touch of the row and locks it: a charge under way is over before the read below.
    update = sa.update(appointment_info).where(appointment_info.c.id == appointment_id).values(status=status)
    lock = sa.select(appointment_info.c.id).where(appointment_info.c.id == appointment_id).with_for_update()

    def work(connection: sa.Connection) -> Appointment | None:
        connection.execute(update)
        return _read(connection, appointment_id, entry_limit)

    def standing(connection: sa.Connection) -> Appointment | None:
        connection.execute(lock)  # waits for an update under way
        found = _read(connection, appointment_id, entry_limit)
        return found if found is not None and found.status is status else None

    return database.settled_transaction(work, standing)


def _read(
    connection: sa.Connection, appointment_id: int, entry_limit: int, of_user: int | None = None
) -> Appointment | None:
    rows = connection.execute(appointment_with_entries(appointment_id, entry_limit, of_user)).all()
    return _appointment(rows) if rows else None


def appointment_with_entries(
    appointment_id: int, entry_limit: int, of_user: int | None
) -> sa.Select[*tuple[object, ...]]:
    """One statement, so that flag, charge and entries are of one moment. A row per entry, or one without."""
    action = appointment_action.c
    newest = (
        sa.select(action.id, action.appointment_id, action.user_id, action.created_at)
        .where(action.appointment_id == appointment_id, action.type == ActionType.ENTER)
        .order_by(action.created_at.desc(), action.id.desc())
        .limit(entry_limit)
        .subquery("newest")
    )
    charge, info = user_consume.c, appointment_info.c
    found = (
        sa.select(
            appointment_info,
            charge.id.label("charge_id"),
            charge.user_id.label("payer_id"),
            charge.coupon_id,
            charge.prop_id,
            charge["count"].label("charged_count"),
            charge.created_at.label("charged_at"),
            newest.c.user_id.label("entrant_id"),
            newest.c.created_at.label("entered_at"),
        )
        .outerjoin(user_consume, charge.appointment_id == appointment_info.c.id)
        .outerjoin(newest, newest.c.appointment_id == appointment_info.c.id)
        .where(appointment_info.c.id == appointment_id)
        .order_by(newest.c.created_at, newest.c.id)
    )
    return found if of_user is None else found.where(sa.or_(info.user_id == of_user, info.invitee_user_id == of_user))


def _appointment(rows: Sequence[sa.Row[*tuple[object, ...]]]) -> Appointment:
    first = rows[0]
    return Appointment(
        id=first.id,
        user_id=first.user_id,
        invitee_user_id=first.invitee_user_id,
        prepare_id=first.prepare_id,
        status=AppointmentStatus(first.status),
        is_consume=first.is_consume,
        charge=_charge(first),
        entries=[EntryRecord(row.entrant_id, row.entered_at) for row in rows if row.entrant_id is not None],
    )


def _charge(row: sa.Row[*tuple[object, ...]]) -> ChargeRecord | None:
    if row.charge_id is None:
        return None
    return ChargeRecord(
        id=row.charge_id,
        payer_id=row.payer_id,
        coupon_id=row.coupon_id,
        prop_id=row.prop_id,
        count=row.charged_count,
        charged_at=row.charged_at,
    )
