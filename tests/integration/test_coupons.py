"""Coupons are granted once a reference, whoever races, and every movement is shown once."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from db.coupons import (
    MAX_BALANCE,
    BalanceTooLarge,
    CouponBalance,
    Grant,
    Movement,
    MovementCursor,
    ReferenceReused,
    UnknownCoupon,
    UnstorableReference,
    coupons_of,
    decode_cursor,
    encode_cursor,
    grant_coupons,
    movements_of,
)
from db.database import Database, DatabaseLimits
from db.tables import coupon_grant, coupon_info, user_consume
from tests.harness import wait_for_lock_waiters

USER = 70
RACERS = 8


@pytest.fixture
def crowded(database_url: str) -> Iterator[Database]:
    """A database with a connection for every racer."""
    database = Database(database_url, limits=DatabaseLimits(pool_size=RACERS + 1, row_lock_timeout_s=10.0))
    yield database
    database.close()


def test_a_grant_is_added_to_the_balance(database: Database) -> None:
    first = _grant(database, count=3, reference="order-1")
    second = _grant(database, count=4, reference="order-2")

    assert first == Grant(first.id, USER, 1, 3, "order-1", first.granted_at, balance=3, repeated=False)
    assert (second.balance, second.repeated) == (7, False)
    assert coupons_of(database, USER) == [CouponBalance(coupon_id=1, count=7)]


def test_a_repeat_answers_the_same_grant_and_writes_nothing(database: Database) -> None:
    first = _grant(database, count=3, reference="order-1")
    _grant(database, count=4, reference="order-2")

    repeat = _grant(database, count=3, reference="order-1")

    assert repeat == Grant(first.id, USER, 1, 3, "order-1", first.granted_at, balance=7, repeated=True)
    assert coupons_of(database, USER) == [CouponBalance(coupon_id=1, count=7)]
    assert _grant_count(database) == 2


@pytest.mark.parametrize("other", [{"user_id": USER + 1}, {"coupon_id": 2}, {"count": 4}])
def test_a_reference_with_another_content_is_refused(database: Database, other: dict[str, int]) -> None:
    _add_coupon(database, 2)
    _grant(database, count=3, reference="order-1")

    with pytest.raises(ReferenceReused):
        grant_coupons(database, **{"user_id": USER, "coupon_id": 1, "count": 3, **other}, reference="order-1")

    assert coupons_of(database, USER) == [CouponBalance(coupon_id=1, count=3)]
    assert coupons_of(database, USER + 1) == []


def test_a_coupon_that_is_not_there_is_refused(database: Database) -> None:
    with pytest.raises(UnknownCoupon):
        grant_coupons(database, user_id=USER, coupon_id=999, count=1, reference="order-1")

    assert _grant_count(database) == 0


def test_a_balance_that_cannot_be_counted_is_refused_and_nothing_is_written(database: Database) -> None:
    _grant(database, count=MAX_BALANCE, reference="order-1")

    with pytest.raises(BalanceTooLarge):
        _grant(database, count=1, reference="order-2")

    assert coupons_of(database, USER) == [CouponBalance(coupon_id=1, count=MAX_BALANCE)]
    assert _grant_count(database) == 1


def test_a_count_that_cannot_be_counted_is_refused(database: Database) -> None:
    with pytest.raises(BalanceTooLarge):
        _grant(database, count=MAX_BALANCE + 1, reference="order-1")


@pytest.mark.parametrize("reference", ["", "nul\0here", "\ud800", "x" * 2001, "é" * 1001])
def test_a_reference_that_cannot_be_stored_is_refused(database: Database, reference: str) -> None:
    with pytest.raises(UnstorableReference):
        _grant(database, count=1, reference=reference)


def test_the_longest_reference_is_stored_as_it_is(database: Database) -> None:
    reference = "".join(chr(0x4E00 + number * 7919 % 20000) for number in range(666))

    assert _grant(database, count=1, reference=reference).reference == reference
    assert _grant(database, count=1, reference=reference).repeated


def test_racing_grants_with_one_reference_grant_once_and_all_answer_it(crowded: Database) -> None:
    grants = _race(lambda racer: _grant(crowded, count=5, reference="order-1"))

    assert len({grant.id for grant in grants}) == 1
    assert [grant.repeated for grant in grants].count(False) == 1
    assert {grant.balance for grant in grants} == {5}
    assert coupons_of(crowded, USER) == [CouponBalance(coupon_id=1, count=5)]


def test_racing_grants_with_references_of_their_own_all_count(crowded: Database) -> None:
    grants = _race(lambda racer: _grant(crowded, count=5, reference=f"order-{racer}"))

    assert sorted(grant.balance for grant in grants) == [5 * racer for racer in range(1, RACERS + 1)]
    assert coupons_of(crowded, USER) == [CouponBalance(coupon_id=1, count=5 * RACERS)]


@pytest.mark.parametrize(("end", "repeated"), [("commit", True), ("rollback", False)])
def test_a_grant_waits_for_one_under_way_with_its_reference_and_repeats_it_only_if_committed(
    crowded: Database, end: str, repeated: bool
) -> None:
    under_way = sa.insert(coupon_grant).values(user_id=USER, coupon_id=1, count=5, reference="order-1")
    with crowded.engine.connect() as connection, ThreadPoolExecutor(1) as other:
        connection.execute(under_way)
        waiting = other.submit(_grant, crowded, count=5, reference="order-1")
        wait_for_lock_waiters(crowded)
        getattr(connection, end)()

        assert waiting.result(timeout=10).repeated is repeated

    assert _grant_count(crowded) == 1


def test_coupons_are_listed_by_id_and_a_user_without_any_has_none(database: Database) -> None:
    _add_coupon(database, 2)
    grant_coupons(database, user_id=USER, coupon_id=2, count=1, reference="order-2")
    grant_coupons(database, user_id=USER, coupon_id=1, count=1, reference="order-1")

    assert [balance.coupon_id for balance in coupons_of(database, USER)] == [1, 2]
    assert coupons_of(database, USER + 1) == []


def test_movements_are_grants_and_charges_newest_first(database: Database) -> None:
    grant = _grant(database, count=3, reference="order-1")
    charge_id = _consume(database, appointment_id=42, count=2, at=grant.granted_at + timedelta(seconds=1))
    _consume(database, appointment_id=43, count=1, at=grant.granted_at, user_id=USER + 1)

    movements, cursor = movements_of(database, USER, limit=10)

    charged_at = grant.granted_at + timedelta(seconds=1)
    assert movements == [
        Movement("charge", charge_id, 1, -2, charged_at, reference=None, appointment_id=42),
        Movement("grant", grant.id, 1, 3, grant.granted_at, reference="order-1", appointment_id=None),
    ]
    assert cursor is None


def test_a_page_that_holds_all_movements_is_the_last(database: Database) -> None:
    for number in range(3):
        _grant(database, count=1, reference=f"order-{number}")

    assert movements_of(database, USER, limit=3)[1] is None
    assert movements_of(database, USER, limit=2)[1] is not None
    assert movements_of(database, USER + 1, limit=2) == ([], None)


def test_paging_shows_every_movement_once_although_times_are_equal_and_more_are_written(database: Database) -> None:
    noon = datetime(2020, 1, 1, 12, tzinfo=UTC)
    for number in range(5):
        _consume(database, appointment_id=number, count=1, at=noon)
        _grant_by_hand(database, reference=f"order-{number}", at=noon)

    seen: list[Movement] = []
    cursor: MovementCursor | None = None
    for number in range(5):
        page, cursor = movements_of(database, USER, limit=2, before=cursor)
        seen += page
        _grant(database, count=1, reference=f"meanwhile-{number}")

    assert cursor is None
    assert len({(movement.kind, movement.id) for movement in seen}) == len(seen) == 10
    assert {movement.at for movement in seen} == {noon}


@pytest.mark.parametrize(
    "cursor",
    [
        MovementCursor(datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC), "grant", 1),
        MovementCursor(datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), "charge", MAX_BALANCE),
        MovementCursor(datetime(1970, 1, 1, tzinfo=UTC), "charge", 0),
    ],
)
def test_a_cursor_survives_its_string(cursor: MovementCursor) -> None:
    assert decode_cursor(encode_cursor(cursor)) == cursor


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A",
        "not a cursor",
        "\0",
        "é",
        "ä" * 8,
        "=" * 4,
        "A" * 100_000,
        base64.urlsafe_b64encode(b"1.grant.2").decode() + "=",
        base64.urlsafe_b64encode(b"01.grant.2.").decode().rstrip("="),
        base64.urlsafe_b64encode(b"01.grant.2").decode().rstrip("="),
        base64.urlsafe_b64encode(b"-1.grant.2").decode().rstrip("="),
        base64.urlsafe_b64encode(b"1.gift.2").decode().rstrip("="),
        base64.urlsafe_b64encode(b"1.grant.2\0").decode().rstrip("="),
        base64.urlsafe_b64encode(b"1.grant.9223372036854775808").decode().rstrip("="),
        base64.urlsafe_b64encode(b"999999999999999999.grant.1").decode().rstrip("="),
        base64.urlsafe_b64encode("١.grant.1".encode()).decode().rstrip("="),
        base64.urlsafe_b64encode(b"\xff\xfe").decode().rstrip("="),
    ],
)
def test_every_other_string_is_no_cursor(text: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        decode_cursor(text)


def _grant(database: Database, *, count: int, reference: str) -> Grant:
    return grant_coupons(database, user_id=USER, coupon_id=1, count=count, reference=reference)


def _grant_by_hand(database: Database, *, reference: str, at: datetime) -> None:
    grant = sa.insert(coupon_grant).values(user_id=USER, coupon_id=1, count=1, reference=reference, created_at=at)
    database.transaction(lambda connection: connection.execute(grant))


def _race(run: Callable[[int], Grant]) -> list[Grant]:
    """All racers start together; their answers."""
    together = threading.Barrier(RACERS)

    def start(racer: int) -> Grant:
        together.wait(timeout=10)
        return run(racer)

    with ThreadPoolExecutor(RACERS) as racers:
        return list(racers.map(start, range(RACERS)))


def _add_coupon(database: Database, coupon_id: int) -> None:
    coupon = sa.insert(coupon_info).values(id=coupon_id, name=f"coupon {coupon_id}")
    database.transaction(lambda connection: connection.execute(coupon))


def _consume(database: Database, *, appointment_id: int, count: int, at: datetime, user_id: int = USER) -> int:
    charge = sa.insert(user_consume).values(
        appointment_id=appointment_id,
        user_id=user_id,
        other_user_id=8,
        coupon_id=1,
        prop_id=1,
        count=count,
        created_at=at,
    )
    returning = charge.returning(user_consume.c.id)
    charge_id: int = database.transaction(lambda connection: connection.execute(returning).scalar_one())
    return charge_id


def _grant_count(database: Database) -> int:
    count = sa.select(sa.func.count()).select_from(coupon_grant)
    return database.transaction(lambda connection: connection.execute(count).scalar_one())
