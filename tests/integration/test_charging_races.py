"""Charges that race on a real Postgres: once, exact, in one lock order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing

import psycopg2
import pytest

from db.audit import audit
from db.charging import Charges, Entry, Verdict
from db.database import Database
from db.decisions import ChargeRequest, InsufficientCoupons, Outcome
from tests.harness import Rows, wait_until_async
from tests.integration.charging_helpers import (
    ANN,
    BOB,
    deadlocks,
    holding_coupons,
    lock_waiters,
    outcomes_of,
    patient_charges,
)

FIRST_PAYER = 1  # whose coupons are locked before ANN's


@pytest.fixture
async def charges(database_url: str) -> AsyncIterator[Charges]:
    with patient_charges(database_url) as charges:
        yield charges


async def test_batches_in_opposite_orders_charge_once_and_never_deadlock(
    charges: Charges, database: Database, rows: Rows
) -> None:
    payers = [ANN, BOB, 33, 44]
    for payer in payers:
        rows.grant(payer, 100)
    meetings_people = {rows.appointment(*pair): pair for pair in ((ANN, BOB), (33, 44), (BOB, 33), (44, ANN))}
    meetings = list(meetings_people)
    deadlocks_before = deadlocks(rows)

    async def both_orders(order: int) -> list[Verdict]:
        # Waiting ones: with rows of others skipped there is less to deadlock on.
        requests = [ChargeRequest(id_, user) for id_ in meetings[::order] for user in meetings_people[id_][::order]]
        return [verdict for _ in range(10) for verdict in await charges.charge_waiting(requests)]

    found = await asyncio.gather(*[both_orders(order) for order in [1, -1] * 3])
    verdicts = [verdict for each in found for verdict in each]

    assert {type(verdict) for verdict in verdicts} == {Entry}
    assert outcomes_of(verdicts).count(Outcome.CHARGED) == len(meetings)
    assert rows.number("SELECT count(*) FROM appointment_action") == len(verdicts)
    assert sum(rows.balance(payer) for payer in payers) == 400 - len(meetings)
    assert deadlocks(rows) == deadlocks_before
    assert audit(database).holds


async def test_two_batches_that_both_wait_for_rows_and_payers_never_deadlock(charges: Charges, rows: Rows) -> None:
    """The same payers in opposite order over different appointments: only the coupons' rows collide."""
    for payer in range(100, 108):
        rows.grant(payer, 1000)
    pairs = [(payer, payer + 100) for payer in range(100, 108)]
    batches = [[ChargeRequest(rows.appointment(*pair), pair[0]) for pair in pairs[:: (-1) ** n]] for n in range(20)]
    deadlocks_before = deadlocks(rows)

    verdicts = await asyncio.gather(*[charges.charge_batch(batch) for batch in batches])

    assert {outcome for each in verdicts for outcome in outcomes_of(each)} == {Outcome.CHARGED}
    assert [rows.balance(payer) for payer in range(100, 108)] == [980] * 8
    assert deadlocks(rows) == deadlocks_before


async def test_a_payers_coupons_are_exact_when_they_run_out_in_the_middle_of_a_crowd(
    charges: Charges, database: Database, rows: Rows
) -> None:
    rows.grant(ANN, 25)
    rows.run("INSERT INTO coupon_price VALUES (%s, 2)", BOB)
    batches = [[ChargeRequest(rows.appointment(ANN, BOB), ANN) for _ in range(5)] for _ in range(8)]

    found = await asyncio.gather(*[charges.charge_batch(batch) for batch in batches])
    verdicts = [verdict for each in found for verdict in each]

    assert outcomes_of(verdicts).count(Outcome.CHARGED) == 12
    assert outcomes_of(verdicts).count(InsufficientCoupons) == 28
    assert rows.balance(ANN) == 1
    assert audit(database).holds


async def test_a_deadlock_with_a_foreign_session_is_run_again(charges: Charges, database_url: str, rows: Rows) -> None:
    rows.grant(ANN, 5)
    rows.grant(FIRST_PAYER, 5)
    appointment_id, other_id = rows.appointment(ANN, BOB), rows.appointment(FIRST_PAYER, BOB)
    requests = [ChargeRequest(appointment_id, ANN), ChargeRequest(other_id, FIRST_PAYER)]
    deadlocks_before = deadlocks(rows)
    with closing(psycopg2.connect(database_url)) as foreign, foreign.cursor() as cursor:
        # It takes the coupons first and then the appointment, and is never the one that is told.
        cursor.execute("SET deadlock_timeout = '1min'")
        cursor.execute("SELECT 1 FROM user_coupon WHERE user_id = %s FOR UPDATE", (ANN,))

        def want_the_appointment() -> None:
            cursor.execute("SELECT 1 FROM appointment_info WHERE id = %s FOR UPDATE", (appointment_id,))
            foreign.rollback()

        # Between its appointments and the foreign session's coupons the batch stops, until that one waits for it.
        with holding_coupons(database_url, FIRST_PAYER):
            charging = asyncio.create_task(charges.charge_waiting(requests))
            await lock_waiters(rows, 1)
            wanting = asyncio.create_task(asyncio.to_thread(want_the_appointment))
            await lock_waiters(rows, 2)
        verdicts = await charging
        await wanting

    assert outcomes_of(verdicts) == [Outcome.CHARGED, Outcome.CHARGED]
    assert (rows.balance(ANN), rows.balance(FIRST_PAYER)) == (4, 4)

    async def was_a_deadlock() -> bool:
        return deadlocks(rows) == deadlocks_before + 1

    await wait_until_async(was_a_deadlock, what="the deadlock in the statistics")
