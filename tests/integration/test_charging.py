"""The charging transaction on a real Postgres: many in one, each with its own outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing

import pytest

from db.audit import audit
from db.charging import Charges, Entry, HeldElsewhere, Progress
from db.database import Database, DatabaseLimits
from db.decisions import (
    AppointmentNotOpen,
    ChargeRequest,
    IllegalRequest,
    InsufficientCoupons,
    Outcome,
    Payer,
    Rules,
    StaleHolder,
)
from db.errors import DatabaseError, TimedOut
from db.events import ChargeEvent, Committed, Committing, Decided, RowsLocked
from tests.harness import Rows
from tests.integration.charging_helpers import (
    ANN,
    BOB,
    ENTRANT_PAYS,
    EVE,
    Gate,
    happened,
    holding,
    holding_coupons,
    in_own_loop,
    lock_waiters,
    lose_the_flag,
    outcomes_of,
    patient_charges,
)

ENDED, CANCELLED = 2, 3


@pytest.fixture
async def charges(database_url: str) -> AsyncIterator[Charges]:
    with patient_charges(database_url) as charges:
        yield charges


# One batch


async def test_a_charge_stands_in_every_table(charges: Charges, rows: Rows) -> None:
    rows.grant(ANN, 5)
    rows.run("INSERT INTO coupon_price VALUES (%s, 3)", BOB)
    appointment_id = rows.appointment(ANN, BOB)

    (entry,) = await charges.charge_batch([ChargeRequest(appointment_id, ANN, fencing_token=77)])

    assert isinstance(entry, Entry)
    assert entry.outcome is Outcome.CHARGED
    charge = entry.charge
    assert charge is not None
    assert (charge.payer_id, charge.coupon_id, charge.prop_id, charge.count) == (ANN, 1, 1, 3)
    assert rows.run(
        "SELECT id, appointment_id, user_id, other_user_id, coupon_id, prop_id, count, lock_fence, created_at"
        " FROM user_consume"
    ) == [(charge.id, appointment_id, ANN, BOB, 1, 1, 3, 77, charge.charged_at)]
    assert rows.run("SELECT is_consume, lock_fence, status FROM appointment_info") == [(True, 77, 1)]
    assert rows.run("SELECT appointment_id, user_id, type, created_at FROM appointment_action") == [
        (appointment_id, ANN, 1, entry.entered_at)
    ]
    assert rows.balance(ANN) == 2


async def test_in_a_mixed_batch_each_gets_its_own_verdict_in_their_order(
    charges: Charges, database: Database, rows: Rows
) -> None:
    rows.grant(ANN, 3)
    first, poor, ended, free, second = [rows.appointment(ANN, BOB) for _ in range(5)]
    rows.run("UPDATE appointment_info SET status = %s WHERE id = %s", ENDED, ended)
    rows.run("UPDATE appointment_info SET user_id = 33, invitee_user_id = 44 WHERE id = %s", free)
    rows.run("INSERT INTO coupon_price VALUES (44, 0)")
    requests = [
        ChargeRequest(second, ANN),
        ChargeRequest(ended, ANN),
        ChargeRequest(first, EVE),
        ChargeRequest(free, 33),
        ChargeRequest(poor, BOB),
        ChargeRequest(second, BOB),
        ChargeRequest(10**17, ANN),
        ChargeRequest(first, ANN, other_user_id=EVE),
        ChargeRequest(first, ANN, other_user_id=BOB),
    ]

    verdicts = await charges.charge_batch(requests)

    assert outcomes_of(verdicts) == [
        Outcome.CHARGED,
        AppointmentNotOpen,
        IllegalRequest,
        Outcome.FREE,
        InsufficientCoupons,
        Outcome.ALREADY_CHARGED,
        IllegalRequest,
        IllegalRequest,
        Outcome.CHARGED,
    ]
    charged, repeat = verdicts[0], verdicts[5]
    assert isinstance(charged, Entry)
    assert isinstance(repeat, Entry)
    assert charged.charge == repeat.charge
    assert rows.run("SELECT appointment_id, user_id FROM appointment_action ORDER BY id") == [
        (second, ANN),
        (free, 33),
        (second, BOB),
        (first, ANN),
    ]
    assert rows.run("SELECT id FROM appointment_info WHERE is_consume ORDER BY id") == [(first,), (second,)]
    assert rows.balance(ANN) == 1
    assert audit(database).holds


async def test_a_batch_of_refusals_writes_nothing(charges: Charges, rows: Rows) -> None:
    appointment_id = rows.appointment(ANN, BOB)

    verdicts = await charges.charge_batch([ChargeRequest(appointment_id, ANN), ChargeRequest(appointment_id, EVE)])

    assert outcomes_of(verdicts) == [InsufficientCoupons, IllegalRequest]
    assert rows.run("SELECT 1 FROM appointment_action UNION ALL SELECT 1 FROM user_consume") == []


async def test_a_repeat_in_a_later_batch_shows_the_earlier_charge(charges: Charges, rows: Rows) -> None:
    rows.grant(ANN, 1)
    appointment_id = rows.appointment(ANN, BOB)
    (first,) = await charges.charge_batch([ChargeRequest(appointment_id, ANN)])

    (repeat,) = await charges.charge_batch([ChargeRequest(appointment_id, BOB)])

    assert isinstance(first, Entry)
    assert isinstance(repeat, Entry)
    assert (repeat.outcome, repeat.charge) == (Outcome.ALREADY_CHARGED, first.charge)
    assert rows.number("SELECT count(*) FROM appointment_action") == 2


async def test_prices_are_of_the_other_one_and_zero_is_free(database_url: str, rows: Rows) -> None:
    rows.grant(ANN, 10)
    rows.grant(BOB, 10)
    rows.run("INSERT INTO coupon_price VALUES (%s, 4), (%s, 0)", ANN, EVE)
    meetings = [rows.appointment(ANN, BOB), rows.appointment(ANN, BOB), rows.appointment(ANN, EVE)]

    with patient_charges(database_url, rules=Rules(Payer.ENTRANT, default_price=3)) as charges:
        await charges.charge_batch(
            [ChargeRequest(meetings[0], BOB), ChargeRequest(meetings[1], ANN), ChargeRequest(meetings[2], ANN)]
        )

    assert rows.run("SELECT appointment_id, user_id, count FROM user_consume ORDER BY appointment_id") == [
        (meetings[0], BOB, 4),
        (meetings[1], ANN, 3),
    ]
    assert (rows.balance(ANN), rows.balance(BOB)) == (7, 6)


async def test_where_the_inviter_pays_only_the_inviters_entry_charges(
    database: Database, database_url: str, rows: Rows
) -> None:
    rows.grant(ANN, 1)
    appointment_id = rows.appointment(ANN, BOB)

    with patient_charges(database_url, rules=Rules(Payer.INVITER, default_price=1)) as charges:
        verdicts = await charges.charge_batch([ChargeRequest(appointment_id, user) for user in (BOB, ANN, BOB)])

    assert outcomes_of(verdicts) == [Outcome.FREE, Outcome.CHARGED, Outcome.ALREADY_CHARGED]
    assert audit(database).holds


# Rows that others hold


async def test_a_row_held_by_another_session_delays_nobody_else(
    charges: Charges, database_url: str, rows: Rows
) -> None:
    rows.grant(ANN, 9)
    held, free = rows.appointment(ANN, BOB), rows.appointment(ANN, BOB)

    with holding(database_url, held):
        verdicts = await charges.charge_batch(
            [ChargeRequest(held, ANN), ChargeRequest(free, ANN), ChargeRequest(held, EVE)]
        )

    assert outcomes_of(verdicts) == [HeldElsewhere, Outcome.CHARGED, HeldElsewhere]
    assert rows.balance(ANN) == 8


async def test_alone_it_waits_for_its_row_and_is_charged(charges: Charges, database_url: str, rows: Rows) -> None:
    rows.grant(ANN, 9)
    held = rows.appointment(ANN, BOB)

    with holding(database_url, held):
        alone = asyncio.create_task(charges.charge_waiting([ChargeRequest(held, ANN)]))
        await lock_waiters(rows)
        assert not alone.done()
    verdicts = await alone

    assert outcomes_of(verdicts) == [Outcome.CHARGED]


async def test_alone_it_sees_what_was_charged_while_it_waited(charges: Charges, database_url: str, rows: Rows) -> None:
    rows.grant(ANN, 9)
    appointment_id = rows.appointment(ANN, BOB)
    first, gate = [ChargeRequest(appointment_id, ANN)], Gate(Committing)
    charging = asyncio.create_task(
        asyncio.to_thread(in_own_loop, database_url, lambda own: own.charge_batch(first), listener=gate)
    )
    await happened(gate.reached)
    repeating = asyncio.create_task(charges.charge_waiting([ChargeRequest(appointment_id, BOB)]))
    await lock_waiters(rows)
    gate.open.set()
    (charged,), (repeat,) = await charging, await repeating

    assert isinstance(charged, Entry)
    assert isinstance(repeat, Entry)
    assert (repeat.outcome, repeat.charge) == (Outcome.ALREADY_CHARGED, charged.charge)


async def test_alone_it_waits_no_longer_than_the_row_locks_limit(database_url: str, rows: Rows) -> None:
    held = rows.appointment(ANN, BOB)
    charges = Charges(database_url, ENTRANT_PAYS, limits=DatabaseLimits(row_lock_timeout_s=0.1))
    with closing(charges), holding(database_url, held), pytest.raises(TimedOut):
        await charges.charge_waiting([ChargeRequest(held, ANN)])


async def test_a_batch_that_is_cancelled_before_it_commits_writes_nothing_and_holds_nothing(
    charges: Charges, database_url: str, rows: Rows
) -> None:
    rows.grant(ANN, 9)
    appointment_id = rows.appointment(ANN, BOB)
    progress = Progress()
    with holding_coupons(database_url, ANN):
        charging = asyncio.create_task(charges.charge_batch([ChargeRequest(appointment_id, ANN)], progress))
        await lock_waiters(rows)
        assert not progress.may_have_committed
        charging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await charging

    assert rows.run("SELECT 1 FROM appointment_action UNION ALL SELECT 1 FROM user_consume") == []
    # Its row is free again.
    assert outcomes_of(await charges.charge_waiting([ChargeRequest(appointment_id, ANN)])) == [Outcome.CHARGED]


async def test_progress_says_from_when_on_it_may_have_committed(database_url: str, rows: Rows) -> None:
    rows.grant(ANN, 9)
    progress, seen = Progress(), []

    def look(event: ChargeEvent) -> None:
        seen.append((type(event), progress.may_have_committed))

    with patient_charges(database_url, listener=look) as charges:
        await charges.charge_batch([ChargeRequest(rows.appointment(ANN, BOB), ANN)], progress)

    assert seen == [(RowsLocked, False), (Decided, False), (Committing, False), (Committed, True)]


async def test_a_missing_appointment_is_illegal_in_a_batch_and_alone(charges: Charges, rows: Rows) -> None:
    missing = ChargeRequest(rows.appointment(ANN, BOB) + 1, ANN)

    verdicts = await charges.charge_waiting([missing]) + await charges.charge_batch([missing])

    assert outcomes_of(verdicts) == [IllegalRequest] * 2


async def test_the_listener_hears_what_is_locked_and_what_is_held_elsewhere(database_url: str, rows: Rows) -> None:
    rows.grant(ANN, 9)
    held, free = rows.appointment(ANN, BOB), rows.appointment(ANN, BOB)
    heard: list[ChargeEvent] = []

    with holding(database_url, held), patient_charges(database_url, listener=heard.append) as charges:
        await charges.charge_batch([ChargeRequest(free, ANN), ChargeRequest(held, ANN)])

    assert heard[:3] == [RowsLocked([free], [held]), Decided([held, free]), Committing([held, free])]
    committed = heard[3]
    assert isinstance(committed, Committed)
    assert (committed.entries, committed.charges) == (1, 1)


# Fencing


async def test_a_holder_whose_token_is_below_the_rows_fence_is_stale(charges: Charges, rows: Rows) -> None:
    rows.grant(ANN, 5)
    appointment_id = rows.appointment(ANN, BOB)
    rows.run("UPDATE appointment_info SET lock_fence = 100 WHERE id = %s", appointment_id)

    assert outcomes_of(await charges.charge_batch([ChargeRequest(appointment_id, ANN, 99)])) == [StaleHolder]
    assert rows.run("SELECT 1 FROM appointment_action UNION ALL SELECT 1 FROM user_consume") == []
    assert outcomes_of(await charges.charge_batch([ChargeRequest(appointment_id, ANN, 101)])) == [Outcome.CHARGED]
    assert rows.one("SELECT lock_fence FROM appointment_info") == 101
    assert rows.one("SELECT lock_fence FROM user_consume") == 101
    assert outcomes_of(await charges.charge_batch([ChargeRequest(appointment_id, BOB, 100)])) == [StaleHolder]


async def test_tokens_as_large_as_redis_gives_them_fit(charges: Charges, rows: Rows) -> None:
    rows.grant(ANN, 1)
    token = 2**62
    await charges.charge_batch([ChargeRequest(rows.appointment(ANN, BOB), ANN, token)])

    assert rows.one("SELECT lock_fence FROM user_consume") == token


# Corrupt data


async def test_a_charge_without_its_flag_is_an_error_and_changes_nothing(charges: Charges, rows: Rows) -> None:
    rows.grant(ANN, 5)
    corrupt, sound = rows.appointment(ANN, BOB), rows.appointment(ANN, BOB)
    lose_the_flag(rows, corrupt)

    with pytest.raises(DatabaseError) as caught:
        await charges.charge_batch([ChargeRequest(sound, ANN), ChargeRequest(corrupt, ANN)])

    assert type(caught.value) is DatabaseError
    assert rows.balance(ANN) == 5
    assert rows.number("SELECT count(*) FROM appointment_action") == 0
    assert rows.run("SELECT appointment_id FROM user_consume") == [(corrupt,)]
