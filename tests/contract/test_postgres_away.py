"""Postgres out of reach, silent, or lost exactly while COMMIT is under way: the answer is true to the tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.contract.api import (
    Api,
    assert_books_right,
    charge_rows,
    crowd,
    entry_rows,
    everything,
    in_background,
    problem,
    statuses,
)
from tests.contract.conftest import World
from tests.contract.page import Page
from tests.contract.postgres_proxy import CommitCut, PostgresProxy
from tests.harness import service, wait_until


@pytest.fixture(scope="module")
def settings(proxy: PostgresProxy) -> dict[str, str]:
    return {"database_url": proxy.url}


@pytest.fixture(autouse=True)
def _at_first_all_is_well(proxy: PostgresProxy, world: World) -> None:
    proxy.come_back()
    wait_until(lambda: database_is(world.api, "up"))


def database_is(api: Api, state: str) -> bool:
    """Whether both workers say so, each by itself and in the metrics."""
    up = api.metric("dependency_up", dependency="database")
    return api.every_worker_says("database", state) and up == (state == "up")


def test_without_postgres_everything_is_refused_and_it_comes_back_by_itself(world: World, proxy: PostgresProxy) -> None:
    id_, inviter, invitee = world.meeting()
    before = everything(world.rows)
    proxy.cut()
    for _ in range(6):
        problem(world.api.enter(id_, inviter), "database-down")
    problem(world.api.get(f"/v1/appointments/{id_}", user=inviter), "database-down")
    problem(world.api.get(f"/v1/users/{inviter}/coupons", user=inviter), "database-down")
    service_call = {"user": 1, "scope": "service"}
    grant = {"coupon_id": 1, "count": 1, "reference": "while away"}
    problem(world.api.post(f"/v1/users/{inviter}/coupons", send=grant, **service_call), "database-down")
    two = {"user_id": inviter, "invitee_user_id": invitee}
    problem(world.api.post("/v1/appointments", send=two, **service_call), "database-down")
    wait_until(lambda: database_is(world.api, "down"))
    members = problem(world.api.get("/readyz"), "database-down")
    assert members["dependencies"] == {"database": "down", "lock_store": "up"}
    assert world.api.get("/livez").status == 200
    overview = Page(world.api, "monitor").get("").body.decode()
    assert re.search(r"Postgres does not answer this instance: [^<]*<span[^>]*>Since <time", overview)
    assert overview.count("not answer") == 1
    assert Page(world.api, "monitor").get("/locks").body.decode().count("not answer") == 1
    assert everything(world.rows) == before

    proxy.come_back()

    wait_until(lambda: database_is(world.api, "up"))
    assert world.api.enter(id_, inviter).status == 201
    assert_books_right(world.database_url)


def test_connections_that_broke_while_idle_cost_no_request_anything(world: World, proxy: PostgresProxy) -> None:
    id_, inviter, _ = world.meeting()
    proxy.cut()
    proxy.come_back()
    assert world.api.enter(id_, inviter).status == 201


def test_entries_are_answered_in_time_while_postgres_says_nothing(world: World, proxy: PostgresProxy) -> None:
    meetings = [world.meeting() for _ in range(3)]
    entries = [(id_, person) for id_, person, _ in meetings]
    proxy.silence()
    answers = crowd(world.api.url, entries)
    for answer in answers:
        assert answer is not None
        assert answer.status == 503
        problem(answer, answer.code)
        assert answer.code in {"charge-unknown", "database-down", "overloaded"}
        assert answer.took_s < 30
    wait_until(lambda: database_is(world.api, "down"))
    problem(world.api.get("/readyz"), "database-down")
    proxy.cut()  # as a firewall that lost its table finally does
    proxy.come_back()
    wait_until(lambda: database_is(world.api, "up"))
    for id_, person in entries:
        # What was on its way may have been written after all; whoever asks again learns, and pays once at most.
        wait_until(lambda id_=id_, person=person: world.api.enter(id_, person).status in (200, 201))  # type: ignore[misc]
        assert charge_rows(world.rows, id_) == 1
        assert world.rows.balance(person) == 4
    assert_books_right(world.database_url)


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_connection_lost_during_commit_is_settled_within_the_request(
    world: World, proxy: PostgresProxy, how: CommitCut
) -> None:
    id_, inviter, invitee = world.meeting()
    cuts = proxy.cuts
    proxy.cut_at_commit, proxy.away_after_cut = how, False
    answer = world.api.enter(id_, inviter)
    assert proxy.cuts == cuts + 1
    assert (answer.status, answer.json["outcome"]) == (201, "charged")
    [[charge_id]] = world.rows.run("SELECT id FROM user_consume WHERE appointment_id = %s", id_)
    assert answer.json["charge"]["id"] == charge_id
    assert (world.rows.balance(inviter), entry_rows(world.rows, id_)) == (4, 1)
    repeats = [world.api.enter(id_, person) for person in (inviter, invitee)]
    assert [repeat.json["outcome"] for repeat in repeats] == ["already_charged"] * 2
    assert charge_rows(world.rows, id_) == 1
    assert_books_right(world.database_url)


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_commit_that_cannot_be_settled_is_said_to_be_unknown_and_trying_again_is_safe(
    world: World, proxy: PostgresProxy, how: CommitCut
) -> None:
    id_, inviter, _ = world.meeting()
    cuts = proxy.cuts
    proxy.cut_at_commit, proxy.away_after_cut = how, True
    problem(world.api.enter(id_, inviter), "charge-unknown")
    assert proxy.cuts == cuts + 1
    assert charge_rows(world.rows, id_) == (how == "after")
    proxy.come_back()
    wait_until(lambda: database_is(world.api, "up"))
    assert world.api.enter(id_, inviter).status == (200 if how == "after" else 201)
    assert (charge_rows(world.rows, id_), world.rows.balance(inviter)) == (1, 4)
    assert_books_right(world.database_url)


def test_commits_cut_under_a_crowd_never_charge_twice_and_every_201_is_in_the_tables(
    world: World, proxy: PostgresProxy
) -> None:
    meetings = [world.meeting(coupons=1) for _ in range(30)]
    entries = [(id_, person) for _ in range(4) for id_, *pair in meetings for person in pair]
    proxy.away_after_cut = False
    cuts = proxy.cuts
    with in_background() as start:
        crowding = start(crowd, world.api.url, entries, at_once=60)
        for how in ("after", "before") * 10:
            proxy.cut_at_commit = how
            wait_until(lambda: proxy.cut_at_commit is None or crowding.done())
    answers = crowding.result()
    proxy.cut_at_commit = None
    assert proxy.cuts > cuts
    assert set(statuses(answers)) <= {200, 201, 503}
    for id_, *pair in meetings:
        told = [answer for answer in answers if answer.status < 300 and answer.json["appointment_id"] == id_]
        assert charge_rows(world.rows, id_) == 1
        assert sum(answer.status == 201 for answer in told) <= 1
        assert len({answer.json["charge"]["id"] for answer in told}) <= 1
        assert len(told) <= entry_rows(world.rows, id_)
        assert sum(world.rows.balance(person) for person in pair) == 1
    assert_books_right(world.database_url)


def test_a_service_started_before_its_postgres_is_ready_once_postgres_is(
    world: World, proxy: PostgresProxy, tmp_path: Path
) -> None:
    id_, inviter, _ = world.meeting()
    proxy.cut()
    with service(tmp_path, workers=1, database_url=proxy.url, redis_url=world.redis_url) as early:
        api = Api(early.url)
        problem(api.get("/readyz"), "database-down")
        problem(api.enter(id_, inviter), "database-down")
        proxy.come_back()
        wait_until(lambda: api.get("/readyz").status == 200)
        assert api.enter(id_, inviter).status == 201
