"""Demo data is there once, adds up, and grows by what is missing."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from db.audit import audit
from db.coupons import CouponBalance, coupons_of, grant_coupons
from db.database import Database
from db.demo import SeedReport, next_open_appointment, seed
from tests.harness import wait_for_lock_waiters


def test_seeding_makes_users_who_can_pay_and_appointments_between_them(database: Database) -> None:
    report = seed(database, appointments=20, users=5, coupons=4)

    assert report == SeedReport(granted_users=5, created_appointments=20, created_prices=3, demo_appointments=20)
    assert coupons_of(database, 5) == [CouponBalance(coupon_id=1, count=4)]
    assert all(1 <= user <= 5 and 1 <= invitee <= 5 for user, invitee in _pairs(database))
    assert len(set(_pairs(database))) == 20  # 5 users have 20 ordered pairs: every one is used before one is repeated
    assert audit(database).holds


def test_seeding_again_adds_nothing(database: Database) -> None:
    seed(database, appointments=6, users=4, coupons=4)

    again = seed(database, appointments=6, users=4, coupons=4)

    assert again == SeedReport(granted_users=0, created_appointments=0, created_prices=0, demo_appointments=6)
    assert len(_pairs(database)) == 6
    assert coupons_of(database, 1) == [CouponBalance(coupon_id=1, count=4)]


def test_seeding_more_adds_the_difference_and_seeding_less_takes_nothing_away(database: Database) -> None:
    seed(database, appointments=6, users=3, coupons=4)

    more = seed(database, appointments=10, users=5, coupons=4)
    less = seed(database, appointments=1, users=2, coupons=4)

    assert more == SeedReport(granted_users=2, created_appointments=4, created_prices=1, demo_appointments=10)
    assert less == SeedReport(granted_users=0, created_appointments=0, created_prices=0, demo_appointments=10)
    assert len(_pairs(database)) == 10


def test_seeding_in_two_steps_makes_the_same_as_in_one(database: Database) -> None:
    seed(database, appointments=7, users=5, coupons=4)
    seed(database, appointments=15, users=5, coupons=4)
    in_two_steps = _pairs(database)

    _execute(database, "TRUNCATE appointment_info")
    seed(database, appointments=15, users=5, coupons=4)

    assert _pairs(database) == in_two_steps


def test_a_user_with_a_demo_grant_keeps_what_is_left_of_it(database: Database) -> None:
    seed(database, appointments=2, users=2, coupons=4)
    _execute(database, "UPDATE user_coupon SET count = 1 WHERE user_id = 1")

    seed(database, appointments=2, users=2, coupons=9)

    assert coupons_of(database, 1) == [CouponBalance(coupon_id=1, count=1)]


def test_demo_coupons_are_added_to_what_a_user_has(database: Database) -> None:
    grant_coupons(database, user_id=1, coupon_id=1, count=7, reference="bought")

    seed(database, appointments=0, users=2, coupons=4)

    assert coupons_of(database, 1) == [CouponBalance(coupon_id=1, count=11)]
    assert audit(database).holds


def test_appointments_of_others_do_not_count_as_demo_data(database: Database) -> None:
    _execute(
        database, "INSERT INTO appointment_info (user_id, invitee_user_id, prepare_id) VALUES (7, 8, 5), (7, 8, NULL)"
    )

    assert seed(database, appointments=3, users=2, coupons=1).created_appointments == 3


def test_racing_seeds_add_what_is_missing_once(database: Database) -> None:
    seed(database, appointments=2, users=10, coupons=4)
    with database.engine.connect() as in_the_way, ThreadPoolExecutor(3) as racers:
        in_the_way.execute(sa.text("LOCK TABLE appointment_info IN SHARE ROW EXCLUSIVE MODE"))  # reads, no writes
        racing = [racers.submit(seed, database, appointments=50, users=10, coupons=4) for _ in range(3)]
        wait_for_lock_waiters(database, 3)
        in_the_way.commit()
        reports = [seeding.result(timeout=10) for seeding in racing]

    assert sorted(report.created_appointments for report in reports) == [0, 0, 48]
    assert len(_pairs(database)) == 50


@pytest.mark.parametrize(
    ("appointments", "users", "coupons"), [(1, 1, 1), (1, 0, 1), (-1, 2, 1), (0, -1, 1), (0, 2, -1)]
)
def test_numbers_without_any_such_data_are_refused(
    database: Database, appointments: int, users: int, coupons: int
) -> None:
    with pytest.raises(ValueError, match=r"2 users|fewer than 0"):
        seed(database, appointments=appointments, users=users, coupons=coupons)


def test_seeding_nothing_is_no_error(database: Database) -> None:
    report = seed(database, appointments=0, users=0, coupons=0)

    assert report == SeedReport(granted_users=0, created_appointments=0, created_prices=0, demo_appointments=0)


def test_users_without_coupons_have_no_grant(database: Database) -> None:
    assert seed(database, appointments=1, users=2, coupons=0).granted_users == 0
    assert coupons_of(database, 1) == []


def test_a_hundred_thousand_appointments_are_seeded_in_seconds(database: Database) -> None:
    began = time.monotonic()
    seed(database, appointments=100_000, users=10_000, coupons=20)

    assert time.monotonic() - began < 20


def test_the_next_open_appointment_is_the_first_that_can_be_paid(database: Database) -> None:
    ids = [_appointment(database, user_id, invitee_user_id=9) for user_id in (1, 2, 3, 4, 5)]
    for user_id in (2, 3, 4, 5):
        grant_coupons(database, user_id=user_id, coupon_id=1, count=2, reference=f"for {user_id}")
    _execute(database, f"UPDATE appointment_info SET status = 2 WHERE id = {ids[1]}")
    _execute(database, f"UPDATE appointment_info SET is_consume = true WHERE id = {ids[2]}")

    assert next_open_appointment(database) == (ids[3], 4)


def test_an_inviter_who_cannot_pay_the_price_is_passed_over(database: Database) -> None:
    _execute(database, "INSERT INTO coupon_price (other_user_id, count) VALUES (8, 3), (9, 0)")
    grant_coupons(database, user_id=1, coupon_id=1, count=2, reference="order-1")
    _appointment(database, 1, invitee_user_id=8)
    free = _appointment(database, 2, invitee_user_id=9)

    assert next_open_appointment(database) == (free, 2)


def test_where_no_price_is_set_the_default_is_asked_for(database: Database) -> None:
    grant_coupons(database, user_id=1, coupon_id=1, count=2, reference="order-1")
    appointment_id = _appointment(database, 1, invitee_user_id=8)

    assert next_open_appointment(database, default_coupon_count=2) == (appointment_id, 1)
    assert next_open_appointment(database, default_coupon_count=3) is None


def test_without_appointments_there_is_no_open_one(database: Database) -> None:
    assert next_open_appointment(database) is None


def _appointment(database: Database, user_id: int, *, invitee_user_id: int) -> int:
    made = sa.text("INSERT INTO appointment_info (user_id, invitee_user_id) VALUES (:user, :invitee) RETURNING id")
    people = {"user": user_id, "invitee": invitee_user_id}
    appointment_id: int = database.transaction(lambda connection: connection.execute(made, people).scalar_one())
    return appointment_id


def _pairs(database: Database) -> list[tuple[int, int]]:
    pairs = sa.text("SELECT user_id, invitee_user_id FROM appointment_info ORDER BY id")
    rows = database.transaction(lambda connection: connection.execute(pairs).all())
    return [(row.user_id, row.invitee_user_id) for row in rows]


def _execute(database: Database, statement: str) -> None:
    database.transaction(lambda connection: connection.execute(sa.text(statement)))
