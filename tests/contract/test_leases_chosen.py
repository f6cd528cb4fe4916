"""A client chooses its lease id, so that an answer that was lost does not lock it out: asked again, the same lease."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator

import pytest
import redis

from tests.contract.api import in_background, problem
from tests.contract.conftest import World
from tests.contract.lease_client import USER, LeaseClient, fresh_name, holder_id, leases_of
from tests.harness import bearer, wait_until

LONG_MS = 50_000


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def new_id() -> str:
    return secrets.token_hex(16)


def test_asked_again_it_is_the_same_lease_through_whichever_worker(world: World, leases: LeaseClient) -> None:
    name, lease_id = fresh_name(), new_id()
    first = leases.ask(name, lease_id=lease_id, ttl_ms=5000)
    assert first.status == 201
    assert first.headers["cache-control"] == "no-store"
    assert first.json["lease_id"] == lease_id
    again = [leases.ask(name, lease_id=lease_id, ttl_ms=60_000, wait_ms=wait_ms) for wait_ms in (0, LONG_MS) * 3]
    assert {answer.status for answer in again} == {200}
    assert {answer.json["fencing_token"] for answer in again} == {first.json["fencing_token"]}
    assert again[-1].json["expires_at"] > first.json["expires_at"]
    assert leases.show(name).json["fencing_token"] == first.json["fencing_token"]
    problem(leases.ask(name, lease_id=new_id()), "lock-busy")
    assert leases.ask(fresh_name(), lease_id=lease_id).status == 201, "under another name it is another lease"

    assert leases.extend(name, lease_id).status == 200
    assert leases.release(name, lease_id).status == 204
    for _ in range(4):
        assert problem(leases.ask(name, lease_id=lease_id, wait_ms=LONG_MS), "lease-lost")["reason"] == "released"
    problem(leases.show(name), "lock-free")
    assert lease_id.encode() not in world.api.get("/metrics").body + world.service.logged().encode()


def test_a_client_that_has_not_read_the_answer_has_its_lease_when_it_asks_again(
    world: World, leases: LeaseClient, client: redis.Redis
) -> None:
    for wait_ms in (0, LONG_MS) * 3:
        name, lease_id = fresh_name(), new_id()
        connection = world.api.connection()
        body = json.dumps({"ttl_ms": LONG_MS, "wait_ms": wait_ms, "lease_id": lease_id})
        headers = {**bearer(USER, "locks"), "Content-Type": "application/json"}
        connection.request("POST", leases_of(name), body, headers)
        wait_until(lambda name=name: holder_id(client, name) is not None)  # type: ignore[misc]
        connection.close()

        assert leases.ask(name, lease_id=lease_id, wait_ms=LONG_MS).status in (200, 201)
        assert holder_id(client, name) == lease_id
        assert leases.release(name, lease_id).status == 204


def test_asked_again_while_the_first_request_waits_both_get_the_one_lease(leases: LeaseClient) -> None:
    name, lease_id = fresh_name(), new_id()
    held = leases.lease(name)
    with in_background() as start:
        asking = [start(leases.ask, name, lease_id=lease_id, wait_ms=LONG_MS) for _ in range(3)]
        wait_until(lambda: leases.waiters(name) >= 1)
        problem(leases.ask(name, lease_id=lease_id, wait_ms=100), "lock-busy")
        assert leases.waiters(name) <= 2, "one place in line a worker"
        assert leases.release(name, held["lease_id"]).status == 204
        answers = [each.result() for each in asking]
    assert sorted(answer.status for answer in answers) == [200, 200, 201]
    assert len({answer.json["fencing_token"] for answer in answers}) == 1
    assert leases.release(name, lease_id).status == 204
    problem(leases.show(name), "lock-free")


@pytest.mark.parametrize(
    "lease_id", ["", "0" * 31, "0" * 33, "A" * 32, "g" * 32, "0" * 31 + "\n", 7, ["0" * 32]], ids=repr
)
def test_an_id_of_another_shape_is_refused(leases: LeaseClient, lease_id: object) -> None:
    name = fresh_name()
    assert problem(leases.ask(name, lease_id=lease_id), "invalid-request")["field"] == "lease_id"
    problem(leases.show(name), "lock-free")
