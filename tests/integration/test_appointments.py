"""An appointment is made, shown with its charge and entries, and opened and closed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from db.appointments import (
    Appointment,
    EntryRecord,
    appointment_with_entries,
    create_appointment,
    find_appointment,
    set_status,
)
from db.database import Database
from db.errors import DatabaseError
from db.records import ChargeRecord
from db.tables import ActionType, AppointmentStatus, appointment_action, appointment_info, user_consume
from tests.harness import wait_for_lock_waiters

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_a_new_appointment_is_open_and_uncharged(database: Database) -> None:
    made = create_appointment(database, user_id=7, invitee_user_id=8, prepare_id=9)

    assert made == Appointment(
        id=made.id,
        user_id=7,
        invitee_user_id=8,
        prepare_id=9,
        status=AppointmentStatus.OPEN,
        is_consume=False,
        charge=None,
        entries=[],
    )
    assert find_appointment(database, made.id, entry_limit=10) == made


def test_two_calls_make_two_appointments(database: Database) -> None:
    first = create_appointment(database, user_id=7, invitee_user_id=8)
    second = create_appointment(database, user_id=7, invitee_user_id=8)

    assert first.id != second.id
    assert first.prepare_id is None


def test_nobody_has_an_appointment_with_themselves(database: Database) -> None:
    with pytest.raises(DatabaseError, match="two_people"):
        create_appointment(database, user_id=7, invitee_user_id=7)


def test_an_appointment_that_is_not_there_is_none(database: Database) -> None:
    assert find_appointment(database, 1, entry_limit=10) is None
    assert set_status(database, 1, AppointmentStatus.ENDED, entry_limit=10) is None


def test_a_charged_appointment_shows_its_charge(database: Database) -> None:
    appointment_id = create_appointment(database, user_id=7, invitee_user_id=8).id
    charge = database.transaction(lambda connection: _charge_by_hand(connection, appointment_id))

    found = find_appointment(database, appointment_id, entry_limit=10)

    assert found is not None
    assert found.is_consume
    assert found.charge == charge
    assert charge.charged_at.tzinfo is not None


def test_only_entries_of_the_appointment_are_shown_oldest_first(database: Database) -> None:
    appointment_id = create_appointment(database, user_id=7, invitee_user_id=8).id
    _enter(database, appointment_id, user_id=8, entered_at=NOON + timedelta(seconds=1))
    _enter(database, appointment_id, user_id=7, entered_at=NOON)
    _enter(database, appointment_id + 1, user_id=7, entered_at=NOON)
    _act(database, appointment_id, action_type=2)

    found = find_appointment(database, appointment_id, entry_limit=10)

    assert found is not None
    assert found.entries == [EntryRecord(7, NOON), EntryRecord(8, NOON + timedelta(seconds=1))]


def test_of_too_many_entries_the_newest_are_shown(database: Database) -> None:
    appointment_id = create_appointment(database, user_id=7, invitee_user_id=8).id
    for second in range(5):
        _enter(database, appointment_id, user_id=7, entered_at=NOON + timedelta(seconds=second))

    found = find_appointment(database, appointment_id, entry_limit=2)

    assert found is not None
    assert [entry.entered_at.second for entry in found.entries] == [3, 4]


def test_with_an_entry_limit_of_zero_the_appointment_is_shown_without_entries(database: Database) -> None:
    appointment_id = create_appointment(database, user_id=7, invitee_user_id=8).id
    _enter(database, appointment_id, user_id=7, entered_at=NOON)

    found = find_appointment(database, appointment_id, entry_limit=0)

    assert found is not None
    assert found.entries == []


@pytest.mark.parametrize("status", list(AppointmentStatus))
def test_a_status_that_was_set_is_answered_and_kept(database: Database, status: AppointmentStatus) -> None:
    appointment_id = create_appointment(database, user_id=7, invitee_user_id=8).id

    answered = set_status(database, appointment_id, status, entry_limit=10)

    assert answered is not None
    assert answered.status is status
    assert find_appointment(database, appointment_id, entry_limit=10) == answered


def test_setting_a_status_waits_for_a_charge_under_way_and_shows_it(database: Database) -> None:
    appointment_id = create_appointment(database, user_id=7, invitee_user_id=8).id
    with database.engine.connect() as charging, ThreadPoolExecutor(1) as other:
        charge = _charge_by_hand(charging, appointment_id)
        ending = other.submit(set_status, database, appointment_id, AppointmentStatus.ENDED, entry_limit=10)
        wait_for_lock_waiters(database)
        charging.commit()
        answered = ending.result(timeout=10)

    assert answered is not None
    assert (answered.status, answered.is_consume, answered.charge) == (AppointmentStatus.ENDED, True, charge)


def _charge_by_hand(connection: sa.Connection, appointment_id: int) -> ChargeRecord:
    consumed = sa.update(appointment_info).values(is_consume=True, lock_fence=5)
    connection.execute(consumed.where(appointment_info.c.id == appointment_id))
    charge = sa.insert(user_consume).values(
        appointment_id=appointment_id, user_id=7, other_user_id=8, coupon_id=1, prop_id=1, count=3, lock_fence=5
    )
    row = connection.execute(charge.returning(user_consume.c.id, user_consume.c.created_at)).one()
    return ChargeRecord(row.id, payer_id=7, coupon_id=1, prop_id=1, count=3, charged_at=row.created_at)


def _enter(database: Database, appointment_id: int, *, user_id: int, entered_at: datetime) -> None:
    entry = sa.insert(appointment_action).values(
        appointment_id=appointment_id, user_id=user_id, type=1, created_at=entered_at
    )
    database.transaction(lambda connection: connection.execute(entry))


def _act(database: Database, appointment_id: int, *, action_type: int) -> None:
    action = sa.insert(appointment_action).values(appointment_id=appointment_id, user_id=7, type=action_type)
    database.transaction(lambda connection: connection.execute(action))


def test_for_whoever_takes_no_part_there_is_none_and_no_entry_is_looked_at(database: Database) -> None:
    made = create_appointment(database, user_id=7, invitee_user_id=8)
    enter = sa.insert(appointment_action).values(appointment_id=made.id, user_id=7, type=ActionType.ENTER)
    database.transaction(lambda connection: [connection.execute(enter) for _ in range(300)])

    def plan_for(user_id: int) -> str:
        statement = appointment_with_entries(made.id, 1000, user_id).compile(
            dialect=postgresql.dialect(),  # type: ignore[no-untyped-call]
            compile_kwargs={"literal_binds": True},
        )
        told = database.read(lambda connection: connection.execute(sa.text(f"EXPLAIN (ANALYZE) {statement}")).all())
        return "\n".join(row[0] for row in told)

    for user_id, sees in ((7, True), (8, True), (9, False)):
        found = find_appointment(database, made.id, entry_limit=1000, of_user=user_id)
        assert (found is not None and len(found.entries) == 300) is sees
        scans = [line for line in plan_for(user_id).split("\n") if " on appointment_action" in line]
        assert scans
        assert all("never executed" in line for line in scans) is not sees
