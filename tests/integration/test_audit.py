"""The audit names exactly the invariant that was broken, and cries wolf for none."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest
import sqlalchemy as sa

from db.audit import AuditReport, AuditTotals, Example, audit
from db.coupons import grant_coupons
from db.database import Database, DatabaseLimits
from db.errors import TimedOut

PAYER, OTHER, STRANGER = 70, 80, 90
GRANTED, PRICE, FENCE = 10, 3, 1_000_005


def test_the_books_of_an_empty_database_are_right_and_visibly_empty(database: Database) -> None:
    report = audit(database)

    assert report.holds
    assert report.totals == AuditTotals(appointments=0, charges=0, entries=0, users=0)


def test_right_books_hold_and_say_how_much_was_checked(database: Database) -> None:
    _charged_appointment(database)
    _open_appointment(database)

    report = audit(database)

    assert [invariant for invariant in report.invariants if not invariant.holds] == []
    assert report.holds
    assert report.totals == AuditTotals(appointments=2, charges=1, entries=1, users=1)


def test_a_charge_made_without_the_lock_bears_no_fence_and_is_right(database: Database) -> None:
    _charged_appointment(database)
    _execute(database, "UPDATE user_consume SET lock_fence = NULL")
    _execute(database, "UPDATE appointment_info SET lock_fence = NULL")

    assert audit(database).holds


def test_a_second_charge_of_an_appointment_is_found_although_the_constraint_is_gone(database: Database) -> None:
    appointment_id = _charged_appointment(database)
    _execute(database, "ALTER TABLE user_consume DROP CONSTRAINT user_consume_appointment_id_key")
    _charge(database, appointment_id)

    example = _the_only_broken(database, "one_charge_per_appointment")

    assert (example["appointment_id"], example["charges"]) == (appointment_id, 2)


def test_a_flag_without_a_charge_is_found(database: Database) -> None:
    appointment_id = _open_appointment(database)
    _execute(database, "UPDATE appointment_info SET is_consume = true")

    assert _the_only_broken(database, "consumed_is_charged")["appointment_id"] == appointment_id


def test_a_charge_without_its_flag_is_found(database: Database) -> None:
    appointment_id = _charged_appointment(database)
    _execute(database, "UPDATE appointment_info SET is_consume = false")

    assert _the_only_broken(database, "charged_is_consumed")["appointment_id"] == appointment_id


def test_a_charge_of_no_appointment_is_found(database: Database) -> None:
    appointment_id = _charged_appointment(database)
    _execute(database, "DELETE FROM appointment_info")

    assert _the_only_broken(database, "charge_has_appointment")["appointment_id"] == appointment_id


@pytest.mark.parametrize(
    "change",
    [
        f"other_user_id = {STRANGER}",
        f"other_user_id = {PAYER}",
        f"user_id = {STRANGER}",
    ],
)
def test_a_charge_between_others_than_the_participants_is_found(database: Database, change: str) -> None:
    _charged_appointment(database)
    _execute(database, f"UPDATE user_consume SET {change}")
    _execute(database, "UPDATE coupon_grant SET user_id = (SELECT user_id FROM user_consume)")
    _execute(database, "UPDATE user_coupon SET user_id = (SELECT user_id FROM user_consume)")

    _the_only_broken(database, "charge_between_participants")


def test_the_invitee_may_have_paid(database: Database) -> None:
    _charged_appointment(database)
    _execute(database, f"UPDATE appointment_info SET user_id = {OTHER}, invitee_user_id = {PAYER}")

    assert audit(database).holds


@pytest.mark.parametrize("change", ["DELETE FROM appointment_action", "UPDATE appointment_action SET type = 2"])
def test_a_charge_without_an_entry_is_found(database: Database, change: str) -> None:
    appointment_id = _charged_appointment(database)
    _execute(database, change)

    assert _the_only_broken(database, "charge_has_entry")["appointment_id"] == appointment_id


@pytest.mark.parametrize("fence", ["4", "NULL"])
def test_a_charge_under_another_fence_than_its_appointment_is_found(database: Database, fence: str) -> None:
    _charged_appointment(database)
    _execute(database, f"UPDATE user_consume SET lock_fence = {fence}")

    assert _the_only_broken(database, "fence_of_charge")["appointment_fence"] == FENCE


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE user_coupon SET count = count + 1",
        "UPDATE user_coupon SET count = 0",
        "DELETE FROM user_coupon",
        "DELETE FROM coupon_grant",
        "UPDATE coupon_grant SET count = count - 1",
        "UPDATE user_consume SET count = count + 1",
        "UPDATE user_consume SET coupon_id = 2",
    ],
)
def test_a_balance_that_does_not_add_up_is_found(database: Database, change: str) -> None:
    _charged_appointment(database)
    _execute(database, change)

    assert _the_only_broken(database, "balances_add_up")["user_id"] == PAYER


def test_charges_of_somebody_who_was_never_granted_anything_are_found(database: Database) -> None:
    _charged_appointment(database)
    _execute(database, "DELETE FROM coupon_grant")
    _execute(database, "DELETE FROM user_coupon")

    example = _the_only_broken(database, "balances_add_up")

    assert example == {"user_id": PAYER, "coupon_id": 1, "granted": 0, "consumed": PRICE, "balance": None}


def test_a_grant_that_never_reached_the_balance_is_found(database: Database) -> None:
    _execute(
        database, f"INSERT INTO coupon_grant (user_id, coupon_id, count, reference) VALUES ({STRANGER}, 1, 5, 'lost')"
    )

    example = _the_only_broken(database, "balances_add_up")

    assert example == {"user_id": STRANGER, "coupon_id": 1, "granted": 5, "consumed": 0, "balance": None}


def test_a_balance_of_zero_that_nobody_was_granted_is_right(database: Database) -> None:
    _execute(database, f"INSERT INTO user_coupon (user_id, coupon_id, count) VALUES ({STRANGER}, 1, 0)")

    assert audit(database).holds


def test_sums_beyond_a_bigint_are_added_up(database: Database) -> None:
    for reference in ("one", "two"):
        _execute(
            database,
            "INSERT INTO coupon_grant (user_id, coupon_id, count, reference)"
            f" VALUES ({STRANGER}, 1, {2**63 - 1}, '{reference}')",
        )

    assert _the_only_broken(database, "balances_add_up")["granted"] == 2 * (2**63 - 1)


def test_a_balance_below_zero_is_found_although_the_constraint_is_gone(database: Database) -> None:
    _charged_appointment(database)
    _execute(database, "ALTER TABLE user_coupon DROP CONSTRAINT user_coupon_count_check")
    _execute(database, "UPDATE user_coupon SET count = -1")
    _execute(database, f"UPDATE coupon_grant SET count = {PRICE - 1}")

    example = _the_only_broken(database, "no_negative_balance")

    assert example == {"user_id": PAYER, "coupon_id": 1, "balance": -1}


def test_all_that_is_broken_is_counted_and_ten_examples_are_shown_as_json(database: Database) -> None:
    for _ in range(12):
        _open_appointment(database)
    _execute(database, "UPDATE appointment_info SET is_consume = true")

    report = audit(database)
    shown = json.loads(json.dumps(dataclasses.asdict(report)))["invariants"]

    broken = {rule["name"]: rule for rule in shown if rule["broken_count"]}
    assert list(broken) == ["consumed_is_charged"]
    assert broken["consumed_is_charged"]["broken_count"] == 12
    assert len(broken["consumed_is_charged"]["examples"]) == 10
    assert all(rule["sentence"].endswith(".") for rule in shown)


def test_everything_is_read_as_of_one_moment(database: Database, database_url: str) -> None:
    _charged_appointment(database)
    meanwhile = Database(database_url)
    charged_meanwhile: list[int] = []

    @sa.event.listens_for(database.engine, "after_cursor_execute")
    def charge_once(*execution: object) -> None:
        if "GROUP BY appointment_id" in str(execution[2]) and not charged_meanwhile:
            charged_meanwhile.append(_charged_appointment(meanwhile))

    report = audit(database)
    meanwhile.close()

    assert charged_meanwhile
    assert report.holds
    assert report.totals == AuditTotals(appointments=1, charges=1, entries=1, users=1)


def test_the_audit_writes_nothing_and_leaves_the_connection_as_it_was(database_url: str) -> None:
    database = Database(database_url, limits=DatabaseLimits(pool_size=1))
    settings = sa.text("SELECT current_setting('statement_timeout'), current_setting('transaction_read_only')")
    before = database.transaction(lambda connection: tuple(connection.execute(settings).one()))

    audit(database)

    assert database.transaction(lambda connection: tuple(connection.execute(settings).one())) == before
    database.close()


def test_the_audit_has_a_time_limit_of_its_own(database: Database) -> None:
    limit_s = database.limits.row_lock_timeout_s / 20
    with database.engine.connect() as sitting_on_the_table:
        sitting_on_the_table.execute(sa.text("LOCK TABLE user_consume IN ACCESS EXCLUSIVE MODE"))
        began = time.monotonic()
        with pytest.raises(TimedOut, match="statement timeout"):
            audit(database, statement_timeout_s=limit_s)

    assert time.monotonic() - began >= limit_s


def _the_only_broken(database: Database, name: str) -> Example:
    """The first example of this invariant, which is the only one that is broken."""
    report: AuditReport = audit(database)
    broken = [invariant for invariant in report.invariants if not invariant.holds]
    assert [invariant.name for invariant in broken] == [name]
    assert not report.holds
    assert broken[0].broken_count == len(broken[0].examples)
    return broken[0].examples[0]


def _charged_appointment(database: Database) -> int:
    """An appointment that was charged as the service does it, to a payer who was granted enough."""
    appointment_id = _open_appointment(database)
    grant_coupons(database, user_id=PAYER, coupon_id=1, count=GRANTED, reference=f"for {appointment_id}")
    _charge(database, appointment_id)
    _execute(
        database,
        f"INSERT INTO appointment_action (appointment_id, user_id, type) VALUES ({appointment_id}, {PAYER}, 1)",
    )
    _execute(
        database, f"UPDATE appointment_info SET is_consume = true, lock_fence = {FENCE} WHERE id = {appointment_id}"
    )
    return appointment_id


def _charge(database: Database, appointment_id: int) -> None:
    _execute(
        database,
        "INSERT INTO user_consume"
        " (appointment_id, user_id, other_user_id, coupon_id, prop_id, count, lock_fence)"
        f" VALUES ({appointment_id}, {PAYER}, {OTHER}, 1, 1, {PRICE}, {FENCE})",
    )
    _execute(database, f"UPDATE user_coupon SET count = count - {PRICE} WHERE user_id = {PAYER} AND coupon_id = 1")


def _open_appointment(database: Database) -> int:
    made = sa.text("INSERT INTO appointment_info (user_id, invitee_user_id) VALUES (:payer, :other) RETURNING id")
    people = {"payer": PAYER, "other": OTHER}
    appointment_id: int = database.transaction(lambda connection: connection.execute(made, people).scalar_one())
    return appointment_id


def _execute(database: Database, statement: str) -> None:
    database.transaction(lambda connection: connection.execute(sa.text(statement)))
