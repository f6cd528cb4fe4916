"""Redis stopped, frozen and back again while people enter: the row lock decides, or entries are refused."""

from __future__ import annotations

import signal
from collections.abc import Callable

from tests.contract.api import (
    Api,
    assert_audit_passes,
    assert_books_right,
    charge_rows,
    crowd,
    entry_rows,
    everything,
    in_background,
    problem,
    statuses,
)
from tests.harness import OwnRedis, Rows, Service, wait_until

StartService = Callable[..., Service]


def lock_store_is(api: Api, state: str) -> bool:
    """Whether both workers say so, each by itself and in the metrics."""
    up = api.metric("dependency_up", dependency="lock_store")
    return api.every_worker_says("lock_store", state) and up == (state == "up")


def meetings(rows: Rows, count: int) -> list[tuple[int, int, int]]:
    """So many appointments, each of two people of their own who can both pay."""
    made = []
    for number in range(count):
        inviter, invitee = 1000 + 2 * number, 1001 + 2 * number
        rows.grant(inviter, 2)
        rows.grant(invitee, 2)
        made.append((rows.appointment(inviter, invitee), inviter, invitee))
    return made


def test_entries_go_on_when_redis_is_killed_in_their_midst_and_use_the_lock_again_when_it_is_back(
    start_service: StartService, own_redis: OwnRedis, rows: Rows, database_url: str
) -> None:
    all_meetings = meetings(rows, 40)
    service = start_service(redis_url=own_redis.url, lock_wait_s="40")
    api = Api(service.url)
    assert lock_store_is(api, "up")
    entries = [(id_, person) for _ in range(10) for id_, *pair in all_meetings for person in pair]

    with in_background() as start:
        answers = start(crowd, service.url, entries, at_once=100)
        wait_until(lambda: rows.number("SELECT count(*) FROM appointment_action") >= 100)
        own_redis.kill()
        entered_before = rows.number("SELECT count(*) FROM appointment_action")
    assert entered_before < len(entries), "Redis died too late for this test to say anything"

    assert statuses(answers.result()) == {201: 40, 200: 760}
    assert {charge_rows(rows, id_) for id_, *_ in all_meetings} == {1}
    assert_audit_passes(database_url)
    wait_until(lambda: lock_store_is(api, "down"))
    assert api.get("/readyz").status == 200, "with LOCK_OUTAGE=proceed this instance may take traffic"
    # Into new appointments: whoever comes after the charge needs no lock anyway.
    (without_lock, person, _), *with_lock = meetings(rows, 21)
    acquired = api.metric("lock_acquire_total", resource="appointment", outcome="acquired")
    assert api.enter(without_lock, person).status == 201
    assert api.metric("lock_acquire_total", resource="appointment", outcome="acquired") == acquired

    own_redis.start()
    wait_until(lambda: lock_store_is(api, "up"))
    assert statuses(crowd(service.url, [(id_, inviter) for id_, inviter, _ in with_lock])) == {201: 20}
    assert api.metric("lock_acquire_total", resource="appointment", outcome="acquired") == acquired + 20


def test_without_redis_entries_are_refused_where_the_lock_is_required(
    start_service: StartService, own_redis: OwnRedis, rows: Rows, database_url: str
) -> None:
    id_, person, _ = meetings(rows, 1)[0]
    before = everything(rows)
    api = Api(start_service(redis_url=own_redis.url, lock_outage="refuse").url)
    assert api.get("/readyz").status == 200
    own_redis.kill()

    problem(api.enter(id_, person), "lock-store-down")
    assert everything(rows) == before
    wait_until(lambda: lock_store_is(api, "down"))
    for _ in range(8):  # both workers
        members = problem(api.get("/readyz"), "lock-store-down")
        assert members["dependencies"] == {"database": "up", "lock_store": "down"}
    assert api.get("/livez").status == 200
    assert api.get(f"/v1/appointments/{id_}", user=person).status == 200, "what needs no lock goes on"

    own_redis.start()
    wait_until(lambda: api.get("/readyz").status == 200 and lock_store_is(api, "up"))
    assert statuses(crowd(api.url, [(id_, person)] * 4)) == {201: 1, 200: 3}
    assert_books_right(database_url)


def test_entries_are_answered_in_time_while_redis_is_frozen(
    start_service: StartService, own_redis: OwnRedis, rows: Rows, database_url: str
) -> None:
    all_meetings = meetings(rows, 10)
    api = Api(start_service(redis_url=own_redis.url).url)
    entries = [(id_, person) for id_, *pair in all_meetings for person in pair * 3]
    own_redis.signal(signal.SIGSTOP)
    try:
        answers = crowd(api.url, entries)
        assert statuses(answers) == {201: 10, 200: 50}
        assert max(answer.took_s for answer in answers if answer) < 30
        wait_until(lambda: lock_store_is(api, "down"))
        assert api.get("/readyz").status == 200
    finally:
        own_redis.signal(signal.SIGCONT)
    wait_until(lambda: lock_store_is(api, "up"))
    assert statuses(crowd(api.url, entries)) == {200: 60}
    assert sum(entry_rows(rows, id_) for id_, *_ in all_meetings) == 120
    assert_books_right(database_url)


def test_a_redis_that_was_emptied_in_the_midst_of_entries_costs_nobody_anything(
    start_service: StartService, own_redis: OwnRedis, rows: Rows, database_url: str
) -> None:
    all_meetings = meetings(rows, 20)
    service = start_service(redis_url=own_redis.url, lock_wait_s="40")
    entries = [(id_, person) for _ in range(10) for id_, *pair in all_meetings for person in pair]
    with in_background() as start:
        answers = start(crowd, service.url, entries, at_once=100)
        wait_until(lambda: rows.number("SELECT count(*) FROM appointment_action") >= 50)
        own_redis.flush()
    assert statuses(answers.result()) == {201: 20, 200: 380}
    assert_books_right(database_url)
