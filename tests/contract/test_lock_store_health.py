"""A lock store that answers and does not do its work is down; its words are for the log, and not for clients."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.contract.api import Api, problem
from tests.contract.test_lock_outage import meetings
from tests.harness import Rows, Service, wait_until
from tests.integration.refusing import EVERY, OOM, READONLY, Refusal
from tests.servers.fixtures import HARD_PASSWORD, StartRedis
from tests.servers.redis_server import AclUser

StartService = Callable[..., Service]

LOST, UP, FAILED, EVICTS = "lock store lost", "lock store up", "lock store failed requests", "lock store may evict"


def says(api: Api, state: str) -> bool:
    """Whether its one worker says so in /readyz and in the metrics."""
    told = api.get("/readyz").json["dependencies"]["lock_store"]
    return told == state and api.metric("dependency_up", dependency="lock_store") == (state == "up")


def lines(service: Service, words: str) -> list[str]:
    return [line for line in service.logged().splitlines() if words in line]


@pytest.mark.parametrize("refusal", [*EVERY, OOM], ids=lambda refusal: refusal.word)
def test_a_lock_store_that_refuses_is_down_until_it_takes_locks_again(
    start_service: StartService, start_redis: StartRedis, refusal: Refusal
) -> None:
    server = start_redis(settings=refusal.settings)
    service = start_service(redis_url=server.url, workers=1)
    api = Api(service.url)
    assert says(api, "up")
    lost_before = len(lines(service, LOST))

    refusal.begin(server)
    wait_until(lambda: says(api, "down"), what="a lock store that is down")
    assert api.get("/readyz").status == 200, "with LOCK_OUTAGE=proceed this instance may take traffic"
    refusal.end(server)
    wait_until(lambda: says(api, "up"), what="a lock store that is up again")

    lost = lines(service, LOST)[lost_before:]
    assert len(lost) == 1, "one line, however often it was looked"
    assert refusal.word in lost[0] or refusal is READONLY
    assert len(lines(service, UP)) == 2


def test_what_the_lock_store_says_is_logged_and_not_told_to_clients(
    start_service: StartService, start_redis: StartRedis, rows: Rows
) -> None:
    server = start_redis()
    service = start_service(redis_url=server.url, workers=1, lock_outage="refuse")
    api = Api(service.url)
    id_, person, _ = meetings(rows, 1)[0]
    OOM.begin(server)
    answers = [
        problem(api.enter(id_, person), "lock-store-down"),
        problem(
            api.post("/v1/locks/mine/leases", user=1, scope="locks", send={"ttl_ms": 1000}),
            "lock-store-down",
        ),
    ]
    wait_until(lambda: api.get("/readyz").status == 503, what="an instance that takes no traffic")
    answers.append(problem(api.get("/readyz"), "lock-store-down"))
    for members in answers:
        assert "OOM" not in str(members)
        assert "maxmemory" not in str(members)
    assert any("OOM" in line for line in lines(service, FAILED))
    OOM.end(server)
    wait_until(lambda: api.enter(id_, person).status == 201)


@pytest.mark.parametrize("policy", ["allkeys-random", "volatile-lru"])
def test_a_start_on_a_server_that_evicts_says_so_in_one_line(
    start_service: StartService, start_redis: StartRedis, policy: str
) -> None:
    server = start_redis(settings=[f"maxmemory-policy {policy}"])
    service = start_service(redis_url=server.url, workers=1)
    (line,) = lines(service, EVICTS)
    assert policy in line


@pytest.mark.parametrize(
    ("policy", "rules", "is_told"),
    [
        ("noeviction", "~* &* +@all", False),
        ("allkeys-lru", "~* &* +@all -config", True),
        ("allkeys-lru", "~* &* +@all -info", True),
        ("allkeys-lru", "~* &* +@all -info -config", False),
    ],
)
def test_what_the_server_does_not_tell_is_not_claimed(
    start_service: StartService, start_redis: StartRedis, policy: str, rules: str, is_told: bool
) -> None:
    server = start_redis(settings=[f"maxmemory-policy {policy}"], users=[AclUser("locker", HARD_PASSWORD, rules)])
    service = start_service(redis_url=server.url, workers=1)
    assert says(Api(service.url), "up")
    assert bool(lines(service, EVICTS)) is is_told
    assert lines(service, LOST) == []


@pytest.mark.parametrize("missing", ["-evalsha", "-script", "-publish", "-subscribe", "-zadd -set", "-@scripting"])
def test_a_start_without_the_rights_that_locks_need_says_so_in_one_line(
    start_service: StartService, start_redis: StartRedis, missing: str
) -> None:
    server = start_redis(users=[AclUser("locker", HARD_PASSWORD, f"~* &* +@all {missing}")])
    service = start_service(redis_url=server.url, workers=1)
    api = Api(service.url)
    assert says(api, "down")
    (line,) = lines(service, LOST)
    assert "NOPERM" in line or "permission" in line
    assert api.get("/readyz").status == 200
