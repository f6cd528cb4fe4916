"""Crowds at the door, over real sockets and two workers: everybody is let in, and one of them pays, once."""

from __future__ import annotations

import random

import pytest

from tests.contract.api import (
    Answer,
    assert_audit_passes,
    assert_books_right,
    charge_rows,
    crowd,
    entry_rows,
    fresh_reference,
    in_background,
    price,
    problem,
    statuses,
)
from tests.contract.conftest import World


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"lock_wait_s": "40"}  # on a slow machine a crowd may stand in line for long


def test_of_a_thousand_entries_into_fifty_appointments_exactly_fifty_are_charged(world: World) -> None:
    meetings = [world.meeting(coupons=3) for _ in range(50)]
    entries = [(id_, person) for id_, *pair in meetings for person in pair for _ in range(10)]
    random.Random(1).shuffle(entries)

    answers = crowd(world.api.url, entries)

    assert statuses(answers) == {201: 50, 200: 950}
    charges = {id_: charge_rows(world.rows, id_) for id_, *_ in meetings}
    assert set(charges.values()) == {1}
    assert sum(entry_rows(world.rows, id_) for id_, *_ in meetings) == 1000
    for id_, inviter, invitee in meetings:
        ours = [answer.json for answer in answers if answer and answer.json["appointment_id"] == id_]
        assert len({answer["charge"]["id"] for answer in ours}) == 1, "all are told of the same charge"
        [charged] = [answer for answer in ours if answer["outcome"] == "charged"]
        payer = charged["charge"]["payer_id"]
        assert charged["user_id"] == payer, "whoever is charged is the one who is told so"
        assert {inviter: world.rows.balance(inviter), invitee: world.rows.balance(invitee)} == {
            inviter: 3 - (payer == inviter),
            invitee: 3 - (payer == invitee),
        }
    assert_audit_passes(world.database_url)


def test_coupons_that_run_out_in_the_middle_of_a_crowd_pay_for_exactly_as_many_as_they_cover(world: World) -> None:
    payer = world.person(coupons=7 * 3)
    partner = world.person()
    price(world.rows, partner, 3)
    ids = [world.rows.appointment(payer, partner) for _ in range(20)]

    answers = crowd(world.api.url, [(id_, payer) for id_ in ids])

    assert statuses(answers) == {201: 7, 402: 13}
    assert world.rows.balance(payer) == 0
    refused = [answer for answer in answers if answer is not None and answer.status == 402]
    for refusal in refused:
        members = problem(refusal, "insufficient-coupons")
        assert (members["required"], members["coupon_id"]) == (3, 1)
        assert 0 <= members["available"] < 3
    for id_, answer in zip(ids, answers, strict=True):
        assert answer is not None
        expected = int(answer.status == 201)
        assert (charge_rows(world.rows, id_), entry_rows(world.rows, id_)) == (expected, expected)
    assert_books_right(world.database_url)


def test_of_forty_grants_with_one_reference_one_grants(world: World) -> None:
    user = world.person()
    reference = fresh_reference()
    grant = {"coupon_id": 1, "count": 7, "reference": reference}

    with in_background() as start:
        path = f"/v1/users/{user}/coupons"
        calls = [start(world.api.post, path, user=1, scope="service", send=grant) for _ in range(40)]
    answers: list[Answer] = [call.result() for call in calls]

    assert statuses(answers) == {201: 1, 200: 39}
    assert {answer.json["id"] for answer in answers} == {answers[0].json["id"]}
    assert world.rows.balance(user) == 7
    assert world.rows.number("SELECT count(*) FROM coupon_grant WHERE reference = %s", reference) == 1
    assert_books_right(world.database_url)


def test_grants_race_with_charges_of_the_same_user_and_nothing_is_lost(world: World) -> None:
    payer, partner = world.person(coupons=1), world.person()
    ids = [world.rows.appointment(payer, partner) for _ in range(30)]
    path = f"/v1/users/{payer}/coupons"

    with in_background() as start:
        grants = [
            start(
                world.api.post,
                path,
                user=1,
                scope="service",
                send={"coupon_id": 1, "count": 1, "reference": fresh_reference()},
            )
            for _ in range(20)
        ]
        answers = crowd(world.api.url, [(id_, payer) for id_ in ids])
    assert statuses([grant.result() for grant in grants]) == {201: 20}
    count = statuses(answers)
    assert count[201] + count[402] == 30
    assert world.rows.balance(payer) == 21 - count[201]
    assert_books_right(world.database_url)


def test_ending_an_appointment_races_with_its_entries_and_afterwards_nobody_enters(world: World) -> None:
    id_, inviter, invitee = world.meeting()

    with in_background() as start:
        entering = start(crowd, world.api.url, [(id_, person) for person in (inviter, invitee) for _ in range(20)])
        change = {"send": {"status": "ended"}, "user": 1, "scope": "service"}
        ended = start(world.api.call, "PATCH", f"/v1/appointments/{id_}", **change)
    assert ended.result().status == 200
    count = statuses(entering.result())
    assert count[201] == charge_rows(world.rows, id_) <= 1
    assert count[200] + count[201] == entry_rows(world.rows, id_)
    assert count[200] + count[201] + count[409] == 40
    assert world.api.enter(id_, inviter).code == "appointment-not-open"
    assert_books_right(world.database_url)
