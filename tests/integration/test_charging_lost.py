"""A charge whose connection is lost, on a real Postgres: nothing is written, or it is settled by reading."""

from __future__ import annotations

import asyncio
import time

import pytest

from db.charging import Entry
from db.decisions import ChargeRequest, IllegalRequest, InsufficientCoupons, Outcome
from db.errors import CommitUnknown, DatabaseDown
from db.events import ChargeEvent, Committing, RowsLocked, Settled
from tests.harness import Rows
from tests.integration.charging_helpers import (
    ANN,
    BOB,
    EVE,
    happened,
    holding,
    kill_backends,
    lock_waiters,
    outcomes_of,
    patient_charges,
    proxied_charges,
)
from tests.proxy import Cut


@pytest.mark.parametrize("event_type", [RowsLocked, Committing])
async def test_a_connection_killed_before_commit_writes_nothing_and_is_run_once_more(
    database_url: str, rows: Rows, event_type: type
) -> None:
    rows.grant(ANN, 5)
    appointment_id = rows.appointment(ANN, BOB)
    seen: list[int] = []

    def kill_the_first(event: ChargeEvent) -> None:
        if isinstance(event, event_type):
            seen.append(rows.number("SELECT count(*) FROM user_consume"))
            if len(seen) == 1:
                kill_backends(rows)

    with patient_charges(database_url, listener=kill_the_first) as charges:
        (verdict,) = await charges.charge_batch([ChargeRequest(appointment_id, ANN)])

    assert outcomes_of([verdict]) == [Outcome.CHARGED]
    assert seen == [0, 0]
    assert rows.balance(ANN) == 4
    assert rows.number("SELECT count(*) FROM appointment_action") == 1


async def test_a_connection_killed_each_time_is_down_and_nothing_is_written(database_url: str, rows: Rows) -> None:
    rows.grant(ANN, 5)
    appointment_id = rows.appointment(ANN, BOB)

    def kill(event: ChargeEvent) -> None:
        if isinstance(event, RowsLocked):
            kill_backends(rows)

    with patient_charges(database_url, listener=kill) as charges, pytest.raises(DatabaseDown):
        await charges.charge_batch([ChargeRequest(appointment_id, ANN)])
    assert rows.balance(ANN) == 5
    assert rows.run("SELECT 1 FROM appointment_action UNION ALL SELECT 1 FROM user_consume") == []


@pytest.mark.parametrize(("cut", "had_committed"), [(Cut.AFTER_ANSWERED, True), (Cut.BEFORE_FORWARDING, False)])
async def test_a_connection_lost_during_commit_is_settled_by_reading(
    database_url: str, rows: Rows, cut: Cut, had_committed: bool
) -> None:
    rows.grant(ANN, 5)
    first, second = rows.appointment(ANN, BOB), rows.appointment(ANN, BOB)
    heard: list[ChargeEvent] = []
    with proxied_charges(database_url, listener=heard.append) as (proxy, charges):
        proxy.cut_once(cut, at=b"COMMIT")

        verdicts = await charges.charge_batch(
            [
                ChargeRequest(second, ANN),
                ChargeRequest(first, EVE),
                ChargeRequest(first, ANN),
                ChargeRequest(first, BOB),
            ]
        )

        assert proxy.cut_happened.is_set()
    assert outcomes_of(verdicts) == [Outcome.CHARGED, IllegalRequest, Outcome.CHARGED, Outcome.ALREADY_CHARGED]
    assert [event for event in heard if isinstance(event, Settled)] == [Settled([first, second], had_committed)]
    written = rows.run("SELECT id, appointment_id, user_id, count FROM user_consume ORDER BY appointment_id")
    told = [verdict.charge for verdict in (verdicts[2], verdicts[0]) if isinstance(verdict, Entry)]
    assert written == [
        (charge.id, id_, ANN, 1) for charge, id_ in zip(told, (first, second), strict=True) if charge is not None
    ]
    assert rows.number("SELECT count(*) FROM appointment_action") == 3
    assert rows.balance(ANN) == 3


@pytest.mark.parametrize("cut", list(Cut))
async def test_a_free_entry_lost_during_commit_has_one_row(database_url: str, rows: Rows, cut: Cut) -> None:
    rows.run("INSERT INTO coupon_price VALUES (%s, 0)", BOB)
    appointment_id = rows.appointment(ANN, BOB)
    with proxied_charges(database_url) as (proxy, charges):
        proxy.cut_once(cut, at=b"COMMIT")

        verdicts = await charges.charge_batch([ChargeRequest(appointment_id, ANN)])

    assert outcomes_of(verdicts) == [Outcome.FREE]
    assert rows.number("SELECT count(*) FROM appointment_action") == 1


@pytest.mark.parametrize("cut", list(Cut))
async def test_refusals_lost_during_commit_are_refusals_still(database_url: str, rows: Rows, cut: Cut) -> None:
    appointment_id = rows.appointment(ANN, BOB)
    with proxied_charges(database_url) as (proxy, charges):
        proxy.cut_once(cut, at=b"COMMIT")

        assert outcomes_of(await charges.charge_batch([ChargeRequest(appointment_id, ANN)])) == [InsufficientCoupons]


async def test_a_repeat_lost_during_commit_is_not_taken_for_the_charge_that_stands(
    database_url: str, rows: Rows
) -> None:
    """The charge was there before, so that alone does not tell whether this entry is: its own row does."""
    rows.grant(ANN, 5)
    appointment_id = rows.appointment(ANN, BOB)
    with proxied_charges(database_url) as (proxy, charges):
        await charges.charge_batch([ChargeRequest(appointment_id, ANN)])
        proxy.cut_once(Cut.BEFORE_FORWARDING, at=b"COMMIT")

        verdicts = await charges.charge_batch([ChargeRequest(appointment_id, BOB)])

    assert outcomes_of(verdicts) == [Outcome.ALREADY_CHARGED]
    assert rows.run("SELECT user_id FROM appointment_action ORDER BY id") == [(ANN,), (BOB,)]


@pytest.mark.parametrize("cut", list(Cut))
async def test_a_commit_that_cannot_be_settled_is_unknown_within_its_bound(
    database_url: str, rows: Rows, cut: Cut
) -> None:
    rows.grant(ANN, 5)
    appointment_id = rows.appointment(ANN, BOB)
    with proxied_charges(database_url, settle_within_s=0.3) as (proxy, charges):
        proxy.cut_once(cut, at=b"COMMIT", then_away=True)
        started_at_s = time.monotonic()

        with pytest.raises(CommitUnknown):
            await charges.charge_batch([ChargeRequest(appointment_id, ANN)])

        assert 0.3 <= time.monotonic() - started_at_s < 15
        proxy.come_back()
        # Retrying is safe, whatever had happened.
        (again,) = await charges.charge_batch([ChargeRequest(appointment_id, ANN)])
    expected = Outcome.ALREADY_CHARGED if cut is Cut.AFTER_ANSWERED else Outcome.CHARGED
    assert outcomes_of([again]) == [expected]
    assert rows.balance(ANN) == 4


async def test_a_database_that_comes_back_in_time_settles_it(database_url: str, rows: Rows) -> None:
    rows.grant(ANN, 5)
    appointment_id = rows.appointment(ANN, BOB)
    with proxied_charges(database_url) as (proxy, charges):
        proxy.cut_once(Cut.AFTER_ANSWERED, at=b"COMMIT", then_away=True)
        charging = asyncio.create_task(charges.charge_batch([ChargeRequest(appointment_id, ANN)]))
        await happened(proxy.cut_happened)
        proxy.come_back()

        assert outcomes_of(await charging) == [Outcome.CHARGED]
    assert rows.balance(ANN) == 4


async def test_settling_waits_for_a_commit_that_is_still_under_way(database_url: str, rows: Rows) -> None:
    """The connection is gone for us, while its server has the transaction open: its rows are still locked."""
    rows.grant(ANN, 5)
    appointment_id = rows.appointment(ANN, BOB)
    with proxied_charges(database_url) as (proxy, charges):
        proxy.cut_once(Cut.AFTER_ANSWERED, at=b"COMMIT", then_away=True)
        charging = asyncio.create_task(charges.charge_batch([ChargeRequest(appointment_id, ANN)]))
        await happened(proxy.cut_happened)
        # As the open transaction would: from before the settling reads until after it has begun to wait.
        with holding(database_url, appointment_id):
            proxy.come_back()
            await lock_waiters(rows)
            assert not charging.done()

        assert outcomes_of(await charging) == [Outcome.CHARGED]
    assert rows.number("SELECT count(*) FROM appointment_action") == 1
