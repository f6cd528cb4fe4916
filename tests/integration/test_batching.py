"""Concurrent charges share a transaction on a real Postgres: nobody waits for company, and nobody pays for another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from db.decisions import ChargeRequest, IllegalRequest, InsufficientCoupons, Outcome
from db.errors import DatabaseDown, DatabaseError
from db.events import ChargeEvent, RowsLocked
from locks import LeaseLost, LossReason
from service.pending_charge import TimedEntry
from service.refusals import ChargeInProgress, ChargeUnknown, Overloaded, TooManyRequests
from tests.harness import PATIENCE_S, Rows, wait_until_async
from tests.integration.charging_bench import OpenBench, benches, lease_for, meetings
from tests.integration.charging_helpers import (
    ANN,
    BOB,
    EVE,
    holding,
    holding_coupons,
    kill_backends,
    lock_waiters,
    lose_the_flag,
)
from tests.proxy import Cut, postgres_proxy


@pytest.fixture
async def open_bench(database_url: str, rows: Rows) -> AsyncIterator[OpenBench]:
    async with benches(database_url, rows) as open_bench:
        yield open_bench


# Batches


async def test_a_lone_charge_goes_at_once_and_alone(open_bench: OpenBench, rows: Rows) -> None:
    bench = open_bench()
    (id_,) = meetings(rows, 1)

    timed = await bench.enter(id_)

    assert timed.entry.outcome is Outcome.CHARGED
    assert bench.batch_sizes == [1]
    assert timed.queued_s < 5
    assert timed.transaction_s > 0


async def test_what_comes_in_one_tick_goes_in_one_transaction(open_bench: OpenBench, rows: Rows) -> None:
    bench = open_bench()

    charges = [bench.enter(id_) for id_ in meetings(rows, 20)]

    assert {timed.entry.outcome for timed in await asyncio.gather(*charges)} == {Outcome.CHARGED}
    assert bench.batch_sizes == [20]
    assert rows.balance(ANN) == 980


async def test_while_a_transaction_is_in_flight_the_next_batch_gathers(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    bench = open_bench()
    first, *others = meetings(rows, 31)
    with holding_coupons(database_url, ANN):
        charges = [bench.enter(first)]
        await lock_waiters(rows)
        for id_ in others:
            charges.append(bench.enter(id_))
            await asyncio.sleep(0)
        assert bench.batch_sizes == [1]

    assert {timed.entry.outcome for timed in await asyncio.gather(*charges)} == {Outcome.CHARGED}
    assert bench.batch_sizes == [1, 30]


async def test_beside_a_slow_transaction_the_next_goes_in_a_lane_of_its_own(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    bench = open_bench(lanes=2)
    rows.grant(EVE, 1)
    other = rows.appointment(EVE, BOB)  # of another payer: whoever pays for both is a row that both wait for
    with holding_coupons(database_url, ANN):
        slow = [bench.enter(id_) for id_ in meetings(rows, 2)]
        await lock_waiters(rows)

        assert (await bench.enter(other, EVE)).entry.outcome is Outcome.CHARGED

        assert not any(charge.done() for charge in slow)
    await asyncio.gather(*slow)
    assert bench.batch_sizes == [2, 1]


async def test_a_batch_is_no_larger_than_it_may_be(open_bench: OpenBench, rows: Rows) -> None:
    bench = open_bench(batch_size=8)

    await asyncio.gather(*[bench.enter(id_) for id_ in meetings(rows, 20)])

    assert bench.batch_sizes == [8, 8, 4]


async def test_two_in_one_batch_for_one_appointment_are_one_charge(open_bench: OpenBench, rows: Rows) -> None:
    bench = open_bench()
    (id_,) = meetings(rows, 1)

    outcomes = [timed.entry.outcome for timed in await asyncio.gather(bench.enter(id_), bench.enter(id_, BOB))]

    assert outcomes == [Outcome.CHARGED, Outcome.ALREADY_CHARGED]
    assert bench.batch_sizes == [2]


async def test_a_refusal_is_its_callers_alone(open_bench: OpenBench, rows: Rows) -> None:
    bench = open_bench()
    ids = meetings(rows, 3)

    outcomes = await asyncio.gather(
        bench.enter(ids[0]), bench.enter(ids[1], EVE), bench.enter(ids[2], BOB), return_exceptions=True
    )

    assert isinstance(outcomes[0], TimedEntry)
    assert [type(outcome) for outcome in outcomes[1:]] == [IllegalRequest, InsufficientCoupons]
    assert bench.batch_sizes == [3]


# Rows that others hold, and what breaks


async def test_a_held_row_delays_its_own_caller_alone(open_bench: OpenBench, rows: Rows, database_url: str) -> None:
    bench = open_bench()
    held, free = meetings(rows, 2)
    with holding(database_url, held):
        waiting, going = bench.enter(held), bench.enter(free)
        assert (await going).entry.outcome is Outcome.CHARGED
        assert (await bench.enter(free)).entry.outcome is Outcome.ALREADY_CHARGED
        assert not waiting.done()

    assert (await waiting).entry.outcome is Outcome.CHARGED


async def test_a_row_held_for_too_long_is_a_charge_in_progress(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    bench = open_bench(row_lock_timeout_s=0.1)
    (held,) = meetings(rows, 1)
    with holding(database_url, held), pytest.raises(ChargeInProgress) as caught:
        await bench.enter(held)
    assert caught.value.retry_after_s > 0
    assert rows.balance(ANN) == 1000


async def test_corrupt_data_of_one_are_an_error_for_that_one_alone(open_bench: OpenBench, rows: Rows) -> None:
    bench = open_bench()
    ids = meetings(rows, 4)
    lose_the_flag(rows, ids[2])

    outcomes = await asyncio.gather(*[bench.enter(id_) for id_ in ids], return_exceptions=True)

    assert type(outcomes[2]) is DatabaseError
    assert [outcome.entry.outcome for outcome in outcomes if isinstance(outcome, TimedEntry)] == [Outcome.CHARGED] * 3
    assert bench.batch_sizes == [4, 1, 1, 1, 1]
    assert rows.balance(ANN) == 997


async def test_coupons_held_for_too_long_by_another_cost_the_others_nothing(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    rows.grant(EVE, 5)
    bench = open_bench(row_lock_timeout_s=0.2)
    (own,), eves = meetings(rows, 1), rows.appointment(EVE, BOB)
    with holding_coupons(database_url, EVE):
        outcomes = await asyncio.gather(bench.enter(own), bench.enter(eves, EVE), return_exceptions=True)

    assert isinstance(outcomes[0], TimedEntry)
    assert isinstance(outcomes[1], ChargeInProgress)
    assert rows.balance(EVE) == 5


async def test_a_database_that_dies_each_time_is_down_for_the_whole_batch(open_bench: OpenBench, rows: Rows) -> None:
    def kill(event: ChargeEvent) -> None:
        if isinstance(event, RowsLocked):
            kill_backends(rows)

    bench = open_bench(listener=kill)
    ids = meetings(rows, 3)

    outcomes = await asyncio.gather(*[bench.enter(id_) for id_ in ids], return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [DatabaseDown] * 3
    assert rows.balance(ANN) == 1000


async def test_a_commit_that_cannot_be_settled_is_a_charge_unknown(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    proxy, url = postgres_proxy(database_url)
    with proxy:
        bench = open_bench(url=url)
        proxy.cut_once(Cut.AFTER_ANSWERED, at=b"COMMIT", then_away=True)
        (id_,) = meetings(rows, 1)
        with pytest.raises(ChargeUnknown):
            await bench.enter(id_)
        proxy.come_back()
        assert (await bench.enter(id_)).entry.outcome is Outcome.ALREADY_CHARGED


# Limits


async def test_one_too_many_is_overloaded_at_once(open_bench: OpenBench, rows: Rows, database_url: str) -> None:
    bench = open_bench(places=3)
    ids = meetings(rows, 4)
    with holding_coupons(database_url, ANN):
        charges = [bench.enter(ids[0])]
        await lock_waiters(rows)
        charges += [bench.enter(ids[1]), bench.enter(ids[2])]

        with pytest.raises(Overloaded):
            bench.enter(ids[3])

    await asyncio.gather(*charges)
    assert not rows.one("SELECT is_consume FROM appointment_info WHERE id = %s", ids[3])


async def test_one_caller_has_a_share_of_what_may_wait_until_the_outcome_is_known(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    rows.grant(BOB, 1)
    bench = open_bench(places=4, caller_share=0.5)
    ids = meetings(rows, 4)
    with holding_coupons(database_url, ANN):
        anns = [bench.enter(ids[0])]
        await lock_waiters(rows)
        anns.append(bench.enter(ids[1]))
        with pytest.raises(TooManyRequests):
            bench.enter(ids[2])
        bobs = bench.enter(ids[2], BOB)

    assert [(await each).entry.outcome for each in (*anns, bobs)] == [Outcome.CHARGED] * 3
    assert (await bench.enter(ids[3])).entry.outcome is Outcome.CHARGED


# Leases


async def test_under_a_lost_lease_no_row_is_touched(open_bench: OpenBench, rows: Rows) -> None:
    bench = open_bench()
    lost, kept = meetings(rows, 2)
    gone, good = lease_for(60), lease_for(60)
    gone.declare_lost(LossReason.TAKEN)

    outcomes = await asyncio.gather(bench.enter(lost, ANN, gone), bench.enter(kept, ANN, good), return_exceptions=True)

    assert isinstance(outcomes[0], LeaseLost)
    assert outcomes[0].reason is LossReason.TAKEN
    assert isinstance(outcomes[1], TimedEntry)
    assert bench.batch_sizes == [1]
    assert rows.run("SELECT appointment_id FROM appointment_action") == [(kept,)]


async def test_a_lease_that_lapses_in_the_queue_is_lost_before_its_charge_begins(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    bench = open_bench()
    first, second = meetings(rows, 2)
    with holding_coupons(database_url, ANN):
        in_flight = bench.enter(first)
        await lock_waiters(rows)
        lease = lease_for(0.1)
        waiting = bench.enter(second, ANN, lease)

        async def lapsed() -> bool:
            return lease.remaining_s() == 0

        await wait_until_async(lapsed)

    with pytest.raises(LeaseLost) as caught:
        await waiting
    assert caught.value.reason is LossReason.EXPIRED
    assert (await in_flight).entry.outcome is Outcome.CHARGED
    assert rows.run("SELECT appointment_id FROM user_consume") == [(first,)]


# Callers who stop listening


async def test_a_caller_who_gave_up_in_the_queue_is_dropped_and_the_others_are_not(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    bench = open_bench()
    ids = meetings(rows, 4)
    leases = [lease_for(PATIENCE_S) for _ in ids]
    with holding_coupons(database_url, ANN):
        charges = [bench.enter(ids[0], ANN, leases[0])]
        await lock_waiters(rows)
        charges += [bench.enter(id_, ANN, lease) for id_, lease in zip(ids[1:], leases[1:], strict=True)]
        await asyncio.sleep(0)
        charges[2].cancel()
        leases[2].ended = True  # its hold has released it

    outcomes = await asyncio.gather(*charges, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [TimedEntry, TimedEntry, asyncio.CancelledError, TimedEntry]
    assert bench.batch_sizes == [1, 2]
    assert not rows.one("SELECT is_consume FROM appointment_info WHERE id = %s", ids[2])


async def test_a_caller_cancelled_in_flight_may_ask_again_for_its_own_outcome(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    bench = open_bench()
    (id_,) = meetings(rows, 1)
    with holding_coupons(database_url, ANN):
        charge = bench.charging.submit(ChargeRequest(id_, ANN), None, guarded_by="row_lock")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await charge

    assert (await charge).entry.outcome is Outcome.CHARGED
    assert (await charge).entry.outcome is Outcome.CHARGED


async def test_a_caller_cancelled_in_flight_is_charged_and_so_are_the_others(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    bench = open_bench()
    with holding_coupons(database_url, ANN):
        charges = [bench.enter(id_) for id_ in meetings(rows, 3)]
        await lock_waiters(rows)
        charges[1].cancel()

    outcomes = await asyncio.gather(*charges, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [TimedEntry, asyncio.CancelledError, TimedEntry]
    assert rows.number("SELECT count(*) FROM user_consume") == 3
