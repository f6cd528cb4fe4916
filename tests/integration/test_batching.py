"""Concurrent charges share a transaction on a real Postgres: nobody waits for company, and nobody pays for another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

import psycopg2
import pytest

from db.charging import Charges
from db.database import Database, DatabaseLimits
from db.decisions import ChargeRequest, IllegalRequest, InsufficientCoupons, Outcome, Payer, Rules
from db.errors import DatabaseDown, DatabaseError
from db.events import ChargeEvent, Committing, RowsLocked
from locks import Lease, LeaseLost, LossReason
from service.charging import Charging, TimedEntry
from service.refusals import ChargeInProgress, ChargeUnknown, Overloaded
from tests.harness import PATIENCE_S, Rows, wait_until_async
from tests.integration.test_charging import ANN, BOB, EVE, Gate, holding, kill_backends, lose_the_flag
from tests.proxy import Cut, postgres_proxy


@dataclass
class Bench:
    """A charging queue, and what it did."""

    charging: Charging
    rows: Rows
    batch_sizes: list[int] = field(default_factory=list)

    def enter(self, appointment_id: int, user_id: int = ANN, lease: Lease | None = None) -> asyncio.Task[TimedEntry]:
        """A caller who has submitted by now, and awaits."""
        charge = self.charging.submit(ChargeRequest(appointment_id, user_id), lease)

        async def awaited() -> TimedEntry:
            return await charge

        return asyncio.create_task(awaited())

    async def batches(self, count: int) -> None:
        """Waits until so many transactions have begun."""

        async def enough() -> bool:
            return len(self.batch_sizes) >= count

        await wait_until_async(enough, what=f"{count} batches")


OpenBench = Callable[..., Awaitable[Bench]]


@pytest.fixture
async def open_bench(database_url: str, rows: Rows) -> AsyncIterator[OpenBench]:
    """Makes a queue: open_bench(lanes=1, listener=..., url=...); ANN has a thousand coupons."""
    rows.grant(ANN, 1000)
    databases: list[Database] = []
    threads = ThreadPoolExecutor(8)

    async def open_one(
        *,
        lanes: int = 1,
        solo_lanes: int = 1,
        batch_size: int = 64,
        max_waiting: int = 1000,
        timeout_s: float = PATIENCE_S,
        row_lock_timeout_s: float = PATIENCE_S,
        listener: Callable[[ChargeEvent], None] = lambda event: None,
        url: str = database_url,
    ) -> Bench:
        limits = DatabaseLimits(
            pool_wait_s=PATIENCE_S,
            statement_timeout_s=PATIENCE_S,
            row_lock_timeout_s=row_lock_timeout_s,
            idle_in_transaction_timeout_s=PATIENCE_S,
        )
        databases.append(Database(url, limits=limits))
        sizes: list[int] = []
        charging = Charging(
            Charges(databases[-1], Rules(Payer.ENTRANT, 1), settle_within_s=0.3, listener=listener),
            threads,
            lanes=lanes,
            solo_lanes=solo_lanes,
            batch_size=batch_size,
            max_waiting=max_waiting,
            timeout_s=timeout_s,
            on_batch=sizes.append,
        )
        return Bench(charging, rows, sizes)

    yield open_one
    threads.shutdown()
    for database in databases:
        database.close()


def meetings(rows: Rows, count: int) -> list[int]:
    return [rows.appointment(ANN, BOB) for _ in range(count)]


# Batches


async def test_a_lone_charge_goes_at_once_and_alone(open_bench: OpenBench, rows: Rows) -> None:
    bench = await open_bench()
    (id_,) = meetings(rows, 1)

    timed = await bench.enter(id_)

    assert timed.entry.outcome is Outcome.CHARGED
    assert bench.batch_sizes == [1]
    assert timed.queued_s < 5
    assert timed.transaction_s > 0


async def test_what_comes_in_one_tick_goes_in_one_transaction(open_bench: OpenBench, rows: Rows) -> None:
    bench = await open_bench()

    charges = [bench.enter(id_) for id_ in meetings(rows, 20)]

    assert {timed.entry.outcome for timed in await asyncio.gather(*charges)} == {Outcome.CHARGED}
    assert bench.batch_sizes == [20]
    assert rows.balance(ANN) == 980


async def test_while_a_transaction_is_in_flight_the_next_batch_gathers(open_bench: OpenBench, rows: Rows) -> None:
    gate = Gate(Committing)
    bench = await open_bench(listener=gate)
    first, *others = meetings(rows, 31)
    charges = [bench.enter(first)]
    await reached(gate)
    for id_ in others:
        charges.append(bench.enter(id_))
        await asyncio.sleep(0)
    assert bench.batch_sizes == [1]

    gate.open.set()

    assert {timed.entry.outcome for timed in await asyncio.gather(*charges)} == {Outcome.CHARGED}
    assert bench.batch_sizes == [1, 30]


async def test_beside_a_slow_transaction_the_next_goes_in_a_lane_of_its_own(open_bench: OpenBench, rows: Rows) -> None:
    gate = Gate(Committing)
    bench = await open_bench(lanes=2, listener=lambda event: None if gate.reached.is_set() else gate(event))
    rows.grant(EVE, 1)
    other = rows.appointment(EVE, BOB)  # of another payer: whoever pays for both is a row that both wait for
    slow = [bench.enter(id_) for id_ in meetings(rows, 2)]
    await reached(gate)

    assert (await bench.enter(other, EVE)).entry.outcome is Outcome.CHARGED

    assert not any(charge.done() for charge in slow)
    gate.open.set()
    await asyncio.gather(*slow)
    assert bench.batch_sizes == [2, 1]


async def test_a_batch_is_no_larger_than_it_may_be(open_bench: OpenBench, rows: Rows) -> None:
    bench = await open_bench(batch_size=8)

    await asyncio.gather(*[bench.enter(id_) for id_ in meetings(rows, 20)])

    assert bench.batch_sizes == [8, 8, 4]


async def test_two_in_one_batch_for_one_appointment_are_one_charge(open_bench: OpenBench, rows: Rows) -> None:
    bench = await open_bench()
    (id_,) = meetings(rows, 1)

    outcomes = [timed.entry.outcome for timed in await asyncio.gather(bench.enter(id_), bench.enter(id_, BOB))]

    assert outcomes == [Outcome.CHARGED, Outcome.ALREADY_CHARGED]
    assert bench.batch_sizes == [2]


async def test_a_refusal_is_its_callers_alone(open_bench: OpenBench, rows: Rows) -> None:
    bench = await open_bench()
    ids = meetings(rows, 3)

    outcomes = await asyncio.gather(
        bench.enter(ids[0]), bench.enter(ids[1], EVE), bench.enter(ids[2], BOB), return_exceptions=True
    )

    assert isinstance(outcomes[0], TimedEntry)
    assert [type(outcome) for outcome in outcomes[1:]] == [IllegalRequest, InsufficientCoupons]
    assert bench.batch_sizes == [3]


# Rows that others hold, and what breaks


async def test_a_held_row_delays_its_own_caller_alone(open_bench: OpenBench, rows: Rows, database_url: str) -> None:
    bench = await open_bench()
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
    bench = await open_bench(row_lock_timeout_s=0.1)
    (held,) = meetings(rows, 1)
    with holding(database_url, held), pytest.raises(ChargeInProgress) as caught:
        await bench.enter(held)
    assert caught.value.retry_after_s > 0
    assert rows.balance(ANN) == 1000


async def test_corrupt_data_of_one_are_an_error_for_that_one_alone(open_bench: OpenBench, rows: Rows) -> None:
    bench = await open_bench()
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
    bench = await open_bench(row_lock_timeout_s=0.2)
    (own,), eves = meetings(rows, 1), rows.appointment(EVE, BOB)
    with closing(psycopg2.connect(database_url)) as foreign:
        foreign.cursor().execute("SELECT 1 FROM user_coupon WHERE user_id = %s FOR UPDATE", (EVE,))

        outcomes = await asyncio.gather(bench.enter(own), bench.enter(eves, EVE), return_exceptions=True)

    assert isinstance(outcomes[0], TimedEntry)
    assert isinstance(outcomes[1], ChargeInProgress)
    assert rows.balance(EVE) == 5


async def test_a_database_that_dies_each_time_is_down_for_the_whole_batch(open_bench: OpenBench, rows: Rows) -> None:
    def kill(event: ChargeEvent) -> None:
        if isinstance(event, RowsLocked):
            kill_backends(rows)

    bench = await open_bench(listener=kill)
    ids = meetings(rows, 3)

    outcomes = await asyncio.gather(*[bench.enter(id_) for id_ in ids], return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [DatabaseDown] * 3
    assert rows.balance(ANN) == 1000


async def test_a_commit_that_cannot_be_settled_is_a_charge_unknown(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    proxy, url = postgres_proxy(database_url)
    with proxy:
        bench = await open_bench(url=url)
        proxy.cut_once(Cut.AFTER_ANSWERED, at=b"COMMIT", then_away=True)
        (id_,) = meetings(rows, 1)
        with pytest.raises(ChargeUnknown):
            await bench.enter(id_)
        proxy.come_back()
        assert (await bench.enter(id_)).entry.outcome is Outcome.ALREADY_CHARGED


# Limits


async def test_one_too_many_is_overloaded_at_once(open_bench: OpenBench, rows: Rows) -> None:
    gate = Gate(Committing)
    bench = await open_bench(max_waiting=2, listener=gate)
    ids = meetings(rows, 4)
    charges = [bench.enter(ids[0])]
    await reached(gate)
    charges += [bench.enter(ids[1]), bench.enter(ids[2])]

    with pytest.raises(Overloaded):
        bench.enter(ids[3])

    gate.open.set()
    await asyncio.gather(*charges)
    assert not rows.one("SELECT is_consume FROM appointment_info WHERE id = %s", ids[3])


async def test_whose_time_is_over_while_waiting_is_overloaded_and_not_charged(
    open_bench: OpenBench, rows: Rows
) -> None:
    gate = Gate(Committing)
    bench = await open_bench(timeout_s=0.2, listener=gate)
    first, second = meetings(rows, 2)
    in_flight = bench.enter(first)
    await reached(gate)
    submitted_at_s = time.monotonic()
    waiting = bench.enter(second)

    with pytest.raises(Overloaded):
        await waiting
    assert 0.15 <= time.monotonic() - submitted_at_s < 15
    with pytest.raises(ChargeUnknown):
        await in_flight
    gate.open.set()

    async def first_is_written() -> bool:
        return rows.number("SELECT count(*) FROM user_consume") == 1

    await wait_until_async(first_is_written)
    # The one that nobody could tell about: asking again does.
    assert (await bench.enter(first, BOB)).entry.outcome is Outcome.ALREADY_CHARGED
    assert rows.run("SELECT appointment_id FROM user_consume") == [(first,)]


# Leases


async def test_under_a_lost_lease_no_row_is_touched(open_bench: OpenBench, rows: Rows) -> None:
    bench = await open_bench()
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
    open_bench: OpenBench, rows: Rows
) -> None:
    gate = Gate(Committing)
    bench = await open_bench(listener=gate)
    first, second = meetings(rows, 2)
    in_flight = bench.enter(first)
    await reached(gate)
    lease = lease_for(0.1)
    waiting = bench.enter(second, ANN, lease)

    async def lapsed() -> bool:
        return lease.remaining_s() == 0

    await wait_until_async(lapsed)
    gate.open.set()

    with pytest.raises(LeaseLost) as caught:
        await waiting
    assert caught.value.reason is LossReason.EXPIRED
    assert (await in_flight).entry.outcome is Outcome.CHARGED
    assert rows.run("SELECT appointment_id FROM user_consume") == [(first,)]


# Callers who stop listening


async def test_a_caller_who_gave_up_in_the_queue_is_dropped_and_the_others_are_not(
    open_bench: OpenBench, rows: Rows
) -> None:
    gate = Gate(Committing)
    bench = await open_bench(listener=gate)
    ids = meetings(rows, 4)
    leases = [lease_for(PATIENCE_S) for _ in ids]
    charges = [bench.enter(ids[0], ANN, leases[0])]
    await reached(gate)
    charges += [bench.enter(id_, ANN, lease) for id_, lease in zip(ids[1:], leases[1:], strict=True)]
    await asyncio.sleep(0)
    charges[2].cancel()
    leases[2].ended = True  # its hold has released it
    gate.open.set()

    outcomes = await asyncio.gather(*charges, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [TimedEntry, TimedEntry, asyncio.CancelledError, TimedEntry]
    assert bench.batch_sizes == [1, 2]
    assert not rows.one("SELECT is_consume FROM appointment_info WHERE id = %s", ids[2])


async def test_a_caller_cancelled_in_flight_may_ask_again_for_its_own_outcome(
    open_bench: OpenBench, rows: Rows
) -> None:
    gate = Gate(Committing)
    bench = await open_bench(listener=gate)
    (id_,) = meetings(rows, 1)
    charge = bench.charging.submit(ChargeRequest(id_, ANN), None)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await charge
    gate.open.set()

    assert (await charge).entry.outcome is Outcome.CHARGED
    assert (await charge).entry.outcome is Outcome.CHARGED


async def test_a_caller_cancelled_in_flight_is_charged_and_so_are_the_others(open_bench: OpenBench, rows: Rows) -> None:
    gate = Gate(Committing)
    bench = await open_bench(listener=gate)
    charges = [bench.enter(id_) for id_ in meetings(rows, 3)]
    await reached(gate)
    charges[1].cancel()
    gate.open.set()

    outcomes = await asyncio.gather(*charges, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [TimedEntry, asyncio.CancelledError, TimedEntry]
    assert rows.number("SELECT count(*) FROM user_consume") == 3


# Helpers


async def reached(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.reached.wait, PATIENCE_S)


class NoKeeper:
    """A lease that nobody extends or releases."""

    async def extend(self, lease: Lease, lease_ttl_s: float) -> None:
        raise NotImplementedError

    async def release(self, lease: Lease) -> bool:
        raise NotImplementedError

    def export(self, lease: Lease) -> str:
        raise NotImplementedError


def lease_for(lease_ttl_s: float) -> Lease:
    return Lease(
        NoKeeper(),
        "test",
        "id",
        fencing_token=1,
        lease_ttl_s=lease_ttl_s,
        sent_at_s=time.monotonic(),
        waited_s=0.0,
        stood_in_line=False,
        keep_extended=False,
        request_id="",
    )
