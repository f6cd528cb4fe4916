"""The queue's promises to a caller whose time is over, to those who share its batch, and to those who only repeat."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from db.charging import NotChargedYet
from db.decisions import ChargeRequest, IllegalRequest, Outcome
from db.errors import DatabaseDown
from db.events import ChargeEvent, Committing
from service.pending_charge import PendingCharge, TimedEntry
from service.refusals import ChargeUnknown, Draining, Overloaded
from tests.harness import PATIENCE_S, Rows, wait_until_async
from tests.integration.charging_bench import Bench, OpenBench, benches, lease_for, listening, meetings
from tests.integration.charging_helpers import ANN, BOB, EVE, holding, holding_coupons, lock_waiters
from tests.proxy import Proxy, Way, postgres_proxy

SOON_S = 15.0  # far below the patience of whoever waits for ever


@pytest.fixture
async def open_bench(database_url: str, rows: Rows) -> AsyncIterator[OpenBench]:
    async with benches(database_url, rows) as open_bench:
        yield open_bench


# Deadlines before COMMIT was sent


async def test_whose_time_is_over_before_commit_is_told_down_and_the_others_of_the_batch_go_on(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    rows.grant(EVE, 5)
    bench = open_bench()
    own, stuck = rows.appointment(ANN, BOB), rows.appointment(EVE, BOB)
    with holding_coupons(database_url, EVE):
        late, patient = submitted(bench, stuck, EVE), submitted(bench, own, ANN)
        late.deadline_s = time.monotonic() + 0.1
        started_at_s = time.monotonic()

        with pytest.raises(DatabaseDown):
            await late
        assert time.monotonic() - started_at_s < SOON_S
        # In a batch without the stuck one, while that one's row is still held.
        assert (await patient).entry.outcome is Outcome.CHARGED

    assert bench.batch_sizes[:2] == [2, 1]
    assert rows.run("SELECT appointment_id FROM user_consume") == [(own,)]
    assert rows.run("SELECT appointment_id FROM appointment_action") == [(own,)]
    assert (rows.balance(ANN), rows.balance(EVE)) == (999, 5)


async def test_what_was_given_up_before_commit_may_be_asked_for_again(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    bench = open_bench(timeout_s=0.2)
    (id_,) = meetings(rows, 1)
    with holding_coupons(database_url, ANN), pytest.raises(DatabaseDown):
        await bench.enter(id_)
    assert rows.run("SELECT 1 FROM appointment_action UNION ALL SELECT 1 FROM user_consume") == []

    assert (await once_more(bench, id_)).entry.outcome is Outcome.CHARGED


async def test_whose_time_is_over_while_waiting_is_overloaded_and_not_charged(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    bench = open_bench()
    first, second = meetings(rows, 2)
    with holding_coupons(database_url, ANN):
        in_flight = bench.enter(first)
        await lock_waiters(rows)
        waiting = submitted(bench, second, ANN)
        waiting.deadline_s = time.monotonic() + 0.1
        submitted_at_s = time.monotonic()

        with pytest.raises(Overloaded):
            await waiting
        assert 0.05 <= time.monotonic() - submitted_at_s < SOON_S
        assert not in_flight.done()

    assert (await in_flight).entry.outcome is Outcome.CHARGED
    assert rows.run("SELECT appointment_id FROM user_consume") == [(first,)]


async def test_whose_caller_has_gone_while_it_waited_is_not_charged(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    bench = open_bench()
    first, second, third = meetings(rows, 3)
    with holding_coupons(database_url, ANN):
        in_flight = bench.enter(first)
        await lock_waiters(rows)
        gone, stays = (listening(submitted(bench, each, ANN)) for each in (second, third))
        await asyncio.sleep(0)  # both are awaited now
        gone.cancel()
        await asyncio.wait([gone])
        assert not in_flight.done()

    assert [(await each).entry.outcome for each in (in_flight, stays)] == [Outcome.CHARGED] * 2
    assert rows.run("SELECT appointment_id FROM user_consume ORDER BY 1") == [(first,), (third,)]
    assert rows.number("SELECT count(*) FROM appointment_action") == 2


async def test_who_waits_alone_for_a_held_row_is_told_down_in_time(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    bench = open_bench(timeout_s=0.3)
    (held,) = meetings(rows, 1)
    with holding(database_url, held), pytest.raises(DatabaseDown):
        await bench.enter(held)

    assert rows.run("SELECT 1 FROM appointment_action UNION ALL SELECT 1 FROM user_consume") == []


# Deadlines after it


async def test_whose_time_is_over_after_commit_was_sent_is_told_unknown_and_the_others_wait_for_the_truth(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    proxy, url = postgres_proxy(database_url)
    with proxy:
        bench = open_bench(url=url, listener=Silence(proxy, Way.REPLIES))
        first, second = meetings(rows, 2)
        late, patient = submitted(bench, first, ANN), listening(submitted(bench, second, ANN))
        late.deadline_s = time.monotonic() + 0.1

        with pytest.raises(ChargeUnknown):
            await late
        assert not patient.done()
        proxy.let_through(Way.REPLIES)

        assert (await patient).entry.outcome is Outcome.CHARGED
        assert (await bench.enter(first, BOB)).entry.outcome is Outcome.ALREADY_CHARGED
        assert [len(entered) for entered in bench.entered] == [1, 1]  # the late one was told otherwise
        await bench.charging.close()
    assert rows.balance(ANN) == 998


async def test_a_commit_that_never_arrived_is_unknown_in_time_and_asking_again_charges_once(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    proxy, url = postgres_proxy(database_url)
    with proxy:
        bench = open_bench(url=url, timeout_s=0.5, listener=Silence(proxy, Way.REQUESTS))
        (id_,) = meetings(rows, 1)
        started_at_s = time.monotonic()
        with pytest.raises(ChargeUnknown):
            await bench.enter(id_)
        assert time.monotonic() - started_at_s < SOON_S
        await bench.charging.close()
        proxy.let_through(Way.REQUESTS)
    again = open_bench()

    assert (await again.enter(id_)).entry.outcome in (Outcome.CHARGED, Outcome.ALREADY_CHARGED)
    assert rows.run("SELECT appointment_id FROM user_consume") == [(id_,)]
    assert rows.balance(ANN) == 999


# Closing


async def test_closing_ends_what_is_under_way_and_what_waits_and_writes_none_of_it(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    bench = open_bench()
    with holding_coupons(database_url, ANN):
        under_way = [bench.enter(id_) for id_ in meetings(rows, 2)]
        await lock_waiters(rows)
        waiting = [bench.enter(id_) for id_ in meetings(rows, 2)]
        await bench.charging.close()

    outcomes = await asyncio.gather(*under_way, *waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Draining] * 4
    assert bench.batch_sizes == [2]
    await no_sessions(rows)
    assert rows.run("SELECT 1 FROM appointment_action UNION ALL SELECT 1 FROM user_consume") == []
    with pytest.raises(Draining):
        submitted(bench, rows.appointment(ANN, BOB), ANN)


async def test_closed_after_commit_was_sent_the_outcome_is_unknown(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    proxy, url = postgres_proxy(database_url)
    with proxy:
        bench = open_bench(url=url, listener=Silence(proxy, Way.REPLIES))
        charge = bench.enter(rows.appointment(ANN, BOB))

        async def committed() -> bool:
            return rows.number("SELECT count(*) FROM user_consume") == 1

        await wait_until_async(committed, what="the COMMIT")
        await bench.charging.close()

        with pytest.raises(ChargeUnknown):
            await charge


# Repeats


async def test_repeats_do_not_wait_for_a_slow_charge(open_bench: OpenBench, rows: Rows, database_url: str) -> None:
    bench = open_bench()
    charged, slow = meetings(rows, 2)
    await bench.enter(charged)
    with holding_coupons(database_url, ANN):
        charging = bench.enter(slow)
        await lock_waiters(rows)

        repeats = await asyncio.gather(*[bench.enter_again(charged, user) for user in (ANN, BOB) * 5])

        assert not charging.done()
    assert {timed.entry.outcome for timed in repeats} == {Outcome.ALREADY_CHARGED}
    assert bench.batch_sizes == [1, 1, 10]
    await charging


async def test_a_charge_does_not_wait_for_slow_repeats(open_bench: OpenBench, rows: Rows, database_url: str) -> None:
    proxy, url = postgres_proxy(database_url)
    with proxy:
        bench, direct = open_bench(url=url), open_bench()
        charged, other = meetings(rows, 2)
        await direct.enter(charged)
        await bench.enter_again(charged)
        proxy.hold(Way.REPLIES)
        slow = bench.enter_again(charged)
        assert (await direct.enter(other)).entry.outcome is Outcome.CHARGED
        assert not slow.done()
        proxy.let_through(Way.REPLIES)
        await slow
        await bench.charging.close()


async def test_a_repeat_of_what_is_not_charged_is_told_so_and_writes_nothing(open_bench: OpenBench, rows: Rows) -> None:
    bench = open_bench()
    charged, open_ = meetings(rows, 2)
    await bench.enter(charged)

    outcomes = await asyncio.gather(
        bench.enter_again(charged, BOB),
        bench.enter_again(open_),
        bench.enter_again(charged, EVE),
        return_exceptions=True,
    )

    assert isinstance(outcomes[0], TimedEntry)
    assert [type(outcome) for outcome in outcomes[1:]] == [NotChargedYet, IllegalRequest]
    assert rows.run("SELECT user_id FROM appointment_action ORDER BY id") == [(ANN,), (BOB,)]


async def test_a_charged_appointment_whose_row_is_held_is_entered_without_waiting(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    """The charge queue finds the row held elsewhere, and asks whether it need wait at all."""
    bench = open_bench()
    (id_,) = meetings(rows, 1)
    await bench.enter(id_)

    with holding(database_url, id_):
        assert (await bench.enter(id_, BOB)).entry.outcome is Outcome.ALREADY_CHARGED


async def test_of_a_held_row_a_stranger_learns_no_more_than_of_a_free_one(
    open_bench: OpenBench, rows: Rows, database_url: str
) -> None:
    bench = open_bench()
    (id_,) = meetings(rows, 1)
    with holding(database_url, id_):
        stranger = bench.enter(id_, EVE)
        await lock_waiters(rows)

    with pytest.raises(IllegalRequest):
        await stranger


# What is counted


async def test_entries_are_counted_once_a_batch_and_before_their_callers_hear_of_them(
    open_bench: OpenBench, rows: Rows
) -> None:
    order: list[object] = []
    bench = open_bench(on_entries=lambda entered: order.append([timed.entry.outcome for timed in entered]))
    ids = meetings(rows, 3)
    callers = [bench.enter(ids[0]), bench.enter(ids[1], EVE), bench.enter(ids[2]), bench.enter(ids[2], BOB)]
    for caller in callers:
        caller.add_done_callback(lambda done: order.append("told"))

    await asyncio.gather(*callers, return_exceptions=True)

    assert order == [[Outcome.CHARGED, Outcome.CHARGED, Outcome.ALREADY_CHARGED], *["told"] * 4]


async def test_a_batch_of_refusals_counts_no_entries(open_bench: OpenBench, rows: Rows) -> None:
    bench = open_bench()
    (id_,) = meetings(rows, 1)
    with pytest.raises(IllegalRequest):
        await bench.enter(id_, EVE)

    assert bench.entered == []


async def test_an_entry_says_how_long_it_waited_where(open_bench: OpenBench, rows: Rows, database_url: str) -> None:
    bench = open_bench()
    first, second = meetings(rows, 2)
    with holding_coupons(database_url, ANN):
        in_flight = bench.enter(first, ANN, lease_for(PATIENCE_S, waited_s=1.5))
        await lock_waiters(rows)
        queued = bench.enter(second)
        await asyncio.sleep(0.05)  # so long both wait at the least
    timed, timed_queued = await in_flight, await queued
    again = await bench.charging.enter_again(ChargeRequest(first, BOB), lock_wait_s=0.25, guarded_by="lock")

    assert timed.lock_wait_s == 1.5
    assert timed.transaction_s >= 0.05
    assert (timed_queued.lock_wait_s, again.lock_wait_s) == (0.0, 0.25)
    assert timed_queued.queued_s >= 0.05


# Helpers


def submitted(bench: Bench, appointment_id: int, user_id: int) -> PendingCharge:
    return bench.charging.submit(ChargeRequest(appointment_id, user_id), None, guarded_by="row_lock")


async def no_sessions(rows: Rows) -> None:
    """Returns once nobody but we are connected."""
    others = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"

    async def none_is_there() -> bool:
        return not rows.run(others)

    await wait_until_async(none_is_there, what="the sessions' end")


async def once_more(bench: Bench, appointment_id: int) -> TimedEntry:
    """Asks until it is told, as a client does."""
    for entry in range(100):
        try:
            return await bench.enter(appointment_id)
        except DatabaseDown:
            assert entry < 99
    raise AssertionError


class Silence:
    """A listener: from the first COMMIT on nothing goes this way."""

    def __init__(self, proxy: Proxy, way: Way) -> None:
        self._proxy = proxy
        self._way = way
        self._done = False

    def __call__(self, event: ChargeEvent) -> None:
        if isinstance(event, Committing) and not self._done:
            self._done = True
            self._proxy.hold(self._way)
