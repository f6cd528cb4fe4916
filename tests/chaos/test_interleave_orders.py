"""The orders: all of two handlers, samples of three, deaths, and the texts that run one of them again."""

from __future__ import annotations

import random

import pytest

from tests.chaos.interleave import Case, Crash, parse_case
from tests.chaos.interleave.exploring import planned
from tests.chaos.interleave.orders import (
    DEATHS,
    GUARDS,
    STEPS,
    STOPS,
    STOPS_WITH_DEATH,
    all_orders,
    crash_cases,
    order_count,
    sampled_orders,
)
from tests.chaos.interleave.scenes import CRASHED, IDS_PER_RUN, PLAYED, SCENES


def test_two_handlers_of_five_steps_have_252_different_orders() -> None:
    orders = all_orders(STEPS, STEPS)

    assert len(set(orders)) == len(orders) == order_count(2) == 252
    assert {(order.count("0"), order.count("1")) for order in orders} == {(5, 5)}


@pytest.mark.parametrize("guard", GUARDS)
def test_every_handler_that_need_not_wait_stands_at_five_points(guard: str) -> None:
    assert len([stop for stop in STOPS[guard] if stop != "waiting"]) == STEPS


def test_a_sample_has_different_orders_of_five_steps_each_and_is_the_same_for_the_same_seed() -> None:
    drawn = list(sampled_orders(3, 500, random.Random(7)))

    assert len(set(drawn)) == 500
    assert all(sorted(order) == sorted("012" * STEPS) for order in drawn)
    assert drawn == list(sampled_orders(3, 500, random.Random(7)))


def test_a_sample_that_asks_for_more_than_there_are_has_them_all() -> None:
    assert set(sampled_orders(2, 1000, random.Random(7))) == set(all_orders(STEPS, STEPS))


@pytest.mark.parametrize("guard", GUARDS)
def test_a_victim_is_let_go_once_for_each_step_up_to_its_death(guard: str) -> None:
    cases = list(crash_cases(guard, "pair"))

    assert len(set(cases)) == len(cases)
    assert {case.crash.point for case in cases if case.crash} == set(DEATHS[guard])
    for case in cases:
        assert case.crash is not None
        assert case.order.count("0") == DEATHS[guard][case.crash.point]
        assert case.stops == STOPS_WITH_DEATH[guard]


def test_without_a_budget_all_orders_of_every_scene_and_all_deaths_are_planned() -> None:
    cases = planned(2, None, seed=1)

    for guard, scene in PLAYED:
        mine = [case for case in cases if (case.guard, case.scene) == (guard, scene)]
        assert {case.order for case in mine if case.crash is None} == set(all_orders(STEPS, STEPS))
        deaths = [case for case in mine if case.crash is not None]
        assert deaths == (list(crash_cases(guard, scene)) if (guard, scene) in CRASHED else [])


@pytest.mark.parametrize("scene", SCENES)
def test_no_two_casts_share_an_appointment_or_a_person(scene: str) -> None:
    one, other = (SCENES[scene](first, 3) for first in (1000, 1000 + IDS_PER_RUN))

    assert set(one.appointment_ids).isdisjoint(other.appointment_ids)
    assert {person for _, *people in one.appointments for person in people}.isdisjoint(
        person for _, *people in other.appointments for person in people
    )


def test_a_case_is_found_again_by_its_text_and_by_its_number() -> None:
    case = Case("lapsed", "pair", all_orders(STEPS, STEPS)[137])

    assert parse_case(case.code, None, list(SCENES)) == case
    assert parse_case("lapsed/pair/137", None, list(SCENES)) == case


def test_a_crash_is_found_again_by_its_text() -> None:
    crash = Crash(1, "commit_sent")

    assert parse_case("row/purse/0101", str(crash), list(SCENES)).crash == Crash(1, "commit_sent")
    assert parse_case("row/purse/0101", "committing", list(SCENES)).crash == Crash(0, "committing")


@pytest.mark.parametrize(
    ("text", "crash"),
    [
        ("row/pair", None),
        ("nobody/pair/0101010101", None),
        ("row/nothing/0101010101", None),
        ("row/pair/01x", None),
        ("row/pair/252", None),
        ("row/pair/0101010181", None),
        ("row/pair/0101010101", "acquired"),
        ("lock/pair/0101010101", "7@acquired"),
    ],
)
def test_what_is_no_case_is_refused(text: str, crash: str | None) -> None:
    with pytest.raises(ValueError, match=r"order|case|crash"):
        parse_case(text, crash, list(SCENES))
