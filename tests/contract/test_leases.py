"""Leases for any other program: had, waited for, extended, given back and lost over HTTP, through whichever worker."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime

import pytest
import redis
import redis_lock

from tests.contract.api import Answer, Api, in_background, problem, worker_behind
from tests.contract.conftest import World
from tests.contract.lease_client import USER, LeaseClient, fresh_name, holder_id, leases_of
from tests.contract.pressure import has_hung_up
from tests.harness import PATIENCE_S, OwnRedis, Service, bearer, wait_until

MAX_WAITS = 2
LONG_MS = 50_000  # what ends before it did not end because its time was over
SOON_S = 30.0


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"max_lease_waits": str(MAX_WAITS), "drain_timeout_s": "1", "caller_share": "1"}


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """As python-redis-lock needs it: no timeout of the socket's own under its BLPOP."""
    with redis.Redis.from_url(redis_url, socket_timeout=None) as client:
        yield client


def lost(answer: Answer, reason: str) -> None:
    """Asserts that the answer says why the lease is over."""
    assert problem(answer, "lease-lost")["reason"] == reason


def test_a_lease_is_had_extended_and_given_back_and_its_id_stands_nowhere_else(
    world: World, leases: LeaseClient
) -> None:
    name = fresh_name()
    answer = leases.ask(name, ttl_ms=5000, headers={"X-Request-Id": "the-holder"})
    assert answer.status == 201
    assert answer.headers["cache-control"] == "no-store"
    lease = answer.json
    assert lease.keys() == {"name", "lease_id", "fencing_token", "ttl_ms", "expires_at", "mode", "owner"}
    assert (lease["name"], lease["ttl_ms"]) == (name, 5000)
    assert re.fullmatch(r"[0-9a-f]{32}", lease["lease_id"])

    refusal = leases.ask(name)
    members = problem(refusal, "lock-busy")
    assert members["holder"].keys() == {"instance", "host", "pid", "request_id", "owner"}
    assert members["holder"]["request_id"] == "the-holder"
    assert members["holder"]["pid"] in world.service.worker_pids()
    assert 0 < members["expires_in_ms"] <= 5000
    assert members["waiters"] == 0
    assert 1 <= int(refusal.headers["retry-after"]) <= 5

    extended = [leases.extend(name, lease["lease_id"], ttl_ms=60_000) for _ in range(4)]
    assert [each.status for each in extended] == [200] * 4
    assert {each.json["fencing_token"] for each in extended} == {lease["fencing_token"]}
    assert extended[-1].json["expires_at"] > lease["expires_at"]
    shown = leases.show(name)
    assert shown.json["holder"]["request_id"] == "the-holder"

    assert leases.release(name, lease["lease_id"]).status == 204
    lost(leases.release(name, lease["lease_id"]), "released")
    lost(leases.extend(name, lease["lease_id"]), "released")
    problem(leases.show(name), "lock-free")
    again = leases.lease(name)
    assert again["fencing_token"] > lease["fencing_token"]
    for place in (refusal.body, shown.body, world.api.get("/metrics").body, world.service.logged().encode()):
        assert lease["lease_id"].encode() not in place
        assert again["lease_id"].encode() not in place


def test_no_lease_is_promised_for_longer_than_redis_keeps_it(leases: LeaseClient, client: redis.Redis) -> None:
    name = fresh_name()

    def slack_s(lease: dict[str, str]) -> float:
        remaining_ms = int(client.pttl(f"lock:{{{name}}}"))
        return time.time() + remaining_ms / 1000 - datetime.fromisoformat(lease["expires_at"]).timestamp()

    lease = leases.lease(name, ttl_ms=30_000)
    assert -0.002 < slack_s(lease) < 5  # PTTL rounds
    assert -0.002 < slack_s(leases.extend(name, lease["lease_id"], ttl_ms=45_000).json) < 5
    with in_background() as start:
        waiting = start(leases.lease, name, ttl_ms=40_000, wait_ms=LONG_MS)
        wait_until(lambda: leases.waiters(name) == 1)
        leases.release(name, lease["lease_id"])
        assert -0.002 < slack_s(waiting.result()) < 5


def test_whoever_waits_gets_the_lock_when_it_is_given_back_and_the_first_goes_first(leases: LeaseClient) -> None:
    name = fresh_name()
    held = leases.lease(name)
    with in_background() as start:
        first = start(leases.lease, name, wait_ms=LONG_MS)
        wait_until(lambda: leases.waiters(name) == 1)
        second = start(leases.lease, name, wait_ms=LONG_MS)
        wait_until(lambda: leases.waiters(name) == 2)
        assert leases.release(name, held["lease_id"]).status == 204
        got = first.result()
        assert not second.done()
        assert leases.release(name, got["lease_id"]).status == 204
        last = second.result()
    assert held["fencing_token"] < got["fencing_token"] < last["fencing_token"]
    assert leases.release(name, last["lease_id"]).status == 204
    problem(leases.ask(name, ttl_ms=500, scope="monitor"), "forbidden")


def test_a_wait_that_is_over_is_refused_and_a_lease_that_lapses_is_the_waiters(leases: LeaseClient) -> None:
    name = fresh_name()
    lease = leases.lease(name, ttl_ms=2000)
    members = problem(leases.ask(name, wait_ms=100), "lock-busy")
    assert members["holder"] is not None
    taken_over = leases.ask(name, wait_ms=LONG_MS)
    assert taken_over.status == 201
    lost(leases.extend(name, lease["lease_id"]), "taken")

    def lost_leases() -> float:
        # Its keeper finds out by its own clock, or by being the worker that was just asked.
        reasons = ("expired", "taken", "deleted")
        return sum(leases.sample("lock_leases_lost_total", name, reason=reason) for reason in reasons)

    wait_until(lambda: lost_leases() >= 1, what="the books of whichever worker kept it")
    # The holders are counted at the end of the tick in which the loss was.
    wait_until(lambda: leases.sample("lock_holders", name) == 1, what="one holder in the books")
    assert lost_leases() == 1


def test_what_became_of_a_lease_is_told_apart(leases: LeaseClient, client: redis.Redis) -> None:
    name, other = fresh_name(), fresh_name()
    for lease_id in ("x", "0" * 32, "A" * 32, "../leases", "a b", "%00", "0" * 5000):
        lost(leases.extend(name, lease_id), "unknown")
        lost(leases.release(name, lease_id), "unknown")
    lease = leases.lease(name, ttl_ms=5000)
    lost(leases.extend(other, lease["lease_id"]), "unknown")
    lost(leases.extend(name, "0" * 32), "taken")
    assert leases.extend(name, lease["lease_id"], ttl_ms=100).status == 200, "nobody else's question has harmed it"
    wait_until(lambda: holder_id(client, name) is None)
    lost(leases.extend(name, lease["lease_id"]), "expired")

    deleted = leases.lease(name)
    client.delete(f"lock:{{{name}}}")
    lost(leases.release(name, deleted["lease_id"]), "deleted")
    wait_until(lambda: leases.sample("lock_holders", name) == 0, what="the books of whichever worker kept it")
    assert leases.sample("lock_leases_lost_total", name, reason="deleted") == 1
    assert leases.sample("lock_leases_lost_total", name, reason="expired") == 1


def test_the_books_are_right_whichever_worker_is_asked(leases: LeaseClient) -> None:
    name = fresh_name()
    for _ in range(6):
        lease = leases.lease(name)
        assert [leases.extend(name, lease["lease_id"]).status for _ in range(2)] == [200, 200]
        assert leases.sample("lock_holders", name) == 1
        assert leases.release(name, lease["lease_id"]).status == 204

    wait_until(lambda: leases.sample("lock_held_seconds_count", name) == 6)
    assert leases.sample("lock_holders", name) == 0
    assert leases.sample("lock_acquire_total", name, outcome="acquired") == 6
    assert leases.sample("lock_leases_lost_total", name, reason="deleted") == 0


def test_a_lock_may_have_any_name_that_locks_have_and_no_other(leases: LeaseClient) -> None:
    for name in (fresh_name() + "/a/leases/b", "." + fresh_name(), fresh_name() + "-_/.:", "x" * 150 + fresh_name()):
        lease = leases.lease(name)
        assert lease["name"] == name
        assert leases.show(name).json["name"] == name
        assert leases.release(name, lease["lease_id"]).status == 204
    for name in ("a b", "ä", "a{b}", "{b}", "a%2Fb", "a+b", "x" * 201, "a\nb"):
        for answer in (leases.ask(name), leases.extend(name, "0" * 32), leases.release(name, "0" * 32)):
            assert problem(answer, "invalid-request")["field"] == "name"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ttl_ms": 99},
        {"ttl_ms": 3_600_001},
        {"ttl_ms": "1000"},
        {"ttl_ms": 1000.5},
        {"ttl_ms": True},
        {"ttl_ms": 1000, "wait_ms": -1},
        {"ttl_ms": 1000, "wait_ms": 60_001},
        {"ttl_ms": 1000, "wait_ms": None},
        {"ttl_ms": 1000, "wait": 5},
    ],
    ids=json.dumps,
)
def test_a_body_that_is_wrong_takes_no_lock(world: World, leases: LeaseClient, body: dict[str, object]) -> None:
    name = fresh_name()
    problem(world.api.post(leases_of(name), user=USER, scope="locks", send=body), "invalid-request")
    problem(leases.show(name), "lock-free")


def test_only_the_scope_locks_has_leases(world: World, leases: LeaseClient) -> None:
    name = fresh_name()
    lease = leases.lease(name)
    path = f"{leases_of(name)}/{lease['lease_id']}"
    for method, where in (("POST", leases_of(name)), ("PUT", path), ("DELETE", path)):
        problem(world.api.call(method, where, send={"ttl_ms": 1000}), "unauthenticated")
        problem(
            world.api.call(method, where, send={"ttl_ms": 1000}, user=USER, scope="service monitor operator"),
            "forbidden",
        )
    assert leases.extend(name, lease["lease_id"]).status == 200


def test_python_redis_lock_and_a_lease_exclude_each_other(leases: LeaseClient, client: redis.Redis) -> None:
    name = fresh_name()
    program = redis_lock.Lock(client, f"{{{name}}}", expire=30)
    assert program.acquire()
    members = problem(leases.ask(name), "lock-busy")
    assert members["holder"] is None
    assert 0 < members["expires_in_ms"] <= 30_000
    with in_background() as start:
        waiting = start(leases.lease, name, wait_ms=LONG_MS)
        wait_until(lambda: leases.waiters(name) == 1)
        program.release()
        lease = waiting.result()
    assert not program.acquire(blocking=False)
    assert leases.release(name, lease["lease_id"]).status == 204
    assert program.acquire(blocking=False)
    program.release()


def test_so_many_may_wait_in_one_worker_and_no_more(world: World, leases: LeaseClient) -> None:
    name = fresh_name()
    held = leases.lease(name)
    waiters = [Visitor(world.api, name) for _ in range(2 * MAX_WAITS)]
    wait_until(lambda: leases.waiters(name) >= MAX_WAITS)
    refused = []
    with in_background() as start:
        asking = [start(leases.ask, name, wait_ms=300) for _ in range(2 * MAX_WAITS)]
        refused = [each.result() for each in asking]
    assert {answer.status for answer in refused} <= {409, 503}
    problem(next(answer for answer in refused if answer.status == 503), "overloaded")
    assert leases.waiters(name) <= 2 * MAX_WAITS
    for waiter in waiters:
        waiter.hang_up()
    wait_until(lambda: leases.waiters(name) == 0, patience_s=SOON_S, what="their places to be free")
    assert leases.release(name, held["lease_id"]).status == 204


class Visitor:
    """A client that asks for a lease, waits, and hangs up without having read anything."""

    def __init__(self, api: Api, name: str) -> None:
        self._api = api
        self._connection: http.client.HTTPConnection = api.connection()
        body = json.dumps({"ttl_ms": LONG_MS, "wait_ms": LONG_MS})
        headers = {**bearer(USER, "locks"), "Content-Type": "application/json"}
        self._connection.request("POST", leases_of(name), body, headers)
        assert self._connection.sock is not None
        self._port: int = self._connection.sock.getsockname()[1]

    def hang_up(self) -> None:
        self._connection.close()

    def is_noticed(self) -> bool:
        return has_hung_up(self._api, self._port)


def test_a_client_that_hangs_up_while_it_waits_gives_up_its_place(
    world: World, leases: LeaseClient, client: redis.Redis
) -> None:
    name = fresh_name()
    held = leases.lease(name)
    visitor = Visitor(world.api, name)
    wait_until(lambda: leases.waiters(name) == 1)
    visitor.hang_up()
    wait_until(lambda: leases.waiters(name) == 0, patience_s=SOON_S, what="its place to be free")
    assert leases.release(name, held["lease_id"]).status == 204
    assert holder_id(client, name) is None
    assert leases.sample("lock_waiters", name) == 0


def test_a_client_that_hangs_up_just_as_the_lease_is_granted_leaves_none_behind(
    world: World, leases: LeaseClient, client: redis.Redis
) -> None:
    name = fresh_name()
    for turn in range(12):
        held = leases.lease(name, wait_ms=LONG_MS)
        visitor = Visitor(world.api, name)
        wait_until(lambda: leases.waiters(name) == 1)
        with in_background() as start:
            # The one before the other, and a moment later each time: both orders and what lies between are met.
            releasing = start(leases.release, name, held["lease_id"]) if turn % 2 else None
            time.sleep(turn % 6 * 0.0005)
            visitor.hang_up()
            assert (releasing.result() if releasing else leases.release(name, held["lease_id"])).status == 204
        wait_until(visitor.is_noticed)
        answered = holder_id(client, name)
        if answered is not None and turn % 2:
            # It was answered before it hung up: then the lease is its own, and nobody can know that it is not wanted.
            client.delete(f"lock:{{{name}}}")
            continue
        wait_until(lambda: holder_id(client, name) is None, patience_s=SOON_S, what="the lease to be given back")


def test_a_lease_outlives_the_worker_that_granted_it_and_is_counted_on(
    world: World, leases: LeaseClient, client: redis.Redis
) -> None:
    name = fresh_name()
    with world.api.connection_closing() as connection:
        lease = leases.lease(name, on=connection)
        granted_by = worker_behind(world.service, connection)
        assert granted_by is not None
        os.kill(granted_by, signal.SIGKILL)
    wait_until(lambda: len(pids := world.service.worker_pids()) == 2 and granted_by not in pids, what="another worker")
    wait_until(lambda: world.api.every_worker_says("lock_store", "up"))

    extended = leases.extend(name, lease["lease_id"])
    assert (extended.status, extended.json["fencing_token"]) == (200, lease["fencing_token"])
    assert leases.show(name).json["holder"]["pid"] in world.service.worker_pids()
    wait_until(lambda: leases.sample("lock_holders", name) == 1)
    assert leases.release(name, lease["lease_id"]).status == 204
    wait_until(lambda: leases.sample("lock_holders", name) == 0)
    assert leases.sample("lock_held_seconds_count", name) == 1
    assert holder_id(client, name) is None


def test_an_instance_that_stops_ends_open_waits_at_once_and_leaves_leases_to_their_clients(
    world: World, leases: LeaseClient, start_service: Callable[..., Service], client: redis.Redis
) -> None:
    name = fresh_name()
    stopping = start_service(workers=1, drain_timeout_s="40")
    elsewhere = LeaseClient(Api(stopping.url))
    lease = elsewhere.lease(name)
    with in_background() as start:
        waiting = start(elsewhere.ask, name, wait_ms=LONG_MS)
        wait_until(lambda: leases.waiters(name) == 1)
        began_at_s = time.monotonic()
        stopping.process.send_signal(signal.SIGTERM)
        problem(waiting.result(), "draining")
        assert stopping.process.wait(PATIENCE_S) == 0
        assert time.monotonic() - began_at_s < LONG_MS / 1000 / 2
    assert holder_id(client, name) == lease["lease_id"]
    extended = leases.extend(name, lease["lease_id"])
    assert (extended.status, extended.json["fencing_token"]) == (200, lease["fencing_token"])
    assert lease["lease_id"] not in stopping.logged()
    assert "Traceback" not in stopping.logged()


def test_without_the_lock_store_every_call_says_so(start_service: Callable[..., Service], own_redis: OwnRedis) -> None:
    leases = LeaseClient(Api(start_service(workers=1, redis_url=own_redis.url).url))
    name = fresh_name()
    lease, given_back = leases.lease(name), leases.lease(f"{name}/given-back")
    own_redis.kill()
    for answer in (
        leases.ask(name),
        leases.ask(name, wait_ms=100),
        leases.extend(name, lease["lease_id"]),
        leases.release(given_back["name"], given_back["lease_id"]),
    ):
        problem(answer, "lock-store-down")
    own_redis.start()
    wait_until(lambda: leases.api.get("/readyz").json["dependencies"]["lock_store"] == "up")
    lost(leases.extend(name, lease["lease_id"]), "deleted")
    # The release is sent again, and finds nothing either: both are booked.
    wait_until(lambda: leases.sample("lock_leases_lost_total", name, reason="deleted") == 2)
