"""Each mutant of the charge has its defect on a real Postgres, where the product, asked the same, has none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing

import pytest

from db.charging import Charges, Entry
from db.database import DatabaseLimits, connector
from db.decisions import ChargeRequest, InsufficientCoupons, Outcome
from db.errors import Conflict, DatabaseDown
from db.events import ChargeEvent, Committed, Decided
from tests.chaos.mutants import MUTANTS, UNSEEN_MUTANTS
from tests.chaos.mutants.in_child import in_child
from tests.harness import Rows, wait_until
from tests.integration.charging_helpers import (
    ANN,
    BOB,
    ENTRANT_PAYS,
    EVE,
    deadlocks,
    holding_coupons,
    in_own_loop,
    lock_waiters,
    one_lane,
    patient_charges,
    proxied_charges,
)
from tests.proxy import Cut

Trial = Callable[[str], Awaitable[bool]]  # of the database's URL; whether the defect shows

ALL = {**MUTANTS, **UNSEEN_MUTANTS}
WAITS = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
PAYERS = range(100, 108)
BATCHES, ROUNDS = 6, 25


async def _race(database_url: str, rows: Rows, first: ChargeRequest, second: ChargeRequest) -> None:
    """The second begins when the first has decided; that one goes on once the second is done, or waits for it."""
    other = threading.Thread(
        target=in_own_loop,
        args=(database_url, lambda charges: charges.charge_waiting([second])),
        kwargs={"listener": lambda event: None},
    )

    def let_the_other_in(event: ChargeEvent) -> None:
        if isinstance(event, Decided) and other.ident is None:
            other.start()
            wait_until(lambda: not other.is_alive() or rows.number(WAITS) > 0, what="the other charge")

    with patient_charges(database_url, listener=let_the_other_in) as charges:
        await charges.charge_batch([first])
    await asyncio.to_thread(other.join)


async def two_who_race_are_both_charged(database_url: str) -> bool:
    """Two participants at once."""
    rows = Rows(database_url)
    rows.grant(ANN, 5)
    rows.grant(BOB, 5)
    appointment_id = rows.appointment(ANN, BOB)
    await _race(database_url, rows, ChargeRequest(appointment_id, ANN, 1), ChargeRequest(appointment_id, BOB, 2))
    return rows.number("SELECT count(*) FROM user_consume") == 2


async def the_last_coupon_is_spent_twice(database_url: str) -> bool:
    """One payer, two appointments."""
    rows = Rows(database_url)
    rows.grant(ANN, 1)
    one, two = rows.appointment(ANN, BOB), rows.appointment(ANN, BOB)
    await _race(database_url, rows, ChargeRequest(one, ANN), ChargeRequest(two, ANN))
    return rows.balance(ANN) == -1


async def a_payment_is_forgotten(database_url: str) -> bool:
    """One payer, two appointments, coupons enough."""
    rows = Rows(database_url)
    rows.grant(ANN, 5)
    one, two = rows.appointment(ANN, BOB), rows.appointment(ANN, BOB)
    await _race(database_url, rows, ChargeRequest(one, ANN), ChargeRequest(two, ANN))
    return rows.balance(ANN) == 4 and rows.number("SELECT count(*) FROM user_consume") == 2


async def one_is_refused_for_another(database_url: str) -> bool:
    """Eve has no coupons, and shares Ann's transaction."""
    rows = Rows(database_url)
    rows.grant(ANN, 5)
    asked = [ChargeRequest(rows.appointment(ANN, BOB), ANN), ChargeRequest(rows.appointment(EVE, BOB), EVE)]
    with patient_charges(database_url) as charges:
        try:
            await charges.charge_batch(asked)
        except InsufficientCoupons:
            return rows.balance(ANN) == 4
    return False


async def _after_lost_commit(database_url: str, cut: Cut) -> tuple[object, int]:
    """What Ann is told when the connection is cut at COMMIT, and how many charges there are."""
    rows = Rows(database_url)
    rows.grant(ANN, 5)
    asked = [ChargeRequest(rows.appointment(ANN, BOB), ANN)]
    with proxied_charges(database_url) as (proxy, charges):
        proxy.cut_once(cut, at=b"COMMIT")
        told: object
        try:
            (verdict,) = await charges.charge_batch(asked)
            told = verdict.outcome if isinstance(verdict, Entry) else type(verdict)
        except DatabaseDown:
            told = DatabaseDown
    return told, rows.number("SELECT count(*) FROM user_consume")


async def who_is_charged_is_told_that_nothing_was_written(database_url: str) -> bool:
    """The answer to COMMIT is lost."""
    return await _after_lost_commit(database_url, Cut.AFTER_ANSWERED) == (DatabaseDown, 1)


async def who_is_charged_is_told_that_another_was_before(database_url: str) -> bool:
    """The answer to COMMIT is lost."""
    return await _after_lost_commit(database_url, Cut.AFTER_ANSWERED) == (Outcome.ALREADY_CHARGED, 1)


async def who_is_not_charged_is_told_so_nevertheless(database_url: str) -> bool:
    """COMMIT itself is lost."""
    return await _after_lost_commit(database_url, Cut.BEFORE_FORWARDING) == (Outcome.CHARGED, 0)


async def a_charge_is_there_before_its_entry(database_url: str) -> bool:
    """Seen from outside when the charge is said to be committed."""
    rows = Rows(database_url)
    rows.grant(ANN, 5)
    seen: list[tuple[int, int]] = []

    def look(event: ChargeEvent) -> None:
        if isinstance(event, Committed):
            counts = rows.run("SELECT (SELECT count(*) FROM user_consume), (SELECT count(*) FROM appointment_action)")
            seen.extend(counts)  # type: ignore[arg-type]

    with patient_charges(database_url, listener=look) as charges:
        await charges.charge_batch([ChargeRequest(rows.appointment(ANN, BOB), ANN)])
    assert rows.number("SELECT count(*) FROM appointment_action") == 1
    return seen == [(1, 0)]


async def a_charge_leaves_no_flag(database_url: str) -> bool:
    """On its appointment's row."""
    return await _row_after_charge(database_url, fencing_token=7) == (False, 7)


async def a_charge_leaves_no_token(database_url: str) -> bool:
    """On its appointment's row."""
    return await _row_after_charge(database_url, fencing_token=7) == (True, None)


async def _row_after_charge(database_url: str, *, fencing_token: int) -> tuple[object, ...]:
    rows = Rows(database_url)
    rows.grant(ANN, 5)
    appointment_id = rows.appointment(ANN, BOB)
    with patient_charges(database_url) as charges:
        await charges.charge_batch([ChargeRequest(appointment_id, ANN, fencing_token)])
    (row,) = rows.run("SELECT is_consume, lock_fence FROM appointment_info WHERE id = %s", appointment_id)
    return row


async def a_lane_is_lost_with_its_transaction(database_url: str) -> bool:
    """Whose server is away."""
    charging = one_lane(Charges(f"{database_url}_that_is_not_there", ENTRANT_PAYS), batch_size=1)
    try:
        with pytest.raises(DatabaseDown):
            await charging.submit(ChargeRequest(1, ANN), None, guarded_by="row_lock")
        _, busy, _ = charging.queues["together"]
    finally:
        await charging.close()
    return busy == 1


async def a_second_entry_leaves_no_row(database_url: str) -> bool:
    """By the way of those who come after the charge."""
    rows = Rows(database_url)
    rows.grant(ANN, 5)
    asked = [ChargeRequest(rows.appointment(ANN, BOB), ANN)]
    with patient_charges(database_url) as charges:
        await charges.charge_batch(asked)
        (again,) = await charges.enter_again(asked)
    assert isinstance(again, Entry)
    return rows.number("SELECT count(*) FROM appointment_action") == 1


async def batches_deadlock(database_url: str) -> bool:
    """Batches of the same payers begin at once, as somebody lets go of one of them; until two wait for each other."""
    rows = Rows(database_url)
    for user_id in PAYERS:
        rows.grant(user_id, 1000)
    with patient_charges(database_url) as charges:
        for _ in range(ROUNDS):
            batches = [[ChargeRequest(rows.appointment(payer, EVE), payer) for payer in PAYERS] for _ in range(BATCHES)]
            with holding_coupons(database_url, PAYERS[len(PAYERS) // 2]):
                charging = [asyncio.create_task(charges.charge_batch(batch)) for batch in batches]
                await lock_waiters(rows, BATCHES)
            for outcome in await asyncio.gather(*charging, return_exceptions=True):
                # Who has lost against others too often gives up.
                if isinstance(outcome, BaseException) and not isinstance(outcome, Conflict):
                    raise outcome
            if deadlocks(rows):
                return True
    return False


async def commits_are_not_waited_for(database_url: str) -> bool:
    """As its sessions are told."""
    with closing(connector(database_url, DatabaseLimits()).connect()) as session, session.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        return bool(cursor.fetchone() == ("off",))


TRIALS: dict[str, Trial] = {
    "no-guard": two_who_race_are_both_charged,
    "entry-log": two_who_race_are_both_charged,
    "lock-only": two_who_race_are_both_charged,
    "release-before-commit": two_who_race_are_both_charged,
    "stale-read": two_who_race_are_both_charged,
    "coupons-not-locked": the_last_coupon_is_spent_twice,
    "coupons-overwritten": a_payment_is_forgotten,
    "refused-fails-batch": one_is_refused_for_another,
    "unknown-as-refused": who_is_charged_is_told_that_nothing_was_written,
    "no-settling": who_is_charged_is_told_that_another_was_before,
    "unknown-as-committed": who_is_not_charged_is_told_so_nevertheless,
    "entry-outside": a_charge_is_there_before_its_entry,
    "flag-forgotten": a_charge_leaves_no_flag,
    "fence-not-written": a_charge_leaves_no_token,
    "lane-lost": a_lane_is_lost_with_its_transaction,
    "repeat-without-entry": a_second_entry_leaves_no_row,
    "no-lock-order": batches_deadlock,
    "asynchronous-commit": commits_are_not_waited_for,
}


@pytest.mark.parametrize("name", TRIALS)
def test_each_mutant_of_the_charge_has_its_defect(name: str, database_url: str, rows: Rows) -> None:
    mutant = ALL[name]
    for statement in mutant.schema:
        rows.run(statement)
    assert in_child(mutant, TRIALS[name], database_url)


@pytest.mark.parametrize("trial", dict.fromkeys(TRIALS.values()), ids=lambda trial: trial.__name__)
def test_the_product_has_none_of_them_even_without_the_constraints(trial: Trial, database_url: str, rows: Rows) -> None:
    for statement in sorted({statement for mutant in ALL.values() for statement in mutant.schema}):
        rows.run(statement)
    assert not in_child(None, trial, database_url)
