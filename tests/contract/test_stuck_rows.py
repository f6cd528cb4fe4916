"""Rows that strangers hold delay those who need them, and nobody else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg2
import pytest

from tests.contract.api import (
    Answer,
    assert_audit_passes,
    assert_books_right,
    charge_rows,
    entry_rows,
    held_row,
    problem,
    statuses,
    waits_for_row,
)
from tests.contract.conftest import World, a_world
from tests.contract.under_way import UnderWay, entering
from tests.harness import wait_until

OTHERS = 100


PATIENT = {
    "lock_wait_s": "60",
    "row_lock_timeout_s": "60",
    "statement_timeout_s": "60",
    "charge_timeout_s": "70",
    "idle_in_transaction_timeout_s": "60",
}
HASTY = {"row_lock_timeout_s": "1.2", "statement_timeout_s": "2", "charge_timeout_s": "20"}


@pytest.fixture(scope="module", params=[PATIENT, HASTY], ids=["patient", "hasty"])
def settings(request: pytest.FixtureRequest) -> dict[str, str]:
    """Patient: a charge waits for its row for longer than the test takes. Hasty: it gives up while the row is held."""
    given = request.param
    assert isinstance(given, dict)
    return given


def others(world: World) -> list[tuple[int, int]]:
    """Entries of a hundred people who can pay, each into an appointment of their own."""
    return [(id_, person) for id_, person, _ in (world.meeting() for _ in range(OTHERS))]


@contextmanager
def held_coupons(database_url: str, user_id: int) -> Iterator[Callable[[], None]]:
    """A stranger's session holds the user's coupons until the function is called, or to the block's end."""
    connection = psycopg2.connect(database_url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT FROM user_coupon WHERE user_id = %s FOR UPDATE", (user_id,))
            assert cursor.rowcount == 1
        yield connection.rollback
    finally:
        connection.close()


def test_a_held_row_delays_nobody_who_comes_after_it_got_stuck(world: World) -> None:
    stuck, person, _ = world.meeting()
    entries = others(world)
    with held_row(world.database_url, stuck) as release, entering(world.api.url, [(stuck, person)]) as sent:
        wait_until(lambda: waits_for_row(world.rows), what="the charge waits for the row")
        assert_all_are_charged(world, entries)  # and the row is held all the time
        assert charge_rows(world.rows, stuck) == 0
        release()
        [answer] = sent.wait_for_all()
    assert_charged_or_refused_truthfully(world, stuck, answer)
    assert world.api.enter(stuck, person).status == (200 if answer.status == 201 else 201)
    assert_audit_passes(world.database_url)


def test_a_held_row_delays_nobody_whose_charge_shares_a_transaction_with_it(world: World) -> None:
    stuck, *pair = world.meeting()
    entries = others(world)
    crowd = [*entries[:50], *[(stuck, person) for person in pair] * 10, *entries[50:]]
    with held_row(world.database_url, stuck) as release, entering(world.api.url, crowd) as sent:
        wait_until(lambda: charged_so_far(sent) == OTHERS, what="the others' charges while the row is held")
        assert charge_rows(world.rows, stuck) == 0
        release()
        answers = sent.wait_for_all()
    at_the_row = answers[50:70]
    assert statuses([*answers[:50], *answers[70:]]) == {201: OTHERS}
    count = statuses(at_the_row)
    assert count[201] == charge_rows(world.rows, stuck) <= 1
    assert count[201] + count[200] == entry_rows(world.rows, stuck)
    for answer in at_the_row:
        if answer.status >= 300:
            problem(answer, "charge-in-progress")
    assert_audit_passes(world.database_url)


def test_several_held_rows_delay_nobody_else(world: World) -> None:
    """More of them than there are lanes for charges that wait."""
    meetings = [world.meeting() for _ in range(10)]
    at_the_rows = [(id_, person) for id_, person, _ in meetings]
    entries = others(world)
    with ExitStack() as held:
        releases = [held.enter_context(held_row(world.database_url, id_)) for id_, _ in at_the_rows]
        with entering(world.api.url, at_the_rows) as sent:
            wait_until(lambda: waits_for_row(world.rows), what="a charge waits for its row")
            assert_all_are_charged(world, entries)
            assert [charge_rows(world.rows, id_) for id_, _ in at_the_rows] == [0] * 10
            for release in releases:
                release()
            answers = sent.wait_for_all()
    for (id_, _), answer in zip(at_the_rows, answers, strict=True):
        assert_charged_or_refused_truthfully(world, id_, answer)
    assert_books_right(world.database_url)


def test_coupons_that_a_stranger_holds_keep_nobody_but_their_owner_from_being_charged(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    """Whoever shares a transaction with the owner waits with them for once, and then goes alone."""
    with a_world(tmp_path, database_url, redis_url, HASTY) as world:
        stuck, person, _ = world.meeting()
        entries = others(world)
        crowd = [*entries[:50], (stuck, person), *entries[50:]]
        with held_coupons(database_url, person) as release, entering(world.api.url, crowd) as sent:
            wait_until(lambda: charged_so_far(sent) == OTHERS, what="the others' charges while the coupons are held")
            assert charge_rows(world.rows, stuck) == 0
            release()
            answers = sent.wait_for_all()
        answer = answers.pop(50)
        assert statuses(answers) == {201: OTHERS}
        assert_charged_or_refused_truthfully(world, stuck, answer)
        assert world.api.enter(stuck, person).status == (200 if answer.status == 201 else 201)
    assert_audit_passes(database_url)


def charged_so_far(sent: UnderWay) -> int:
    return [answer.status for answer in sent.so_far()].count(201)


def assert_all_are_charged(world: World, entries: list[tuple[int, int]]) -> None:
    with entering(world.api.url, entries) as sent:
        answers = sent.wait_for_all()
    assert statuses(answers) == {201: len(entries)}
    assert {charge_rows(world.rows, id_) for id_, _ in entries} == {1}


def assert_charged_or_refused_truthfully(world: World, appointment_id: int, answer: Answer) -> None:
    charged = charge_rows(world.rows, appointment_id)
    assert charged == entry_rows(world.rows, appointment_id) == (answer.status == 201)
    if answer.status != 201:
        problem(answer, "charge-in-progress")
