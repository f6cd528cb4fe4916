"""A crowd costs one charge and cheap repeats: nobody takes a turn with the lock for nothing; a hot payer is exact."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import redis

from tests.contract.api import (
    Answer,
    assert_audit_passes,
    assert_books_right,
    charge_rows,
    entry_rows,
    held_row,
    in_background,
    price,
    problem,
    statuses,
)
from tests.contract.conftest import World
from tests.contract.pressure import connection_count, held_lock, is_free
from tests.contract.under_way import entering
from tests.harness import wait_until

WORKERS = 2
CROWD = 200


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {
        "lock_wait_s": "40",  # on a slow machine a crowd may stand in line for long
        "row_lock_timeout_s": "40",
        "statement_timeout_s": "40",
        "charge_timeout_s": "50",
    }


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """As python-redis-lock needs it: no timeout of the socket's own under its BLPOP."""
    with redis.Redis.from_url(redis_url, socket_timeout=None) as client:
        yield client


def turns_taken(world: World) -> float:
    """How often the lock of an appointment was acquired, by all workers."""
    return world.api.metric("lock_acquire_total", resource="appointment", outcome="acquired")


def assert_one_charge(world: World, meeting: tuple[int, int, int], answers: list[Answer]) -> None:
    id_, *pair = meeting
    assert statuses(answers) == {201: 1, 200: CROWD - 1}
    assert (charge_rows(world.rows, id_), entry_rows(world.rows, id_)) == (1, CROWD)
    assert len({answer.json["charge"]["id"] for answer in answers}) == 1
    assert sum(world.rows.balance(person) for person in pair) == 9
    assert_audit_passes(world.database_url)


def test_a_crowd_at_one_appointment_costs_one_charge_and_a_turn_with_the_lock_for_each_worker(world: World) -> None:
    id_, *pair = meeting = world.meeting()
    before = turns_taken(world)
    with entering(world.api.url, [(id_, person) for person in pair] * (CROWD // 2)) as sent:
        answers = sent.wait_for_all()
    assert_one_charge(world, meeting, answers)
    assert turns_taken(world) - before <= WORKERS + 2


def test_a_crowd_that_stands_behind_a_foreign_holder_costs_one_charge_and_a_turn_for_each_worker(
    world: World, client: redis.Redis
) -> None:
    id_, *pair = meeting = world.meeting()
    before, connected = turns_taken(world), connection_count(world.api)
    crowd = [(id_, person) for person in pair] * (CROWD // 2)
    with held_lock(client, id_) as release, entering(world.api.url, crowd) as sent:
        wait_until(lambda: connection_count(world.api) >= connected + CROWD, what="the whole crowd")
        assert sent.so_far() == []
        assert (charge_rows(world.rows, id_), entry_rows(world.rows, id_)) == (0, 0)
        release()
        answers = sent.wait_for_all()
    assert_one_charge(world, meeting, answers)
    assert turns_taken(world) - before <= WORKERS + 2


def test_a_crowd_that_cannot_pay_is_refused_one_by_one_and_nothing_is_written(world: World) -> None:
    id_, *pair = world.meeting(coupons=0)
    with entering(world.api.url, [(id_, person) for person in pair] * (CROWD // 2)) as sent:
        answers = sent.wait_for_all()
    assert statuses(answers) == {402: CROWD}
    assert (charge_rows(world.rows, id_), entry_rows(world.rows, id_)) == (0, 0)
    assert_books_right(world.database_url)


def test_a_crowd_whose_first_cannot_pay_is_paid_for_by_the_one_who_can(world: World) -> None:
    poor, rich = world.person(), world.person(coupons=1)
    id_ = world.rows.appointment(poor, rich)
    with entering(world.api.url, [(id_, person) for person in [poor] * 50 + [rich] * 50]) as sent:
        answers = sent.wait_for_all()
    count = statuses(answers)
    assert count[201] == charge_rows(world.rows, id_) == 1
    assert set(count) <= {200, 201, 402}
    assert {answer.json["charge"]["payer_id"] for answer in answers if answer.status < 300} == {rich}
    assert {answer.status for answer in answers[50:]} == {200, 201}
    assert entry_rows(world.rows, id_) == count[200] + count[201]
    assert_books_right(world.database_url)


def test_repeats_of_a_charged_appointment_go_in_while_a_foreign_program_holds_its_lock(
    world: World, client: redis.Redis
) -> None:
    id_, *pair = world.meeting()
    assert world.api.enter(id_, pair[0]).status == 201
    before = turns_taken(world)
    repeats = [(id_, person) for person in pair] * 8  # at both workers: whichever it was that charged
    with held_lock(client, id_) as release, entering(world.api.url, repeats) as sent:
        wait_until(lambda: len(sent.answered) == 16, patience_s=20, what="answers while the lock is held")
        assert not is_free(client, id_)
        release()
        answers = sent.wait_for_all()
    assert statuses(answers) == {200: 16}
    assert turns_taken(world) == before
    assert (charge_rows(world.rows, id_), entry_rows(world.rows, id_)) == (1, 17)
    assert_books_right(world.database_url)


def test_repeats_of_a_charged_appointment_go_in_while_a_foreign_session_holds_its_row(world: World) -> None:
    id_, *pair = world.meeting()
    assert world.api.enter(id_, pair[0]).status == 201
    with (
        held_row(world.database_url, id_) as release,
        entering(world.api.url, [(id_, person) for person in pair] * 8) as sent,
    ):
        wait_until(lambda: len(sent.answered) == 16, patience_s=20, what="answers while the row is held")
        release()
        answers = sent.wait_for_all()
    assert statuses(answers) == {200: 16}
    assert (charge_rows(world.rows, id_), entry_rows(world.rows, id_)) == (1, 17)
    assert_books_right(world.database_url)


def test_a_repeat_into_an_appointment_that_has_ended_is_refused_however_often_it_was_entered_before(
    world: World,
) -> None:
    """What a worker knows of earlier charges must not let anybody in."""
    id_, inviter, invitee = world.meeting()
    outsider = world.person(coupons=1)
    assert world.api.enter(id_, inviter).status == 201
    assert {world.api.enter(id_, person).status for person in (inviter, invitee) * 6} == {200}
    assert {world.api.enter(id_, outsider).code for _ in range(6)} == {"illegal-request"}
    ended = world.api.call("PATCH", f"/v1/appointments/{id_}", user=1, scope="service", send={"status": "ended"})
    assert ended.status == 200
    assert {world.api.enter(id_, inviter).code for _ in range(6)} == {"appointment-not-open"}
    assert entry_rows(world.rows, id_) == 13
    assert_books_right(world.database_url)


def test_repeats_race_with_the_end_of_the_appointment_and_none_goes_in_after_it(world: World) -> None:
    id_, *pair = world.meeting()
    assert world.api.enter(id_, pair[0]).status == 201
    with in_background() as start, entering(world.api.url, [(id_, person) for person in pair] * 50) as sent:
        wait_until(lambda: len(sent.answered) >= 10)
        end = {"send": {"status": "ended"}, "user": 1, "scope": "service"}
        assert start(world.api.call, "PATCH", f"/v1/appointments/{id_}", **end).result().status == 200
        after_the_end = entry_rows(world.rows, id_)
        late = [world.api.enter(id_, pair[0]) for _ in range(4)]
        answers = sent.wait_for_all()
    assert {answer.code for answer in late} == {"appointment-not-open"}
    count = statuses(answers)
    assert set(count) <= {200, 409}
    assert entry_rows(world.rows, id_) == 1 + count[200] == after_the_end
    assert_books_right(world.database_url)


def test_a_hot_payer_is_charged_for_exactly_as_many_appointments_as_the_coupons_cover(world: World) -> None:
    payer, partner = world.person(coupons=37), world.person()
    entries = [(world.rows.appointment(payer, partner), payer) for _ in range(60)]
    with entering(world.api.url, entries) as sent:
        answers = sent.wait_for_all()
    assert statuses(answers) == {201: 37, 402: 23}
    for answer in answers:
        if answer.status == 402:
            members = problem(answer, "insufficient-coupons")
            assert (members["required"], members["available"], members["coupon_id"]) == (1, 0, 1)
    assert world.rows.balance(payer) == 0
    assert_told_as_written(world, entries, answers)
    assert_audit_passes(world.database_url)


def test_a_hot_payer_of_mixed_prices_is_refused_only_what_the_coupons_did_not_cover(world: World) -> None:
    payer = world.person(coupons=61)
    partners = {world.person(): cost for cost in (1, 2, 3)}
    for partner, cost in partners.items():
        price(world.rows, partner, cost)
    costs = list(partners.values()) * 20
    entries = [(world.rows.appointment(payer, partner), payer) for partner in list(partners) * 20]
    order = random.Random(4).sample(range(60), 60)
    entries, costs = [entries[index] for index in order], [costs[index] for index in order]

    with entering(world.api.url, entries) as sent:
        answers = sent.wait_for_all()

    spent = sum(cost for cost, answer in zip(costs, answers, strict=True) if answer.status == 201)
    left = world.rows.balance(payer)
    assert spent + left == 61
    assert set(statuses(answers)) == {201, 402}
    for cost, answer in zip(costs, answers, strict=True):
        if answer.status == 402:
            members = problem(answer, "insufficient-coupons")
            assert (members["required"], members["coupon_id"]) == (cost, 1)
            assert left <= members["available"] < cost, "coupons only ever became fewer"
        else:
            assert answer.json["charge"]["count"] == cost
    assert_told_as_written(world, entries, answers)
    assert_audit_passes(world.database_url)


def assert_told_as_written(world: World, entries: list[tuple[int, int]], answers: list[Answer]) -> None:
    for (id_, _), answer in zip(entries, answers, strict=True):
        written = int(answer.status == 201)
        assert (charge_rows(world.rows, id_), entry_rows(world.rows, id_)) == (written, written)
