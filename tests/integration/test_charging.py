"""The charging transaction on a real Postgres: many in one, each with its own outcome, charged once whatever breaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import psycopg2
import pytest

from db.audit import audit
from db.charging import Charges, Entry, HeldElsewhere, Verdict
from db.database import Database, DatabaseLimits
from db.decisions import (
    AppointmentNotOpen,
    ChargeRequest,
    IllegalRequest,
    InsufficientCoupons,
    Outcome,
    Payer,
    Refusal,
    Rules,
    StaleHolder,
)
from db.errors import CommitUnknown, DatabaseDown, DatabaseError, TimedOut
from db.events import ChargeEvent, Committed, Committing, Listener, RowsLocked, Settled, ignore
from tests.harness import PATIENCE_S, Rows, wait_until
from tests.proxy import Cut, Proxy, postgres_proxy

ANN, BOB, EVE = 11, 22, 66
ENTRANT_PAYS = Rules(Payer.ENTRANT, default_price=1)
ENDED, CANCELLED = 2, 3


@pytest.fixture
def charges(database: Database) -> Charges:
    return Charges(database, ENTRANT_PAYS)


@pytest.fixture
def crowded(database_url: str) -> Iterator[Database]:
    """A database that waits as long as a crowd on two processors takes."""
    limits = DatabaseLimits(
        pool_size=12, pool_wait_s=PATIENCE_S, statement_timeout_s=PATIENCE_S, row_lock_timeout_s=PATIENCE_S
    )
    with closing(Database(database_url, limits=limits)) as database:
        yield database


# One batch


def test_a_charge_stands_in_every_table(charges: Charges, rows: Rows) -> None:
    rows.grant(ANN, 5)
    rows.run("INSERT INTO coupon_price VALUES (%s, 3)", BOB)
    appointment_id = rows.appointment(ANN, BOB)

    (entry,) = charges.charge_batch([ChargeRequest(appointment_id, ANN, fencing_token=77)])

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


def test_in_a_mixed_batch_each_gets_its_own_verdict_in_their_order(
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

    verdicts = charges.charge_batch(requests)

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


def test_a_batch_of_refusals_writes_nothing(charges: Charges, rows: Rows) -> None:
    appointment_id = rows.appointment(ANN, BOB)

    verdicts = charges.charge_batch([ChargeRequest(appointment_id, ANN), ChargeRequest(appointment_id, EVE)])

    assert outcomes_of(verdicts) == [InsufficientCoupons, IllegalRequest]
    assert rows.run("SELECT 1 FROM appointment_action UNION ALL SELECT 1 FROM user_consume") == []


def test_a_repeat_in_a_later_batch_shows_the_earlier_charge(charges: Charges, rows: Rows) -> None:
    rows.grant(ANN, 1)
    appointment_id = rows.appointment(ANN, BOB)
    (first,) = charges.charge_batch([ChargeRequest(appointment_id, ANN)])

    (repeat,) = charges.charge_batch([ChargeRequest(appointment_id, BOB)])

    assert isinstance(first, Entry)
    assert isinstance(repeat, Entry)
    assert (repeat.outcome, repeat.charge) == (Outcome.ALREADY_CHARGED, first.charge)
    assert rows.number("SELECT count(*) FROM appointment_action") == 2


def test_prices_are_of_the_other_one_and_zero_is_free(database: Database, rows: Rows) -> None:
    rows.grant(ANN, 10)
    rows.grant(BOB, 10)
    rows.run("INSERT INTO coupon_price VALUES (%s, 4), (%s, 0)", ANN, EVE)
    charges = Charges(database, Rules(Payer.ENTRANT, default_price=3))
    meetings = [rows.appointment(ANN, BOB), rows.appointment(ANN, BOB), rows.appointment(ANN, EVE)]

    charges.charge_batch(
        [ChargeRequest(meetings[0], BOB), ChargeRequest(meetings[1], ANN), ChargeRequest(meetings[2], ANN)]
    )

    assert rows.run("SELECT appointment_id, user_id, count FROM user_consume ORDER BY appointment_id") == [
        (meetings[0], BOB, 4),
        (meetings[1], ANN, 3),
    ]
    assert (rows.balance(ANN), rows.balance(BOB)) == (7, 6)


def test_where_the_inviter_pays_only_the_inviters_entry_charges(database: Database, rows: Rows) -> None:
    rows.grant(ANN, 1)
    appointment_id = rows.appointment(ANN, BOB)
    charges = Charges(database, Rules(Payer.INVITER, default_price=1))

    verdicts = charges.charge_batch([ChargeRequest(appointment_id, user) for user in (BOB, ANN, BOB)])

    assert outcomes_of(verdicts) == [Outcome.FREE, Outcome.CHARGED, Outcome.ALREADY_CHARGED]
    assert audit(database).holds


# Rows that others hold


def test_a_row_held_by_another_session_delays_nobody_else(charges: Charges, database_url: str, rows: Rows) -> None:
    rows.grant(ANN, 9)
    held, free = rows.appointment(ANN, BOB), rows.appointment(ANN, BOB)

    with holding(database_url, held):
        verdicts = charges.charge_batch([ChargeRequest(held, ANN), ChargeRequest(free, ANN), ChargeRequest(held, EVE)])

    assert outcomes_of(verdicts) == [HeldElsewhere, Outcome.CHARGED, HeldElsewhere]
    assert rows.balance(ANN) == 8


def test_alone_it_waits_for_its_row_and_is_charged(charges: Charges, database_url: str, rows: Rows) -> None:
    rows.grant(ANN, 9)
    held = rows.appointment(ANN, BOB)

    with ThreadPoolExecutor(1) as threads:
        with holding(database_url, held):
            alone = threads.submit(charges.charge_waiting, [ChargeRequest(held, ANN)])
            wait_until(lambda: rows.number("SELECT count(*) FROM pg_locks WHERE NOT granted"), what="the waiter")
        verdicts = alone.result(PATIENCE_S)

    assert outcomes_of(verdicts) == [Outcome.CHARGED]


def test_alone_it_sees_what_was_charged_while_it_waited(charges: Charges, crowded: Database, rows: Rows) -> None:
    rows.grant(ANN, 9)
    appointment_id = rows.appointment(ANN, BOB)
    gate = Gate(Committing)
    first = Charges(crowded, ENTRANT_PAYS, listener=gate)
    with ThreadPoolExecutor(2) as threads:
        charging = threads.submit(first.charge_batch, [ChargeRequest(appointment_id, ANN)])
        gate.reached.wait(PATIENCE_S)
        repeating = threads.submit(charges.charge_waiting, [ChargeRequest(appointment_id, BOB)])
        wait_until(lambda: rows.number("SELECT count(*) FROM pg_locks WHERE NOT granted"), what="the waiter")
        gate.open.set()
        (charged,), (repeat,) = charging.result(PATIENCE_S), repeating.result(PATIENCE_S)

    assert isinstance(charged, Entry)
    assert isinstance(repeat, Entry)
    assert (repeat.outcome, repeat.charge) == (Outcome.ALREADY_CHARGED, charged.charge)


def test_alone_it_waits_no_longer_than_the_row_locks_limit(database_url: str, rows: Rows) -> None:
    held = rows.appointment(ANN, BOB)
    limits = DatabaseLimits(row_lock_timeout_s=0.1)
    with (
        closing(Database(database_url, limits=limits)) as database,
        holding(database_url, held),
        pytest.raises(TimedOut),
    ):
        Charges(database, ENTRANT_PAYS).charge_waiting([ChargeRequest(held, ANN)])


def test_a_missing_appointment_is_illegal_in_a_batch_and_alone(charges: Charges, rows: Rows) -> None:
    missing = ChargeRequest(rows.appointment(ANN, BOB) + 1, ANN)

    assert outcomes_of(charges.charge_waiting([missing]) + charges.charge_batch([missing])) == [IllegalRequest] * 2


def test_the_listener_hears_what_is_locked_and_what_is_held_elsewhere(
    database: Database, database_url: str, rows: Rows
) -> None:
    rows.grant(ANN, 9)
    held, free = rows.appointment(ANN, BOB), rows.appointment(ANN, BOB)
    heard: list[ChargeEvent] = []

    with holding(database_url, held):
        Charges(database, ENTRANT_PAYS, listener=heard.append).charge_batch(
            [ChargeRequest(free, ANN), ChargeRequest(held, ANN)]
        )

    assert heard[:2] == [RowsLocked([free], [held]), Committing([held, free])]
    committed = heard[2]
    assert isinstance(committed, Committed)
    assert (committed.entries, committed.charges) == (1, 1)


# Races


def test_batches_in_opposite_orders_charge_once_and_never_deadlock(crowded: Database, rows: Rows) -> None:
    payers = [ANN, BOB, 33, 44]
    for payer in payers:
        rows.grant(payer, 100)
    meetings_people = {rows.appointment(*pair): pair for pair in ((ANN, BOB), (33, 44), (BOB, 33), (44, ANN))}
    meetings = list(meetings_people)
    deadlocks_before = deadlocks(rows)
    charges = Charges(crowded, ENTRANT_PAYS)

    def both_orders(order: int) -> list[Verdict]:
        # Waiting ones: with rows of others skipped there is less to deadlock on.
        requests = [ChargeRequest(id_, user) for id_ in meetings[::order] for user in meetings_people[id_][::order]]
        return [verdict for _ in range(10) for verdict in charges.charge_waiting(requests)]

    with ThreadPoolExecutor(6) as threads:
        verdicts = [verdict for found in threads.map(both_orders, [1, -1] * 3) for verdict in found]

    assert {type(verdict) for verdict in verdicts} == {Entry}
    assert outcomes_of(verdicts).count(Outcome.CHARGED) == len(meetings)
    assert rows.number("SELECT count(*) FROM appointment_action") == len(verdicts)
    assert sum(rows.balance(payer) for payer in payers) == 400 - len(meetings)
    assert deadlocks(rows) == deadlocks_before
    assert audit(crowded).holds


def test_two_batches_that_both_wait_for_rows_and_payers_never_deadlock(crowded: Database, rows: Rows) -> None:
    """The same payers in opposite order over different appointments: only the coupons' rows collide."""
    for payer in range(100, 108):
        rows.grant(payer, 1000)
    pairs = [(payer, payer + 100) for payer in range(100, 108)]
    batches = [[ChargeRequest(rows.appointment(*pair), pair[0]) for pair in pairs[:: (-1) ** n]] for n in range(20)]
    deadlocks_before = deadlocks(rows)

    with ThreadPoolExecutor(6) as threads:
        verdicts = list(threads.map(Charges(crowded, ENTRANT_PAYS).charge_batch, batches))

    assert {outcome for each in verdicts for outcome in outcomes_of(each)} == {Outcome.CHARGED}
    assert [rows.balance(payer) for payer in range(100, 108)] == [980] * 8
    assert deadlocks(rows) == deadlocks_before


def test_a_payers_coupons_are_exact_when_they_run_out_in_the_middle_of_a_crowd(crowded: Database, rows: Rows) -> None:
    rows.grant(ANN, 25)
    rows.run("INSERT INTO coupon_price VALUES (%s, 2)", BOB)
    batches = [[ChargeRequest(rows.appointment(ANN, BOB), ANN) for _ in range(5)] for _ in range(8)]

    with ThreadPoolExecutor(6) as threads:
        verdicts = [
            verdict for each in threads.map(Charges(crowded, ENTRANT_PAYS).charge_batch, batches) for verdict in each
        ]

    assert outcomes_of(verdicts).count(Outcome.CHARGED) == 12
    assert outcomes_of(verdicts).count(InsufficientCoupons) == 28
    assert rows.balance(ANN) == 1
    assert audit(crowded).holds


def test_a_deadlock_with_a_foreign_session_is_run_again(crowded: Database, database_url: str, rows: Rows) -> None:
    rows.grant(ANN, 5)
    appointment_id = rows.appointment(ANN, BOB)
    runs: list[ChargeEvent] = []
    with closing(psycopg2.connect(database_url)) as foreign, foreign.cursor() as cursor:
        # It takes the coupons first and then the appointment, and is never the one that is told.
        cursor.execute("SET deadlock_timeout = '1min'")
        cursor.execute("SELECT 1 FROM user_coupon WHERE user_id = %s FOR UPDATE", (ANN,))

        def want_the_appointment() -> None:
            cursor.execute("SELECT 1 FROM appointment_info WHERE id = %s FOR UPDATE", (appointment_id,))
            foreign.rollback()

        wanting = threading.Thread(target=want_the_appointment)

        def listener(event: ChargeEvent) -> None:
            if isinstance(event, RowsLocked):
                runs.append(event)
                if len(runs) == 1:
                    wanting.start()
                    wait_until(lambda: rows.number("SELECT count(*) FROM pg_locks WHERE NOT granted"))

        verdicts = Charges(crowded, ENTRANT_PAYS, listener=listener).charge_waiting(
            [ChargeRequest(appointment_id, ANN)]
        )
        wanting.join()

    assert outcomes_of(verdicts) == [Outcome.CHARGED]
    assert len(runs) == 2
    assert rows.balance(ANN) == 4


# Fencing


def test_a_holder_whose_token_is_below_the_rows_fence_is_stale(charges: Charges, rows: Rows) -> None:
    rows.grant(ANN, 5)
    appointment_id = rows.appointment(ANN, BOB)
    rows.run("UPDATE appointment_info SET lock_fence = 100 WHERE id = %s", appointment_id)

    assert outcomes_of(charges.charge_batch([ChargeRequest(appointment_id, ANN, 99)])) == [StaleHolder]
    assert rows.run("SELECT 1 FROM appointment_action UNION ALL SELECT 1 FROM user_consume") == []
    assert outcomes_of(charges.charge_batch([ChargeRequest(appointment_id, ANN, 101)])) == [Outcome.CHARGED]
    assert rows.one("SELECT lock_fence FROM appointment_info") == 101
    assert rows.one("SELECT lock_fence FROM user_consume") == 101
    assert outcomes_of(charges.charge_batch([ChargeRequest(appointment_id, BOB, 100)])) == [StaleHolder]


def test_tokens_as_large_as_redis_gives_them_fit(charges: Charges, rows: Rows) -> None:
    rows.grant(ANN, 1)
    token = 2**62
    charges.charge_batch([ChargeRequest(rows.appointment(ANN, BOB), ANN, token)])

    assert rows.one("SELECT lock_fence FROM user_consume") == token


# What breaks


@pytest.mark.parametrize("event_type", [RowsLocked, Committing])
def test_a_connection_killed_before_commit_writes_nothing_and_is_run_once_more(
    database: Database, rows: Rows, event_type: type
) -> None:
    rows.grant(ANN, 5)
    appointment_id = rows.appointment(ANN, BOB)
    seen: list[int] = []

    def kill_the_first(event: ChargeEvent) -> None:
        if isinstance(event, event_type):
            seen.append(rows.number("SELECT count(*) FROM user_consume"))
            if len(seen) == 1:
                kill_backends(rows)

    (verdict,) = Charges(database, ENTRANT_PAYS, listener=kill_the_first).charge_batch(
        [ChargeRequest(appointment_id, ANN)]
    )

    assert outcomes_of([verdict]) == [Outcome.CHARGED]
    assert seen == [0, 0]
    assert rows.balance(ANN) == 4
    assert rows.number("SELECT count(*) FROM appointment_action") == 1


def test_a_connection_killed_each_time_is_down_and_nothing_is_written(database: Database, rows: Rows) -> None:
    rows.grant(ANN, 5)
    appointment_id = rows.appointment(ANN, BOB)

    def kill(event: ChargeEvent) -> None:
        if isinstance(event, RowsLocked):
            kill_backends(rows)

    with pytest.raises(DatabaseDown):
        Charges(database, ENTRANT_PAYS, listener=kill).charge_batch([ChargeRequest(appointment_id, ANN)])
    assert rows.balance(ANN) == 5
    assert rows.run("SELECT 1 FROM appointment_action UNION ALL SELECT 1 FROM user_consume") == []


@contextmanager
def proxied_charges(
    database_url: str, *, settle_within_s: float = PATIENCE_S, listener: Listener = ignore
) -> Iterator[tuple[Proxy, Charges]]:
    """Charges that reach the database through a proxy."""
    proxy, url = postgres_proxy(database_url)
    with proxy, closing(Database(url)) as database:
        yield proxy, Charges(database, ENTRANT_PAYS, settle_within_s=settle_within_s, listener=listener)


@pytest.mark.parametrize(("cut", "had_committed"), [(Cut.AFTER_ANSWERED, True), (Cut.BEFORE_FORWARDING, False)])
def test_a_connection_lost_during_commit_is_settled_by_reading(
    database_url: str, rows: Rows, cut: Cut, had_committed: bool
) -> None:
    rows.grant(ANN, 5)
    first, second = rows.appointment(ANN, BOB), rows.appointment(ANN, BOB)
    heard: list[ChargeEvent] = []
    with proxied_charges(database_url, listener=heard.append) as (proxy, charges):
        proxy.cut_once(cut, at=b"COMMIT")

        verdicts = charges.charge_batch(
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
def test_a_free_entry_lost_during_commit_has_one_row(database_url: str, rows: Rows, cut: Cut) -> None:
    rows.run("INSERT INTO coupon_price VALUES (%s, 0)", BOB)
    appointment_id = rows.appointment(ANN, BOB)
    with proxied_charges(database_url) as (proxy, charges):
        proxy.cut_once(cut, at=b"COMMIT")

        verdicts = charges.charge_batch([ChargeRequest(appointment_id, ANN)])

    assert outcomes_of(verdicts) == [Outcome.FREE]
    assert rows.number("SELECT count(*) FROM appointment_action") == 1


@pytest.mark.parametrize("cut", list(Cut))
def test_refusals_lost_during_commit_are_refusals_still(database_url: str, rows: Rows, cut: Cut) -> None:
    appointment_id = rows.appointment(ANN, BOB)
    with proxied_charges(database_url) as (proxy, charges):
        proxy.cut_once(cut, at=b"COMMIT")

        assert outcomes_of(charges.charge_batch([ChargeRequest(appointment_id, ANN)])) == [InsufficientCoupons]


def test_a_repeat_lost_during_commit_is_not_taken_for_the_charge_that_stands(database_url: str, rows: Rows) -> None:
    """The charge was there before, so that alone does not tell whether this entry is: its own row does."""
    rows.grant(ANN, 5)
    appointment_id = rows.appointment(ANN, BOB)
    with proxied_charges(database_url) as (proxy, charges):
        charges.charge_batch([ChargeRequest(appointment_id, ANN)])
        proxy.cut_once(Cut.BEFORE_FORWARDING, at=b"COMMIT")

        verdicts = charges.charge_batch([ChargeRequest(appointment_id, BOB)])

    assert outcomes_of(verdicts) == [Outcome.ALREADY_CHARGED]
    assert rows.run("SELECT user_id FROM appointment_action ORDER BY id") == [(ANN,), (BOB,)]


@pytest.mark.parametrize("cut", list(Cut))
def test_a_commit_that_cannot_be_settled_is_unknown_within_its_bound(database_url: str, rows: Rows, cut: Cut) -> None:
    rows.grant(ANN, 5)
    appointment_id = rows.appointment(ANN, BOB)
    with proxied_charges(database_url, settle_within_s=0.3) as (proxy, charges):
        proxy.cut_once(cut, at=b"COMMIT", then_away=True)
        started_at_s = time.monotonic()

        with pytest.raises(CommitUnknown):
            charges.charge_batch([ChargeRequest(appointment_id, ANN)])

        assert 0.3 <= time.monotonic() - started_at_s < 15
        proxy.come_back()
        # Retrying is safe, whatever had happened.
        (again,) = charges.charge_batch([ChargeRequest(appointment_id, ANN)])
    expected = Outcome.ALREADY_CHARGED if cut is Cut.AFTER_ANSWERED else Outcome.CHARGED
    assert outcomes_of([again]) == [expected]
    assert rows.balance(ANN) == 4


def test_a_database_that_comes_back_in_time_settles_it(database_url: str, rows: Rows) -> None:
    rows.grant(ANN, 5)
    appointment_id = rows.appointment(ANN, BOB)
    with proxied_charges(database_url) as (proxy, charges), ThreadPoolExecutor(1) as threads:
        proxy.cut_once(Cut.AFTER_ANSWERED, at=b"COMMIT", then_away=True)
        charging = threads.submit(charges.charge_batch, [ChargeRequest(appointment_id, ANN)])
        assert proxy.cut_happened.wait(PATIENCE_S)
        proxy.come_back()

        assert outcomes_of(charging.result(PATIENCE_S)) == [Outcome.CHARGED]
    assert rows.balance(ANN) == 4


def test_settling_waits_for_a_commit_that_is_still_under_way(database_url: str, rows: Rows) -> None:
    """The connection is gone for us, while its server has the transaction open: its rows are still locked."""
    rows.grant(ANN, 5)
    appointment_id = rows.appointment(ANN, BOB)
    with (
        proxied_charges(database_url) as (proxy, charges),
        closing(psycopg2.connect(database_url)) as foreign,
        ThreadPoolExecutor(1) as threads,
    ):
        held = threading.Event()

        def hold_the_row() -> None:
            # As the open transaction would: from before the settling reads until after it has begun to wait.
            assert proxy.cut_happened.wait(PATIENCE_S)
            with foreign.cursor() as cursor:
                cursor.execute("SELECT 1 FROM appointment_info WHERE id = %s FOR UPDATE", (appointment_id,))
                held.set()
                wait_until(lambda: rows.number("SELECT count(*) FROM pg_locks WHERE NOT granted"))
            foreign.rollback()

        holder = threads.submit(hold_the_row)
        proxy.cut_once(Cut.AFTER_ANSWERED, at=b"COMMIT", then_away=True)
        with ThreadPoolExecutor(1) as others:
            charging = others.submit(charges.charge_batch, [ChargeRequest(appointment_id, ANN)])
            assert held.wait(PATIENCE_S)
            proxy.come_back()
            assert outcomes_of(charging.result(PATIENCE_S)) == [Outcome.CHARGED]
        holder.result(PATIENCE_S)
    assert rows.number("SELECT count(*) FROM appointment_action") == 1


def test_a_charge_without_its_flag_is_an_error_and_changes_nothing(charges: Charges, rows: Rows) -> None:
    rows.grant(ANN, 5)
    corrupt, sound = rows.appointment(ANN, BOB), rows.appointment(ANN, BOB)
    lose_the_flag(rows, corrupt)

    with pytest.raises(DatabaseError) as caught:
        charges.charge_batch([ChargeRequest(sound, ANN), ChargeRequest(corrupt, ANN)])

    assert type(caught.value) is DatabaseError
    assert rows.balance(ANN) == 5
    assert rows.number("SELECT count(*) FROM appointment_action") == 0
    assert rows.run("SELECT appointment_id FROM user_consume") == [(corrupt,)]


# Helpers


class Gate:
    """A listener that stops the transaction at an event until it is opened."""

    def __init__(self, event_type: type) -> None:
        self._event_type = event_type
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, event: ChargeEvent) -> None:
        if isinstance(event, self._event_type):
            self.reached.set()
            assert self.open.wait(PATIENCE_S)


@contextmanager
def holding(database_url: str, appointment_id: int) -> Iterator[None]:
    """Another session holds the appointment's row."""
    with closing(psycopg2.connect(database_url)) as other:
        other.cursor().execute("SELECT 1 FROM appointment_info WHERE id = %s FOR UPDATE", (appointment_id,))
        yield
        other.rollback()


def outcomes_of(verdicts: Sequence[Verdict]) -> list[Outcome | type[Refusal]]:
    return [verdict.outcome if isinstance(verdict, Entry) else type(verdict) for verdict in verdicts]


def kill_backends(rows: Rows) -> None:
    """Ends our sessions that are in a transaction, and waits until they are gone."""
    ours = "application_name = 'chargeonce' AND state LIKE 'idle in transaction%%' AND datname = current_database()"
    rows.run(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {ours}", ())


def lose_the_flag(rows: Rows, appointment_id: int) -> None:
    """A charge stands in user_consume, and is_consume does not say so."""
    rows.run(
        "INSERT INTO user_consume (appointment_id, user_id, other_user_id, coupon_id, prop_id, count)"
        " VALUES (%s, %s, %s, 1, 1, 1)",
        appointment_id,
        ANN,
        BOB,
    )


def deadlocks(rows: Rows) -> int:
    rows.run("SELECT pg_stat_force_next_flush()")
    return rows.number("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
