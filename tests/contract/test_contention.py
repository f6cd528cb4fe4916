"""What the service tells of its locks over HTTP: who holds, who waits, and how it goes, over all its instances."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
from redis_lock import Lock

from tests.contract.api import Answer, Api, held_row, in_background, problem, waits_for_row
from tests.contract.conftest import World, a_world, a_world_apart
from tests.contract.conftest import module_database_url as module_database_url
from tests.contract.page import next_message
from tests.harness import bearer, token, wait_until
from tests.servers.processes import unused_port

MONITOR = "monitor"
ROUTES = ("/v1/locks", "/v1/locks/a", "/v1/contention", "/v1/contention/stream")


@pytest.fixture(scope="module")
def own_world(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A service with a Valkey of its own."""
    settings = {
        "lock_wait_s": "40",
        "lease_ttl_s": "1",
        "row_lock_timeout_s": "40",
        "statement_timeout_s": "40",
        "charge_timeout_s": "50",
        "max_streams": "2",
        "caller_share": "1",
    }
    with a_world_apart(tmp_path_factory.mktemp("contention"), module_database_url, settings) as world:
        yield world


def get(world: World, path: str) -> Any:
    """The JSON of a 200, for a monitor."""
    answer = world.api.get(path, user=1, scope=MONITOR)
    assert answer.status == 200, answer
    return answer.json


@pytest.mark.parametrize("path", ROUTES)
def test_watching_takes_a_token_with_the_scope_monitor(own_world: World, path: str) -> None:
    problem(own_world.api.get(path), "unauthenticated")
    for scope in ("", "service", "locks", "service locks"):
        problem(own_world.api.get(path, user=1, scope=scope), "forbidden")


def test_a_held_lock_names_its_holder_to_kill_and_its_waiters_in_order(own_world: World) -> None:
    id_, inviter, invitee = own_world.meeting()
    name = f"appointment:{id_}"
    with held_row(own_world.database_url, id_) as let_go, in_background() as start:
        first = start(own_world.api.enter, id_, inviter, headers={"X-Request-Id": "holder-1"})
        wait_until(lambda: waits_for_row(own_world.rows))
        others = []
        for number, user in enumerate((invitee, inviter, invitee)):
            others.append(start(own_world.api.enter, id_, user, headers={"X-Request-Id": f"waiter-{number}"}))
            wait_until(partial(_has_waiters, own_world, name, number + 1))
        lock = get(own_world, f"/v1/locks/{name}")
        assert lock["name"] == name
        assert lock["holder"]["request_id"] == "holder-1"
        assert lock["holder"]["pid"] in own_world.service.worker_pids()
        assert lock["holder"]["host"] == os.uname().nodename
        assert lock["fencing_token"] > 0
        assert lock["held_ms"] > 0
        assert 0 < lock["expires_in_ms"] <= 1050
        assert len(lock["waiting"]) == 3
        assert lock["waiting"][0]["request_id"] == "waiter-0"
        waited = [waiter["waited_ms"] for waiter in lock["waiting"]]
        assert waited == sorted(waited, reverse=True)
        assert {waiter["pid"] for waiter in lock["waiting"]} <= set(own_world.service.worker_pids())

        # Each worker reads the list for itself, so one that was not asked before may know of it a moment later.
        pages: list[list[Any]] = []

        def is_listed() -> bool:
            pages.append(get(own_world, "/v1/locks")["locks"])
            return bool(pages[-1])

        wait_until(is_listed)
        (listed,) = pages[-1]
        assert (listed["name"], listed["waiters"], listed["holder"]) == (name, 3, lock["holder"])

        def exact() -> bool:
            contention = get(own_world, "/v1/contention")
            return bool((contention["held"], contention["waiting"]) == (1, 3))

        wait_until(exact)
        let_go()
        assert sorted(answer.result().status for answer in (first, *others)) == [200, 200, 200, 201]
    problem(own_world.api.get(f"/v1/locks/{name}", user=1, scope=MONITOR), "lock-free")


def test_a_killed_holder_is_taken_over_from_and_both_are_told_of(own_world: World) -> None:
    id_, inviter, invitee = own_world.meeting()
    name = f"appointment:{id_}"
    with held_row(own_world.database_url, id_) as let_go, in_background() as start:
        doomed = start(_enter_or_break, own_world.api, id_, inviter)
        wait_until(lambda: waits_for_row(own_world.rows))
        holder = get(own_world, f"/v1/locks/{name}")["holder"]["pid"]
        heirs: list[Any] = []
        while len(heirs) < 8 or not _waits_elsewhere(get(own_world, f"/v1/locks/{name}"), holder):
            heirs.append(start(_enter_or_break, own_world.api, id_, invitee))
            wait_until(lambda: get(own_world, f"/v1/locks/{name}")["waiters"] == len(heirs))
        os.kill(holder, signal.SIGKILL)  # first, for a holder that hears of its lost connection gives the lock back
        own_world.rows.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND datname = current_database()"
        )
        let_go()
        answers = [each.result() for each in (doomed, *heirs)]
    assert [answer for answer in answers if answer is not None and answer.status >= 500] == []

    def told() -> bool:
        contention = get(own_world, "/v1/contention")
        return contention["takeovers"] >= 1 and len(contention["instances"]) == 2

    wait_until(told)
    own_world.rows.grant(inviter, 1)
    assert own_world.api.enter(id_, inviter).status == 200


def test_the_stream_tells_the_same_once_a_second_and_is_bounded(own_world: World) -> None:
    headers = bearer(1, MONITOR)
    streams = [own_world.api.connection() for _ in range(8)]
    try:
        responses = []
        for connection in streams:
            connection.request("GET", "/v1/contention/stream", headers=headers)
            responses.append(connection.getresponse())
        opened = [response for response in responses if response.status == 200]
        refused = [response for response in responses if response.status != 200]
        assert 2 <= len(opened) <= 4  # two a worker
        assert {response.status for response in refused} == {503}
        assert all(json.loads(response.read())["code"] == "overloaded" for response in refused)
        stream = opened[0]
        assert stream.getheader("Content-Type") == "text/event-stream"
        moments = [_next_event(stream)["at"] for _ in range(3)]
        assert moments == sorted(set(moments))
        assert _next_event(stream).keys() == get(own_world, "/v1/contention").keys()
    finally:
        for connection in streams:
            connection.close()

    def has_room() -> bool:
        with own_world.api.connection_closing() as connection:
            connection.request("GET", "/v1/contention/stream", headers=headers)
            return connection.getresponse().status == 200

    wait_until(has_room)


def test_the_stream_ends_with_its_token_and_says_so(own_world: World) -> None:
    with own_world.api.connection_closing() as connection:
        expires_at = time.time() + 3
        headers = {"Authorization": f"Bearer {token(1, MONITOR, ttl_s=3)}"}
        connection.request("GET", "/v1/contention/stream", headers=headers)
        stream = connection.getresponse()
        messages = list(itertools.islice(iter(lambda: next_message(stream), ""), 30))

    assert messages[0].startswith("event: contention\n")
    assert messages[-1] == 'event: problem\ndata: {"code":"unauthenticated"}\n'
    assert time.time() >= expires_at - 0.5


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("sort=age", "sort"),
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=x", "limit"),
        ("cursor=x", "cursor"),
        ("search=" + "a" * 201, "search"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(own_world: World, query: str, field: str) -> None:
    answer = own_world.api.get(f"/v1/locks?{query}", user=1, scope=MONITOR)
    assert problem(answer, "invalid-request")["field"] == field


@pytest.mark.parametrize("name", ["a%20b", "%3Cscript%3E", "a" * 201, "%C3%A4", "a%0Ab"])
def test_a_name_that_no_lock_has_is_refused(own_world: World, name: str) -> None:
    answer = own_world.api.get(f"/v1/locks/{name}", user=1, scope=MONITOR)
    assert problem(answer, "invalid-request")["field"] == "name"


def test_a_lock_that_python_redis_lock_holds_is_shown_without_a_holder(own_world: World) -> None:
    with redis.Redis.from_url(own_world.redis_url, socket_timeout=None) as client:
        lock = Lock(client, "{jobs/nightly:1}", expire=30)
        assert lock.acquire()
        shown = get(own_world, f"/v1/locks/{quote('jobs/nightly:1', safe='')}")
        lock.release()
    assert (shown["holder"], shown["fencing_token"], shown["by_python_redis_lock"]) == (None, None, True)
    assert 0 < shown["expires_in_ms"] <= 30_000


def test_counts_of_entries_are_those_of_the_answers(own_world: World) -> None:
    before = get(own_world, "/v1/contention")
    meetings = [own_world.meeting() for _ in range(5)]
    for id_, inviter, invitee in meetings:
        assert [own_world.api.enter(id_, user).status for user in (inviter, invitee, inviter)] == [201, 200, 200]

    def counted() -> bool:
        now = get(own_world, "/v1/contention")
        prevented = sum(now["duplicates_prevented"].values()) - sum(before["duplicates_prevented"].values())
        return bool(prevented == 10)

    wait_until(counted)


def test_without_redis_watching_says_so(module_database_url: str, tmp_path: Path) -> None:
    nowhere = f"redis://127.0.0.1:{unused_port()}/0"
    with a_world(tmp_path, module_database_url, nowhere, {}) as world:
        for path in ("/v1/locks", "/v1/locks/a", "/v1/contention", "/v1/contention/stream"):
            problem(world.api.get(path, user=1, scope=MONITOR), "lock-store-down")


def _has_waiters(world: World, name: str, count: int) -> bool:
    return bool(get(world, f"/v1/locks/{name}")["waiters"] == count)


def _enter_or_break(api: Api, appointment_id: int, user_id: int) -> Answer | None:
    try:
        return api.enter(appointment_id, user_id)
    except (ConnectionError, http.client.HTTPException):
        return None


def _waits_elsewhere(lock: dict[str, Any], holder: int) -> bool:
    """Whether one at least waits in another process than the holder's: the kernel deals connections out as it likes."""
    return any(waiter["pid"] != holder for waiter in lock["waiting"])


def _next_event(stream: http.client.HTTPResponse) -> dict[str, Any]:
    give_up_at_s = time.monotonic() + 30
    while time.monotonic() < give_up_at_s:
        line = stream.readline()
        if line.startswith(b"data: "):
            told = json.loads(line.removeprefix(b"data: "))
            assert isinstance(told, dict)
            return told
    raise AssertionError("no event within 30 s")
