"""Postgres or Redis slow, frozen or taken: every answer comes in time and is true to the tables, and it passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

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
from tests.contract.conftest import World
from tests.contract.pressure import (
    SPARE_THREADS,
    assert_each_charged_once,
    assert_no_more_threads,
    assert_refused_honestly,
    assert_truthful,
    footprints,
    frozen_postgres,
    redis_proxy,
    silent,
    slow,
    swallowed,
    wait_until_not_grown,
)
from tests.contract.under_way import entering
from tests.harness import Rows, service, wait_until
from tests.proxy import Proxy, postgres_proxy

LOCK_WAIT_S, CHARGE_TIMEOUT_S = 2.0, 3.0
PROMISED_S = LOCK_WAIT_S + CHARGE_TIMEOUT_S + 2.0
SLACK_S = 8.0  # for a machine that is busy with something else
LIMITS = {
    "lock_wait_s": str(LOCK_WAIT_S),
    "lease_ttl_s": "1",
    "lock_command_timeout_s": "0.8",
    "charge_timeout_s": str(CHARGE_TIMEOUT_S),
    "statement_timeout_s": "1.5",
    "row_lock_timeout_s": "1.2",
}
CANNOT = ("database-down", "overloaded", "charge-in-progress")
MAY_HAVE = (*CANNOT, "charge-unknown")


@dataclass(frozen=True, slots=True)
class Proxies:
    """What stands between the module's service and its servers."""

    postgres: Proxy
    redis: Proxy
    database_url: str
    redis_url: str


@pytest.fixture(scope="module")
def proxies(module_database_url: str, redis_url: str) -> Iterator[Proxies]:
    to_postgres, through_postgres = postgres_proxy(module_database_url)
    to_redis, through_redis = redis_proxy(redis_url)
    with to_postgres, to_redis:
        yield Proxies(to_postgres, to_redis, through_postgres, through_redis)


@pytest.fixture(scope="module")
def settings(proxies: Proxies) -> dict[str, str]:
    return {**LIMITS, "database_url": proxies.database_url, "redis_url": proxies.redis_url}


@pytest.fixture(autouse=True)
def _at_first_all_is_well(world: World) -> None:
    wait_until_well(world.api)
    # Both workers have used their connections, and whatever else they start when they first need it.
    meetings = [world.meeting() for _ in range(30)]
    entries = [(id_, person) for id_, *pair in meetings for person in pair]
    with entering(world.api.url, entries) as sent:
        assert {answer.status for answer in sent.wait_for_all()} == {200, 201}


def wait_until_well(api: Api) -> None:
    for dependency in ("database", "lock_store"):
        wait_until(lambda dependency=dependency: api.every_worker_says(dependency, "up"))  # type: ignore[misc]


def newcomers(world: World, count: int = 40) -> list[tuple[int, int]]:
    """Entries of so many people who can pay, each into an appointment of their own."""
    return [(id_, person) for id_, person, _ in (world.meeting() for _ in range(count))]


def enter_in_time(api: Api, entries: Sequence[tuple[int, int]], *, may_say: tuple[str, ...]) -> list[Answer]:
    """All answers, each within the promise; a refusal is one of these, complete, and honest about itself."""
    with entering(api.url, entries) as sent:
        answers = sent.wait_for_all()
    for answer in answers:
        assert answer.took_s < PROMISED_S + SLACK_S
        if answer.status not in (200, 201):
            assert_refused_honestly(answer, *may_say)
    return answers


def test_behind_a_slow_postgres_every_answer_comes_in_time_and_is_true(world: World, proxies: Proxies) -> None:
    entries = newcomers(world)
    before = footprints(world.service)
    with slow(proxies.postgres, each_way_s=0.15):
        answers = enter_in_time(world.api, entries, may_say=MAY_HAVE)
        assert 201 in {answer.status for answer in answers}, "slow is not away: some are charged"
        assert_no_more_threads(world.service, before)
    wait_until_well(world.api)
    assert_truthful(world, entries, answers)
    assert_audit_passes(world.database_url)
    wait_until_not_grown(world.service, before)


def test_behind_a_postgres_slower_than_any_limit_every_answer_comes_in_time_and_is_true(
    world: World, proxies: Proxies
) -> None:
    entries = newcomers(world)
    with slow(proxies.postgres, each_way_s=1.0):
        answers = enter_in_time(world.api, entries, may_say=MAY_HAVE)
    wait_until_well(world.api)
    assert_truthful(world, entries, answers)
    assert_audit_passes(world.database_url)


def test_behind_frozen_postgres_sessions_nobody_is_left_in_doubt_and_all_are_answered_in_time(world: World) -> None:
    entries = newcomers(world)
    with frozen_postgres(world.rows):
        # No transaction in them can have come as far as its COMMIT: its first statement has no answer.
        answers = enter_in_time(world.api, entries, may_say=CANNOT)
    wait_until_well(world.api)
    assert_truthful(world, entries, answers)
    assert_audit_passes(world.database_url)


def test_behind_a_silent_network_nothing_can_be_charged_and_everybody_is_told_so_in_time(
    world: World, proxies: Proxies
) -> None:
    entries = newcomers(world)
    with silent(proxies.postgres):
        # Again no transaction can have come as far as its COMMIT, and there is no other way to Postgres.
        answers = enter_in_time(world.api, entries, may_say=CANNOT)
        assert not any(answer.status < 300 for answer in answers)
        wait_until(lambda: world.api.every_worker_says("database", "down"))
        problem(world.api.get("/readyz"), "database-down")
    wait_until_well(world.api)
    assert_truthful(world, entries, answers)
    assert_audit_passes(world.database_url)


@pytest.mark.parametrize("how", ["frozen", "silent"])
def test_three_rounds_at_a_postgres_that_says_nothing_pile_up_no_threads_and_it_comes_back_without_a_restart(
    world: World, proxies: Proxies, how: str
) -> None:
    rounds = [newcomers(world) for _ in range(3)]
    assert len(rounds[0]) > 4 * SPARE_THREADS, "one thread for each of them would not be noticed"
    told: list[tuple[tuple[int, int], Answer]] = []
    before = footprints(world.service)
    with frozen_postgres(world.rows) if how == "frozen" else silent(proxies.postgres):
        for entries in rounds:
            told += zip(entries, enter_in_time(world.api, entries, may_say=MAY_HAVE), strict=True)
            assert_no_more_threads(world.service, before)
    wait_until_well(world.api)
    assert_truthful(world, [entry for entry, _ in told], [answer for _, answer in told])
    assert_books_right(world.database_url)
    wait_until_not_grown(world.service, before)


def test_a_postgres_that_falls_silent_in_the_midst_of_a_crowd_leaves_every_answer_true(
    world: World, proxies: Proxies
) -> None:
    entries = newcomers(world, 200)
    with entering(world.api.url, entries) as sent:
        wait_until(lambda: len(sent.answered) >= 20, what="the first answers")
        with silent(proxies.postgres):
            answers = sent.wait_for_all()
            assert len([answer for answer in answers if answer.status == 503]) > 0, "it fell silent too late"
    for answer in answers:
        assert answer.took_s < PROMISED_S + SLACK_S
        if answer.status not in (200, 201):
            assert_refused_honestly(answer, *MAY_HAVE)
    wait_until_well(world.api)
    assert_truthful(world, entries, answers)
    assert_audit_passes(world.database_url)


def test_while_every_database_connection_is_taken_the_others_are_refused_in_time_and_charged_nothing(
    world: World,
) -> None:
    """A stranger's lock on the whole table keeps every transaction that the service may have."""
    entries = newcomers(world, 60)
    before = footprints(world.service)
    stranger = Rows(world.database_url)
    try:
        stranger.run("BEGIN")
        stranger.run("LOCK TABLE appointment_info IN ACCESS EXCLUSIVE MODE")
        answers = enter_in_time(world.api, entries, may_say=CANNOT)
        assert not any(answer.status < 300 for answer in answers)
        assert_no_more_threads(world.service, before)
        stranger.run("ROLLBACK")
    finally:
        stranger.close()
    assert_truthful(world, entries, answers)
    assert_audit_passes(world.database_url)
    wait_until_not_grown(world.service, before)


def test_behind_a_slow_redis_everybody_is_charged_once_in_time_and_it_counts_as_up(
    world: World, proxies: Proxies
) -> None:
    meetings = [world.meeting() for _ in range(20)]
    entries = [(id_, person) for id_, *pair in meetings for person in pair]
    with slow(proxies.redis, each_way_s=0.1):
        answers = enter_in_time(world.api, entries, may_say=("charge-in-progress",))
        assert world.api.every_worker_says("lock_store", "up")
        assert world.api.get("/readyz").status == 200
    assert_each_charged_once(world, meetings, answers)
    assert_books_right(world.database_url)


def test_behind_a_redis_that_swallows_everything_everybody_is_charged_once_in_time_on_the_row_lock(
    world: World, proxies: Proxies
) -> None:
    meetings = [world.meeting() for _ in range(20)]
    entries = [(id_, person) for id_, *pair in meetings for person in pair]
    before = footprints(world.service)
    with swallowed(proxies.redis):
        answers = enter_in_time(world.api, entries, may_say=())
        wait_until(lambda: world.api.every_worker_says("lock_store", "down"))
        ready = world.api.get("/readyz")
        assert (ready.status, ready.json["dependencies"]["lock_store"]) == (200, "down")
        assert_no_more_threads(world.service, before)
    assert_each_charged_once(world, meetings, answers)
    wait_until_well(world.api)
    assert {world.api.enter(*entry).status for entry in entries} == {200}
    assert_audit_passes(world.database_url)
    wait_until_not_grown(world.service, before)


def test_a_redis_that_falls_silent_in_the_midst_of_a_crowd_costs_nobody_a_second_charge(
    world: World, proxies: Proxies
) -> None:
    meetings = [world.meeting() for _ in range(40)]
    entries = [(id_, person) for _ in range(3) for id_, *pair in meetings for person in pair]
    with entering(world.api.url, entries) as sent:
        wait_until(lambda: len(sent.answered) >= 20, what="the first answers")
        with silent(proxies.redis):
            answers = sent.wait_for_all()
    for answer in answers:
        assert answer.took_s < PROMISED_S + SLACK_S
        if answer.status not in (200, 201):
            assert_refused_honestly(answer, "charge-in-progress", "overloaded")
    wait_until_well(world.api)
    assert_each_charged_once(world, meetings, answers)
    assert_audit_passes(world.database_url)


def test_where_the_lock_is_required_a_redis_that_swallows_everything_makes_the_service_unready(
    world: World, proxies: Proxies, tmp_path: Path
) -> None:
    (id_, person), *_ = entries = newcomers(world, 10)
    addresses = {"database_url": world.database_url, "redis_url": proxies.redis_url}
    with service(tmp_path, workers=2, lock_outage="refuse", **LIMITS, **addresses) as strict:
        api = Api(strict.url)
        with swallowed(proxies.redis):
            answers = enter_in_time(api, entries, may_say=("lock-store-down",))
            assert {answer.status for answer in answers} == {503}
            wait_until(lambda: api.every_worker_says("lock_store", "down"))
            problem(api.get("/readyz"), "lock-store-down")
        wait_until(lambda: api.every_worker_says("lock_store", "up") and api.get("/readyz").status == 200)
        assert [charge_rows(world.rows, id_) + entry_rows(world.rows, id_) for id_, _ in entries] == [0] * 10
        assert api.enter(id_, person).status == 201
    assert_books_right(world.database_url)


def test_a_charge_whose_rows_are_held_beyond_its_time_is_refused_and_not_made_later(world: World) -> None:
    entries = newcomers(world, 12)
    with ExitStack() as stack:
        releases: list[Callable[[], None]] = [
            stack.enter_context(held_row(world.database_url, id_)) for id_, _ in entries
        ]
        answers = enter_in_time(world.api, entries, may_say=CANNOT)
        for release in releases:
            release()
    assert_truthful(world, entries, answers)
    assert_books_right(world.database_url)
