"""Real handlers on real servers, stepped through orders: the product holds in all, and what is broken is found."""

from __future__ import annotations

import random
import threading

import pytest

from tests.chaos.interleave import Case, Crash, explore, explore_cases, parse_case, replay
from tests.chaos.interleave.__main__ import main
from tests.chaos.interleave.exploring import run_cases
from tests.chaos.interleave.orders import GUARDS, STEPS, all_orders, crash_cases
from tests.chaos.interleave.scenes import CRASHED, SCENES

pytestmark = pytest.mark.timeout(300)


def test_all_252_orders_of_two_handlers_hold_under_every_guard(database_url: str, redis_url: str) -> None:
    cases = [Case(guard, "pair", order) for guard in GUARDS for order in all_orders(STEPS, STEPS)]

    explored = explore_cases(database_url, redis_url, cases)

    assert explored.violations == []
    assert explored.orders == 3 * 252


def test_two_handlers_with_one_purse_and_in_crossing_batches_hold(database_url: str, redis_url: str) -> None:
    orders = random.Random(3).sample(all_orders(STEPS, STEPS), 30)
    cases = [Case("row", scene, order) for scene in ("purse", "batches", "payers") for order in orders]

    explored = explore_cases(database_url, redis_url, cases)

    assert explored.violations == []
    assert explored.orders == len(cases)


def test_whoever_dies_at_whatever_point_the_next_one_goes_on(database_url: str, redis_url: str) -> None:
    rng = random.Random(5)
    cases = []
    for guard, scene in CRASHED:
        by_point: dict[str, list[Case]] = {}
        for case in crash_cases(guard, scene):
            assert case.crash is not None
            by_point.setdefault(case.crash.point, []).append(case)
        cases += [case for same in by_point.values() for case in rng.sample(same, 4)]

    explored = explore_cases(database_url, redis_url, cases)

    assert explored.violations == []
    assert explored.crashes > len(cases) / 2


def test_three_handlers_hold(database_url: str, redis_url: str) -> None:
    explored = explore(database_url, redis_url, handlers=3, budget=12, seed=11)

    assert explored.violations == []
    assert explored.orders == 6 * 12


@pytest.mark.parametrize(
    ("mutant", "guard", "what"),
    [
        ("plain-read", "row", "charged 2 times"),
        ("plain-read-unique", "row", "was answered DatabaseError"),
        ("entry-log", "lapsed", "charged 2 times"),
        ("released-early", "lock", "another one its row"),
        ("fence-unchecked", "lapsed", "after a newer one"),
    ],
)
def test_a_broken_transaction_is_found(database_url: str, redis_url: str, mutant: str, guard: str, what: str) -> None:
    cases = [Case(guard, "pair", order) for order in all_orders(STEPS, STEPS)[::8]]

    explored = explore_cases(database_url, redis_url, cases, mutant=mutant)

    assert any(what in violation.what for violation in explored.violations)


def test_a_violation_is_found_again_by_its_text(database_url: str, redis_url: str) -> None:
    cases = [Case("row", "pair", order) for order in all_orders(STEPS, STEPS)[60:70]]
    violation = explore_cases(database_url, redis_url, cases, mutant="plain-read").violations[0]

    _, wrong = replay(database_url, redis_url, parse_case(violation.order, violation.crash, list(SCENES)))
    _, wrong_again = replay(
        database_url, redis_url, parse_case(violation.order, violation.crash, list(SCENES)), mutant="plain-read"
    )

    assert wrong == []
    assert any("charged 2 times" in each for each in wrong_again)


@pytest.mark.parametrize("guard", GUARDS)
def test_the_same_order_gives_the_same_trace(database_url: str, redis_url: str, guard: str) -> None:
    orders = random.Random(13).sample(all_orders(STEPS, STEPS), 12)
    cases = [Case(guard, "pair", order, crash) for order in orders for crash in (None, Crash(0, "committing"))]

    traces, again = (
        [
            [str(seen) for seen in played.trace]
            for played, _ in run_cases(database_url, redis_url, cases, first_id=first_id)
        ]
        for first_id in random.sample(range(10**9, 10**15, 10**6), 2)
    )

    assert traces == again


def test_the_command_says_by_its_exit_status_what_it_has_found(
    database_url: str, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = ["--database-url", database_url, "--redis-url", redis_url]
    order = ["--replay", "row/pair/0001011110"]

    assert main([*servers, *order]) == 0
    assert main([*servers, *order, "--mutant", "plain-read"]) == 1
    assert "charged 2 times" in capsys.readouterr().out
    assert main(["--database-url", "postgresql://nobody@127.0.0.1:1/none", "--redis-url", redis_url, *order]) == 2
    with pytest.raises(SystemExit, match="2"):
        main(["--replay", "row/pair/nothing"])


def test_no_thread_is_left_behind(database_url: str, redis_url: str) -> None:
    before = set(threading.enumerate())

    explore_cases(database_url, redis_url, list(crash_cases("lock", "pair"))[::25])

    assert set(threading.enumerate()) <= before
