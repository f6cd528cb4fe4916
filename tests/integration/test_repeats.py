"""Entries into what is charged, on a real Postgres: a row each, no lock, and nothing for whoever is not let in."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import closing

import psycopg2
import pytest

from db.charging import Charges, Entry, NotChargedYet, Progress
from db.database import DatabaseLimits
from db.decisions import AppointmentNotOpen, ChargeRequest, IllegalRequest, Outcome, Rules
from db.decisions import Payer as PayerRule
from db.errors import CommitUnknown, DatabaseDown
from db.events import ChargeEvent, Committed, Committing, Settled
from tests.harness import PATIENCE_S, Rows, wait_until_async
from tests.integration.charging_helpers import (
    ANN,
    BOB,
    ENTRANT_PAYS,
    EVE,
    frozen,
    happened,
    holding_coupons,
    our_backend,
    outcomes_of,
    patient_charges,
    proxied_charges,
    session_ends,
)
from tests.proxy import Cut

ENDED, CANCELLED = 2, 3


@pytest.fixture
async def charges(database_url: str) -> AsyncIterator[Charges]:
    with patient_charges(database_url) as charges:
        yield charges


async def charged_appointment(charges: Charges, rows: Rows) -> int:
    """An appointment of ANN and BOB for which ANN has paid."""
    rows.grant(ANN, 1)
    appointment_id = rows.appointment(ANN, BOB)
    assert outcomes_of(await charges.charge_batch([ChargeRequest(appointment_id, ANN)])) == [Outcome.CHARGED]
    return appointment_id


def entries_after(rows: Rows, appointment_id: int) -> list[tuple[object, ...]]:
    """Who has entered, in their order, after the one who was charged."""
    return rows.run(
        "SELECT user_id, created_at FROM appointment_action WHERE appointment_id = %s ORDER BY id OFFSET 1",
        appointment_id,
    )


# Who is let in


async def test_each_repeat_writes_one_entry_and_shows_the_charge_that_stands(charges: Charges, rows: Rows) -> None:
    first = await charged_appointment(charges, rows)
    second = await charged_appointment(charges, rows)
    requests = [ChargeRequest(second, ANN), ChargeRequest(first, BOB), ChargeRequest(second, ANN, other_user_id=BOB)]

    verdicts = await charges.enter_again(requests)

    assert outcomes_of(verdicts) == [Outcome.ALREADY_CHARGED] * 3
    entries = [verdict for verdict in verdicts if isinstance(verdict, Entry)]
    assert entries_after(rows, second) == [(ANN, entries[0].entered_at), (ANN, entries[2].entered_at)]
    assert entries_after(rows, first) == [(BOB, entries[1].entered_at)]
    told = [entry.charge and (entry.charge.id, entry.charge.payer_id, entry.charge.charged_at) for entry in entries]
    written = {
        id_: rows.run("SELECT id, user_id, created_at FROM user_consume WHERE appointment_id = %s", id_)[0]
        for id_ in (first, second)
    }
    assert told == [written[second], written[first], written[second]]
    assert rows.balance(ANN) == 0


async def test_what_is_no_repeat_is_refused_or_not_charged_yet_and_writes_nothing(charges: Charges, rows: Rows) -> None:
    rows.grant(EVE, 5)
    charged, ended, cancelled = [await charged_appointment(charges, rows) for _ in range(3)]
    open_, poor = rows.appointment(EVE, BOB), rows.appointment(ANN, BOB)
    rows.run("UPDATE appointment_info SET status = %s WHERE id = %s", ENDED, ended)
    rows.run("UPDATE appointment_info SET status = %s WHERE id = %s", CANCELLED, cancelled)
    no_repeats = [
        ChargeRequest(open_, EVE),  # would be charged
        ChargeRequest(poor, ANN),  # could not pay
        ChargeRequest(charged, EVE),  # a stranger
        ChargeRequest(charged, ANN, other_user_id=EVE),  # another partner
        ChargeRequest(cancelled + 10**6, ANN),  # no such appointment
        ChargeRequest(ended, ANN),
        ChargeRequest(cancelled, ANN),
    ]
    verdicts = [
        NotChargedYet,
        NotChargedYet,
        IllegalRequest,
        IllegalRequest,
        NotChargedYet,
        AppointmentNotOpen,
        AppointmentNotOpen,
    ]
    before = rows.run("SELECT id FROM appointment_action")

    assert outcomes_of(await charges.enter_again(no_repeats)) == verdicts
    assert rows.run("SELECT id FROM appointment_action") == before
    assert (rows.balance(ANN), rows.balance(EVE)) == (0, 5)

    # Beside somebody who is let in, as well.
    mixed = await charges.enter_again([*no_repeats, ChargeRequest(charged, BOB)])
    assert outcomes_of(mixed) == [*verdicts, Outcome.ALREADY_CHARGED]
    assert rows.number("SELECT count(*) FROM appointment_action") == len(before) + 1


async def test_what_is_free_is_no_repeat(database_url: str, rows: Rows) -> None:
    """Who enters free of charge leaves the appointment to be charged, so it is decided under the lock."""
    appointment_id = rows.appointment(ANN, BOB)
    with patient_charges(database_url, rules=Rules(PayerRule.INVITER, default_price=1)) as charges:
        assert outcomes_of(await charges.enter_again([ChargeRequest(appointment_id, BOB)])) == [NotChargedYet]
    assert rows.run("SELECT 1 FROM appointment_action") == []


async def test_no_fence_turns_a_repeat_away(charges: Charges, rows: Rows) -> None:
    appointment_id = await charged_appointment(charges, rows)
    rows.run("UPDATE appointment_info SET lock_fence = 100 WHERE id = %s", appointment_id)

    assert outcomes_of(await charges.enter_again([ChargeRequest(appointment_id, BOB)])) == [Outcome.ALREADY_CHARGED]


async def test_a_batch_of_nobody_asks_for_nothing_and_fails_nobody(charges: Charges) -> None:
    assert await charges.enter_again([]) == []
    assert await charges.charge_batch([]) == []
    assert await charges.charged_among([]) == []


# No lock


@pytest.mark.parametrize("mode", ["FOR UPDATE", "FOR NO KEY UPDATE"])
async def test_it_waits_for_nobody_who_holds_the_row_or_the_coupons(
    charges: Charges, database_url: str, rows: Rows, mode: str
) -> None:
    appointment_id = await charged_appointment(charges, rows)
    with closing(psycopg2.connect(database_url)) as foreign, holding_coupons(database_url, ANN):
        foreign.cursor().execute(f"SELECT 1 FROM appointment_info WHERE id = %s {mode}", (appointment_id,))

        async with asyncio.timeout(PATIENCE_S / 2):  # half of what the row lock may take
            verdicts = await charges.enter_again([ChargeRequest(appointment_id, user) for user in (ANN, BOB)])
        foreign.rollback()

    assert outcomes_of(verdicts) == [Outcome.ALREADY_CHARGED] * 2


async def test_it_holds_no_row_that_another_could_want(database_url: str, rows: Rows) -> None:
    """Looked at in the middle of its transaction: after its reads, before its writes."""
    looked: list[object] = []

    def lock_everything() -> None:
        looked.extend(rows.run("SELECT id FROM appointment_info WHERE id = %s FOR UPDATE NOWAIT", appointment_id))
        looked.extend(rows.run("SELECT 1 FROM user_coupon FOR UPDATE NOWAIT"))
        looked.extend(rows.run("SELECT 1 FROM user_consume FOR UPDATE NOWAIT"))

    with patient_charges(database_url) as charges:
        appointment_id = await charged_appointment(charges, rows)
        await charges.enter_again([ChargeRequest(appointment_id, BOB)], AtCommit(lock_everything))

    assert looked == [(appointment_id,), (1,), (1,)]


# What breaks


@pytest.mark.parametrize(("cut", "had_committed"), [(Cut.AFTER_ANSWERED, True), (Cut.BEFORE_FORWARDING, False)])
async def test_a_repeat_whose_commit_is_lost_is_settled_and_has_one_row(
    database_url: str, rows: Rows, cut: Cut, had_committed: bool
) -> None:
    heard: list[ChargeEvent] = []
    with proxied_charges(database_url, listener=heard.append) as (proxy, charges):
        appointment_id = await charged_appointment(charges, rows)
        proxy.cut_once(cut, at=b"COMMIT")

        verdicts = await charges.enter_again([ChargeRequest(appointment_id, user) for user in (BOB, EVE, ANN)])

        assert proxy.cut_happened.is_set()
    assert outcomes_of(verdicts) == [Outcome.ALREADY_CHARGED, IllegalRequest, Outcome.ALREADY_CHARGED]
    assert [event for event in heard if isinstance(event, Settled)] == [Settled([appointment_id], had_committed)]
    entries = [verdict for verdict in verdicts if isinstance(verdict, Entry)]
    assert entries_after(rows, appointment_id) == [(BOB, entries[0].entered_at), (ANN, entries[1].entered_at)]


@pytest.mark.parametrize("cut", list(Cut))
async def test_a_repeat_that_cannot_be_settled_is_unknown_and_may_be_asked_for_again(
    database_url: str, rows: Rows, cut: Cut
) -> None:
    with proxied_charges(database_url, settle_within_s=0.3) as (proxy, charges):
        appointment_id = await charged_appointment(charges, rows)
        proxy.cut_once(cut, at=b"COMMIT", then_away=True)
        with pytest.raises(CommitUnknown):
            await charges.enter_again([ChargeRequest(appointment_id, BOB)])
        proxy.come_back()

        again = await charges.enter_again([ChargeRequest(appointment_id, BOB)])

    assert outcomes_of(again) == [Outcome.ALREADY_CHARGED]
    assert len(entries_after(rows, appointment_id)) == (2 if cut is Cut.AFTER_ANSWERED else 1)


async def test_settling_a_repeat_leaves_nothing_of_its_own_behind(database_url: str, rows: Rows) -> None:
    with proxied_charges(database_url) as (proxy, charges):
        appointment_id = await charged_appointment(charges, rows)
        proxy.cut_once(Cut.BEFORE_FORWARDING, at=b"COMMIT")
        await charges.enter_again([ChargeRequest(appointment_id, BOB)])

    assert rows.run("SELECT 1 FROM appointment_action WHERE type <> 1 OR appointment_id = 0") == []


async def test_settling_a_repeat_waits_for_the_end_of_the_lost_transaction(database_url: str, rows: Rows) -> None:
    """Its connection is gone for us, while its server has just written the entry: another one holds that id."""
    with (
        proxied_charges(database_url) as (proxy, charges),
        closing(psycopg2.connect(database_url)) as lost,
    ):
        appointment_id = await charged_appointment(charges, rows)
        proxy.cut_once(Cut.BEFORE_FORWARDING, at=b"COMMIT", then_away=True)
        entering = asyncio.create_task(charges.enter_again([ChargeRequest(appointment_id, BOB)]))
        await happened(proxy.cut_happened)
        entry_id = rows.number("SELECT last_value FROM appointment_action_id_seq")
        lost.cursor().execute(
            "INSERT INTO appointment_action (id, appointment_id, user_id, type) VALUES (%s, %s, %s, 1)",
            (entry_id, appointment_id, BOB),
        )
        proxy.come_back()
        await waits_for_a_transaction(rows)
        assert not entering.done()
        lost.rollback()

        assert outcomes_of(await entering) == [Outcome.ALREADY_CHARGED]
    assert len(entries_after(rows, appointment_id)) == 1


async def test_another_entry_of_the_same_id_is_not_taken_for_the_lost_one(database_url: str, rows: Rows) -> None:
    """After a crash a sequence may give the same id to somebody else."""
    with proxied_charges(database_url) as (proxy, charges):
        appointment_id = await charged_appointment(charges, rows)
        proxy.cut_once(Cut.BEFORE_FORWARDING, at=b"COMMIT", then_away=True)
        entering = asyncio.create_task(charges.enter_again([ChargeRequest(appointment_id, BOB)]))
        await happened(proxy.cut_happened)
        entry_id = rows.number("SELECT last_value FROM appointment_action_id_seq")
        rows.run(
            "INSERT INTO appointment_action (id, appointment_id, user_id, type) VALUES (%s, %s, %s, 1)",
            entry_id,
            appointment_id,
            ANN,
        )
        proxy.come_back()
        (entry,) = await entering

    assert isinstance(entry, Entry)
    assert [user for user, _ in entries_after(rows, appointment_id)] == [ANN, BOB]
    assert entries_after(rows, appointment_id)[1] == (BOB, entry.entered_at)


async def test_a_repeat_whose_server_froze_with_its_commit_is_not_told_before_it_is_sure(
    database_url: str, rows: Rows
) -> None:
    """The frozen session may wake up later and write after all: whoever was let in has an entry, whichever it is."""
    with patient_charges(database_url) as filling:
        appointment_id = await charged_appointment(filling, rows)
    limits = DatabaseLimits(statement_timeout_s=1.0, row_lock_timeout_s=1.0)
    stopped: list[int] = []

    def freeze() -> None:
        if not stopped:
            stopped.append(our_backend(rows))
            os.kill(stopped[0], signal.SIGSTOP)

    with closing(Charges(database_url, ENTRANT_PAYS, limits=limits, settle_within_s=PATIENCE_S)) as charges:
        try:
            verdicts = await charges.enter_again([ChargeRequest(appointment_id, BOB)], AtCommit(freeze))
        finally:
            os.kill(stopped[0], signal.SIGCONT)

        assert outcomes_of(verdicts) == [Outcome.ALREADY_CHARGED]
        await session_ends(rows, stopped[0])
    (entry,) = verdicts
    assert isinstance(entry, Entry)
    assert (BOB, entry.entered_at) in entries_after(rows, appointment_id)


async def test_a_repeat_that_is_cancelled_before_it_commits_writes_nothing(database_url: str, rows: Rows) -> None:
    with patient_charges(database_url) as charges:
        appointment_id = await charged_appointment(charges, rows)
        pid = our_backend(rows)
        progress = Progress()
        with frozen(pid):
            entering = asyncio.create_task(charges.enter_again([ChargeRequest(appointment_id, BOB)], progress))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not progress.may_have_committed
            entering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await entering
        await session_ends(rows, pid)

    assert entries_after(rows, appointment_id) == []


# Who is charged


async def test_the_charged_ones_among_many_are_found_without_a_lock(
    charges: Charges, database_url: str, rows: Rows
) -> None:
    charged = [await charged_appointment(charges, rows) for _ in range(2)]
    others = [rows.appointment(ANN, BOB), charged[-1] + 10**6]
    with closing(psycopg2.connect(database_url)) as foreign:
        foreign.cursor().execute("SELECT 1 FROM appointment_info FOR UPDATE")

        assert sorted(await charges.charged_among({*charged, *others})) == charged
        assert await charges.charged_among(others) == []
        foreign.rollback()


async def test_who_asks_an_absent_database_who_is_charged_is_told_down(database_url: str) -> None:
    with proxied_charges(database_url) as (proxy, charges):
        await charges.charged_among([1])
        proxy.go_away()

        with pytest.raises(DatabaseDown):
            await charges.charged_among([1])


async def test_the_listener_hears_of_entries_without_charges(database_url: str, rows: Rows) -> None:
    heard: list[ChargeEvent] = []
    with patient_charges(database_url, listener=heard.append) as charges:
        appointment_id = await charged_appointment(charges, rows)
        heard.clear()
        await charges.enter_again([ChargeRequest(appointment_id, user) for user in (ANN, BOB, EVE)])

    committing, committed = heard
    assert committing == Committing([appointment_id])
    assert isinstance(committed, Committed)
    assert (committed.entries, committed.charges) == (2, 0)


# Helpers


class AtCommit(Progress):
    """Does something at the moment from which on the transaction may have committed, before anything is sent."""

    __slots__ = ("_do",)

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do
        super().__init__()

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "may_have_committed" and value:
            self._do()


async def waits_for_a_transaction(rows: Rows) -> None:
    """Returns once a session waits for the end of another one's transaction."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'transactionid' AND datname = current_database()"

    async def one_waits() -> bool:
        return bool(rows.run(waiting))

    await wait_until_async(one_waits, what="a session that waits for a transaction")
