"""An operator ends a lease that is not theirs: written down first, compared on the token, and told to the holder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
import redis_lock

from tests.contract.api import Answer, Api, in_background, problem
from tests.contract.conftest import World
from tests.contract.lease_client import LeaseClient, fresh_name, holder_id
from tests.harness import OwnRedis, service, wait_until
from tests.lock_process import LockProcess

OPERATOR = 99
LONG_MS = 50_000


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """As python-redis-lock needs it: no timeout of the socket's own under its BLPOP."""
    with redis.Redis.from_url(redis_url, socket_timeout=None) as client:
        yield client


def force(
    leases: LeaseClient, name: str, fencing_token: object, *, reason: object = "it hangs", scope: str = "operator"
) -> Answer:
    """POST …/force-release."""
    path = f"/v1/locks/{quote(name, safe='')}/force-release"
    body = {"reason": reason, "fencing_token": fencing_token}
    return leases.api.post(path, user=OPERATOR, scope=scope, send=body)


def audited(world: World, name: str) -> list[tuple[Any, ...]]:
    """What stands in lock_audit of this lock, oldest first."""
    return world.rows.run(
        "SELECT actor, action, reason, holder, fencing_token FROM lock_audit WHERE lock_name = %s ORDER BY id", name
    )


def test_the_holder_in_another_process_is_told_and_the_next_in_line_gets_the_lock(
    world: World, leases: LeaseClient, tmp_path: Path
) -> None:
    name = fresh_name() + "/with/slashes"
    forced_before = world.api.metric("lock_forced_releases_total")
    with LockProcess.start(world.redis_url, tmp_path, instance_id="the-holder") as holder, in_background() as start:
        held = holder.hold(name, lease_ttl_s=60.0)
        token = holder.wait_for(held, "acquired")["fencing_token"]
        waiting = start(leases.lease, name, wait_ms=LONG_MS)
        wait_until(lambda: leases.waiters(name) == 1)

        answer = force(leases, name, token, reason="  it hangs  ")

        assert answer.status == 200, answer
        assert answer.json.keys() == {"name", "released", "fencing_token", "holder"}
        assert (answer.json["name"], answer.json["released"], answer.json["fencing_token"]) == (name, True, token)
        assert answer.json["holder"]["instance"] == "the-holder"
        assert answer.json["holder"]["pid"] == holder.pid
        assert holder.wait_for(held, "lost")["reason"] == "forced", "its body was cancelled"
        next_lease = waiting.result()
        assert next_lease["fencing_token"] > token
    [(actor, action, reason, written_holder, written_token)] = audited(world, name)
    assert (actor, action, reason, written_token) == (str(OPERATOR), "force-release", "it hangs", token)
    assert written_holder.startswith("the-holder ")
    assert str(holder.pid) in written_holder
    assert world.api.metric("lock_forced_releases_total") == forced_before + 1
    assert leases.release(name, next_lease["lease_id"]).status == 204


def test_a_lease_that_is_held_over_http_is_lost_as_forced_and_counted_so(world: World, leases: LeaseClient) -> None:
    name = fresh_name()
    lease = leases.lease(name)
    assert force(leases, name, lease["fencing_token"]).status == 200

    assert problem(leases.extend(name, lease["lease_id"]), "lease-lost")["reason"] == "forced"
    assert problem(leases.release(name, lease["lease_id"]), "lease-lost")["reason"] == "forced"
    wait_until(lambda: leases.sample("lock_leases_lost_total", name, reason="forced") == 1)
    assert leases.sample("lock_holders", name) == 0
    assert lease["lease_id"] not in str(audited(world, name))


def test_another_token_than_the_current_one_releases_nothing_and_is_written_down_as_refused(
    world: World, leases: LeaseClient
) -> None:
    name = fresh_name()
    problem(force(leases, name, 1), "holder-changed")
    lease = leases.lease(name)
    for token in (0, lease["fencing_token"] - 1, lease["fencing_token"] + 1, 2**63 - 1):
        problem(force(leases, name, token), "holder-changed")

    assert leases.extend(name, lease["lease_id"]).status == 200
    rows = audited(world, name)
    assert [row[1] for row in rows] == ["force-release-refused"] * 5
    assert rows[0][3] is None, "nobody held it"
    assert all(row[3] for row in rows[1:])


def test_of_two_operators_at_once_one_releases_and_both_are_written_down(world: World, leases: LeaseClient) -> None:
    name = fresh_name()
    token = leases.lease(name)["fencing_token"]
    with in_background() as start:
        answers = [each.result() for each in [start(force, leases, name, token) for _ in range(2)]]
    assert sorted(answer.status for answer in answers) == [200, 409]
    assert sorted(row[1] for row in audited(world, name)) == ["force-release", "force-release-refused"]


def test_a_python_redis_lock_programs_lock_is_released_by_the_token_0(
    world: World, leases: LeaseClient, client: redis.Redis
) -> None:
    name = fresh_name()
    program = redis_lock.Lock(client, f"{{{name}}}", expire=60)
    assert program.acquire()
    problem(force(leases, name, 1), "holder-changed")
    answer = force(leases, name, 0)
    assert (answer.status, answer.json["holder"]) == (200, None)
    assert holder_id(client, name) is None
    assert [row[3] for row in audited(world, name)] == ["a python-redis-lock program"] * 2


@pytest.mark.parametrize("scope", ["", "locks", "service", "monitor"])
def test_only_an_operator_may_and_nothing_else_is_written_down(world: World, leases: LeaseClient, scope: str) -> None:
    name = fresh_name()
    lease = leases.lease(name)
    problem(force(leases, name, lease["fencing_token"], scope=scope), "forbidden")
    assert leases.extend(name, lease["lease_id"]).status == 200
    assert audited(world, name) == []


@pytest.mark.parametrize(
    ("field", "reason", "token"),
    [
        ("reason", "", 1),
        ("reason", "  ", 1),
        ("reason", "x" * 501, 1),
        ("reason", "a\nb", 1),
        ("reason", "a\x00b", 1),
        ("reason", 5, 1),
        ("fencing_token", "x", -1),
        ("fencing_token", "x", "1"),
        ("fencing_token", "x", 2**63),
        ("fencing_token", "x", None),
    ],
)
def test_what_is_not_well_formed_names_its_field_and_is_not_written_down(
    world: World, leases: LeaseClient, field: str, reason: object, token: object
) -> None:
    name = fresh_name()
    assert problem(force(leases, name, token, reason=reason), "invalid-request")["field"] == field
    assert audited(world, name) == []


def test_a_reason_in_any_script_is_kept_as_it_is(world: World, leases: LeaseClient) -> None:
    name, reason = fresh_name(), "<b>hängt</b>; DROP TABLE lock_audit; 挂起 " + "x" * 400
    problem(force(leases, name, 1, reason=reason), "holder-changed")
    assert audited(world, name)[0][2] == reason


def test_without_the_database_nothing_is_forced_and_without_the_lock_store_it_is_written_down(
    world: World, own_redis: OwnRedis, tmp_path: Path
) -> None:
    settings = {"redis_url": own_redis.url, "database_connect_timeout_s": "1"}
    name = fresh_name()
    with service(tmp_path, workers=1, database_url="postgresql://nobody@127.0.0.1:1/none", **settings) as without:
        leases = LeaseClient(Api(without.url))
        lease = leases.lease(name)
        problem(force(leases, name, lease["fencing_token"]), "database-down")
        assert leases.extend(name, lease["lease_id"]).status == 200
    with service(tmp_path, workers=1, database_url=world.database_url, **settings) as without:
        leases = LeaseClient(Api(without.url))
        own_redis.kill()
        problem(force(leases, name, lease["fencing_token"]), "lock-store-down")
        assert [row[1] for row in audited(world, name)] == ["force-release-unknown"]
