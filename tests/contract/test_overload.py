"""More comes in than may be under way: it is refused while the rest still waits, costs nothing, and leaves nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import redis

from tests.contract.api import (
    Answer,
    Api,
    assert_audit_passes,
    assert_books_right,
    charge_rows,
    entry_rows,
    held_row,
    problem,
)
from tests.contract.pressure import footprints, held_lock, wait_until_not_grown
from tests.contract.under_way import Call, entering, under_way
from tests.harness import Rows, Service, wait_until

StartService = Callable[..., Service]

LONG_WAITS = {
    "lock_wait_s": "60",
    "lease_ttl_s": "5",
    "row_lock_timeout_s": "60",
    "statement_timeout_s": "60",
    "charge_timeout_s": "70",
    "idle_in_transaction_timeout_s": "60",
}


@pytest.fixture
def meetings(rows: Rows) -> list[tuple[int, int]]:
    """Sixty entries of sixty people who can pay."""
    return new_meetings(rows, first_person=1000)


def new_meetings(rows: Rows, *, first_person: int) -> list[tuple[int, int]]:
    """Entries of sixty people with one coupon each, into an appointment of their own that nobody has entered."""
    entries = []
    for person in range(first_person, first_person + 60):
        rows.grant(person, 1)
        entries.append((rows.appointment(person, 1), person))
    return entries


@contextmanager
def held_rows(database_url: str, entries: list[tuple[int, int]]) -> Iterator[Callable[[], None]]:
    """A Postgres that is slow with all of these, until the function is called."""
    with ExitStack() as stack:
        releases = [stack.enter_context(held_row(database_url, id_)) for id_, _ in entries]

        def release() -> None:
            for each in releases:
                each()

        yield release


def assert_overloaded(answers: list[Answer]) -> None:
    for answer in answers:
        members = problem(answer, "overloaded")
        assert members["charged"] is False


def assert_only_these_were_charged(rows: Rows, entries: list[tuple[int, int]], answers: list[Answer]) -> None:
    for (id_, person), answer in zip(entries, answers, strict=True):
        charged = int(answer.status == 201)
        assert (charge_rows(rows, id_), entry_rows(rows, id_), rows.balance(person)) == (charged, charged, 1 - charged)


def enter_all(api: Api, entries: list[tuple[int, int]]) -> None:
    """Those who were refused come again, and all is well."""
    for id_, person in entries:
        assert api.enter(id_, person).status in (200, 201)


def test_requests_over_the_limit_are_refused_while_those_in_flight_still_wait_and_cost_nothing(
    start_service: StartService, rows: Rows, database_url: str, meetings: list[tuple[int, int]]
) -> None:
    api = Api(start_service(workers=1, max_requests_in_flight="8", **LONG_WAITS).url)
    with held_rows(database_url, meetings) as release, entering(api.url, meetings) as sent:
        wait_until(lambda: len(sent.answered) >= 52, what="the refusals")
        assert_overloaded(sent.so_far())
        assert len(sent.answered) == 52, "the eight in flight still wait"
        problem(api.enter(*meetings[0]), "overloaded")
        assert api.get("/livez").status == api.get("/readyz").status == 200
        assert rows.number("SELECT count(*) FROM user_consume") == 0
        release()
        answers = sent.wait_for_all()

    assert sorted(answer.status for answer in answers) == [201] * 8 + [503] * 52
    assert_only_these_were_charged(rows, meetings, answers)
    enter_all(api, meetings)
    assert_audit_passes(database_url)


def test_charges_over_the_limit_are_refused_while_those_before_them_still_wait(
    start_service: StartService, rows: Rows, database_url: str, meetings: list[tuple[int, int]]
) -> None:
    lanes = {"charge_lanes": "2", "charge_batch_size": "2", "charge_solo_lanes": "2", "max_waiting_charges": "4"}
    api = Api(start_service(workers=1, **lanes, **LONG_WAITS).url)
    with held_rows(database_url, meetings) as release, entering(api.url, meetings) as sent:
        wait_until(lambda: len(sent.answered) >= 56, what="the refusals")
        assert_overloaded(sent.so_far())
        assert len(sent.answered) == 56, "the four that may be under way still are"
        release()
        answers = sent.wait_for_all()

    assert {answer.status for answer in answers} == {201, 503}
    assert_overloaded([answer for answer in answers if answer.status == 503])
    assert_only_these_were_charged(rows, meetings, answers)
    enter_all(api, meetings)
    assert_audit_passes(database_url)


def test_one_caller_whose_rows_are_held_leaves_room_in_the_queue_of_charges(
    start_service: StartService, rows: Rows, database_url: str
) -> None:
    rows.grant(7, 5)
    rows.grant(8, 1)
    sevens = [(rows.appointment(7, 1), 7) for _ in range(5)]
    api = Api(start_service(workers=1, max_waiting_charges="4", **LONG_WAITS).url)
    with held_rows(database_url, sevens) as release, entering(api.url, sevens) as sent:
        wait_until(lambda: len(sent.answered) >= 3, what="the refusals")
        for answer in sent.so_far():
            problem(answer, "too-many-requests")
        assert api.enter(rows.appointment(8, 1), 8).status == 201
        assert len(sent.answered) == 3, "half of the places are this caller's"
        release()
        answers = sent.wait_for_all()

    assert sorted(answer.status for answer in answers) == [201, 201, 429, 429, 429]
    assert rows.balance(7) == 3


@pytest.mark.parametrize("limit", ["max_waiters", "max_waiters_per_lock"])
def test_waiters_over_the_limit_are_refused_while_those_before_them_still_wait(
    start_service: StartService, rows: Rows, database_url: str, redis_url: str, limit: str
) -> None:
    rows.grant(1, 1)
    id_ = rows.appointment(1, 2)
    api = Api(start_service(workers=1, **{limit: "5"}, **LONG_WAITS).url)
    with (
        redis.Redis.from_url(redis_url, socket_timeout=None) as client,
        held_lock(client, id_) as release,
        entering(api.url, [(id_, 1)] * 40) as sent,
    ):
        # Beside the five whoever asked Redis first may wait: that one was no waiter yet when it was let in.
        wait_until(lambda: len(sent.answered) >= 34, what="the refusals")
        assert_overloaded(sent.so_far())
        assert len(sent.answered) in (34, 35), "those that may wait still do"
        assert (charge_rows(rows, id_), entry_rows(rows, id_)) == (0, 0)
        release()
        answers = sent.wait_for_all()
    let_in = [answer for answer in answers if answer.status != 503]
    assert sorted(answer.status for answer in let_in) == [200] * (len(let_in) - 1) + [201]
    assert len(let_in) in (5, 6)
    assert (charge_rows(rows, id_), entry_rows(rows, id_), rows.balance(1)) == (1, len(let_in), 0)
    assert api.enter(id_, 1).status == 200
    assert_books_right(database_url)


def test_reads_over_the_limit_are_refused_while_those_before_them_still_wait(
    start_service: StartService, rows: Rows, database_url: str
) -> None:
    """The tables are locked by a stranger; what waits for them is bounded, and what needs none of them goes on."""
    id_ = rows.appointment(1, 2)
    api = Api(start_service(workers=1, read_threads="1", max_waiting_charges="3", caller_share="1", **LONG_WAITS).url)
    stranger = Rows(database_url)
    stranger.run("BEGIN")
    stranger.run("LOCK TABLE appointment_info IN ACCESS EXCLUSIVE MODE")
    try:
        with under_way(api.url, [Call("GET", f"/v1/appointments/{id_}", 1)] * 12) as sent:
            wait_until(lambda: len(sent.answered) >= 9, what="the refusals")
            assert_overloaded(sent.so_far())
            assert len(sent.answered) == 9, "the three that may wait still do"
            assert api.get("/livez").status == 200
            stranger.run("ROLLBACK")
            answers = sent.wait_for_all()
    finally:
        stranger.close()
    assert sorted(answer.status for answer in answers) == [200] * 3 + [503] * 9


def test_refusing_leaves_no_thread_and_no_connection_behind(
    start_service: StartService, rows: Rows, database_url: str
) -> None:
    service = start_service(workers=1, max_requests_in_flight="4", **LONG_WAITS)
    api = Api(service.url)

    def wave(number: int) -> None:
        meetings = new_meetings(rows, first_person=1000 * number)
        with held_rows(database_url, meetings) as release, entering(api.url, meetings * 3) as sent:
            wait_until(lambda: len(sent.answered) >= 176, what="the refusals")
            assert_overloaded(sent.so_far())
            release()
        enter_all(api, meetings)

    wave(1)
    after_the_first = footprints(service)
    for number in range(2, 7):
        wave(number)

    wait_until_not_grown(service, after_the_first)
    assert_books_right(database_url)
