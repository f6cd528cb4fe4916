"""/livez, /readyz, /metrics and the log: what the service says of itself."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

import pytest

from tests.contract.api import Api, assert_books_right, crowd, price, problem
from tests.contract.conftest import World
from tests.harness import APP_CERTIFICATE, SECRET, token, wait_until

Sample = tuple[str, tuple[tuple[str, str], ...]]
SERVER_DURATION = "chargeonce_http_server_request_duration_seconds_count"
REFUSED = ["insufficient-coupons", "illegal-request", "appointment-not-open", "charge-in-progress", "overloaded"]
REFUSED += ["draining", "database-down", "lock-store-down", "charge-unknown"]


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"log_format": "json"}  # as it is anyhow, but so that this service is no other module's


def test_every_series_is_there_from_the_start_with_every_label_set(world: World) -> None:
    """First in this module: nobody has entered yet."""
    samples = world.api.metrics()

    def at_zero(name: str, **labels: str) -> None:
        key = (f"chargeonce_{name}", tuple(sorted(labels.items())))
        assert key in samples, f"missing: {key}"
        assert samples[key] == 0, key

    for outcome in ["charged", "already_charged", "free", *REFUSED]:
        at_zero("charges_total", outcome=outcome)
    for stage in ("lock", "queue", "transaction"):
        at_zero("charge_seconds_count", stage=stage)
    for layer in ("lock", "is_consume", "row_lock", "fence"):
        at_zero("duplicates_prevented_total", layer=layer)
    for outcome in ("acquired", "busy", "cancelled", "dismissed", "store-down"):
        at_zero("lock_acquire_total", resource="appointment", outcome=outcome)
        at_zero("lock_wait_seconds_count", resource="appointment", outcome=outcome)
    for reason in ("expired", "taken", "deleted", "unreachable"):
        at_zero("lock_leases_lost_total", resource="appointment", reason=reason)
    for name in ("lock_held_seconds_count", "lock_waiters", "lock_holders"):
        at_zero(name, resource="appointment")
    for name in ("charge_batch_size_count", "lock_handoff_seconds_count", "lock_takeovers_total"):
        at_zero(name)
    for name in ("lock_forced_releases_total", "db_transaction_seconds_count", "log_lines_dropped_total"):
        at_zero(name)
    assert any(name == "chargeonce_lock_wakeups_total" for name, _ in samples)
    assert all(value == 0 for (name, _), value in samples.items() if name == "chargeonce_lock_wakeups_total")
    assert "chargeonce_event_loop_lag_seconds_count" in {name for name, _ in samples}
    for dependency in ("database", "lock_store"):
        assert samples["chargeonce_dependency_up", (("dependency", dependency),)] == 1


def test_the_durations_of_entries_are_there_from_the_start_and_others_from_their_first_use(world: World) -> None:
    def served() -> set[tuple[str, ...]]:
        labels = ("http_request_method", "http_route", "http_response_status_code")
        found = [dict(pairs) for name, pairs in world.api.metrics() if name == SERVER_DURATION]
        return {tuple(each[label] for label in labels) for each in found}

    entries = {("POST", "/v1/appointments/{appointment_id}/entries", status) for status in ("200", "201")}
    refused = ("GET", "/v1/contention", "401")
    first = served()
    assert entries <= first
    assert refused not in first
    world.api.get("/v1/contention")
    assert refused in served()


def test_a_locks_name_is_no_label(world: World) -> None:
    id_, inviter, _ = world.meeting()
    world.api.enter(id_, inviter)
    assert str(id_) not in world.api.get("/metrics").body.decode()


def test_totals_over_all_workers_are_exact_whichever_of_them_is_asked(world: World) -> None:
    meetings = [world.meeting() for _ in range(10)]
    poor, rich = world.person(), world.person()
    price(world.rows, rich, 0)
    unpayable, free = world.rows.appointment(poor, world.person()), world.rows.appointment(poor, rich)
    before = world.api.metrics()
    entries = [(id_, person) for _ in range(5) for id_, *pair in meetings for person in pair]
    crowd(world.api.url, entries + [(unpayable, poor)] * 7 + [(free, poor)] * 3 + [(free, inviter_of(meetings))] * 2)

    for _ in range(10):  # both workers answer
        after = world.api.metrics()
        more = gained(before, after)
        assert more("charges_total", outcome="charged") == 10
        assert more("charges_total", outcome="already_charged") == 90
        assert more("charges_total", outcome="insufficient-coupons") == 7
        assert more("charges_total", outcome="free") == 3
        assert more("charges_total", outcome="illegal-request") == 2
        layers = ("lock", "is_consume", "row_lock", "fence")
        assert sum(more("duplicates_prevented_total", layer=layer) for layer in layers) == 90
        # Each that charged or might have had a turn with the lock; whoever came after a charge, or is no participant,
        # need not have had one.
        turns = more("lock_acquire_total", resource="appointment", outcome="acquired")
        dismissed = more("lock_acquire_total", resource="appointment", outcome="dismissed")
        assert 10 + 7 + 3 <= turns <= turns + dismissed <= 112
        assert more("lock_held_seconds_count", resource="appointment") == turns
        assert more("lock_wait_seconds_count", resource="appointment", outcome="acquired") == turns
        assert more("lock_wait_seconds_count", resource="appointment", outcome="dismissed") == dismissed
        assert more("charge_seconds_count", stage="transaction") == 103
        path = "/v1/appointments/{appointment_id}/entries"
        for status, count in (("201", 10), ("200", 93), ("402", 7), ("403", 2)):
            labels = {"http_request_method": "POST", "http_route": path, "http_response_status_code": status}
            assert more("http_server_request_duration_seconds_count", **labels) == count
    assert after["chargeonce_lock_holders", (("resource", "appointment"),)] == 0
    assert after["chargeonce_lock_waiters", (("resource", "appointment"),)] == 0


def gained(before: dict[Sample, float], after: dict[Sample, float]) -> Callable[..., float]:
    """By how much a sample rose."""

    def more(name: str, **labels: str) -> float:
        sample = (f"chargeonce_{name}", tuple(sorted(labels.items())))
        return after[sample] - before.get(sample, 0)

    return more


def inviter_of(meetings: list[tuple[int, int, int]]) -> int:
    return meetings[0][1]


def test_probes_need_no_token_and_name_each_dependency(world: World) -> None:
    assert world.api.get("/livez").status == 200
    ready = world.api.get("/readyz")
    assert ready.status == 200
    assert ready.json["dependencies"] == {"database": "up", "lock_store": "up"}
    metrics = world.api.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    for path in ("/livez", "/readyz", "/metrics", "/openapi.json"):
        assert world.api.get(path, headers={"Authorization": "Bearer nonsense"}).status == 200


def test_the_log_tells_each_entry_in_json_and_no_secret(world: World) -> None:
    id_, inviter, invitee = world.meeting()
    named = {"headers": {"X-Request-Id": f"log-{id_}"}}
    entered = world.api.enter(id_, inviter, **named)
    world.api.post("/agoraToken", user=invitee, form={"appointmentId": id_, "otherUserid": inviter})
    refused = world.api.enter(id_, world.person(), headers={"X-Request-Id": f"refused-{id_}"})
    problem(refused, "illegal-request")
    world.api.enter(id_, inviter, headers={"Authorization": "Bearer wrong-but-secret"})

    lines = [json.loads(line) for line in world.service.logged().splitlines()]
    [line] = [line for line in lines if line.get("request_id") == f"log-{id_}"]
    assert (line["appointment_id"], line["outcome"], line["user_id"]) == (id_, "charged", inviter)
    assert 0 <= line["lock_wait_ms"] < 60_000
    assert 0 < line["transaction_ms"] < 60_000
    assert line["timestamp"].endswith("Z")
    [line] = [line for line in lines if line.get("request_id") == f"refused-{id_}"]
    assert (line["appointment_id"], line["outcome"]) == (id_, "illegal-request")

    log = world.service.logged()
    secrets = [SECRET, APP_CERTIFICATE, entered.json["room"]["token"], token(inviter), "wrong-but-secret", "eyJ"]
    password = world.database_url.split("@", maxsplit=1)[0].rsplit(":", maxsplit=1)[1]
    for secret in [*secrets, password]:
        assert secret not in log
    assert "007eJ" not in log, "no room token of anybody"


def test_a_dead_workers_counts_stay_in_the_totals(world: World) -> None:
    id_, inviter, _ = world.meeting()
    crowd(world.api.url, [(id_, inviter)] * 20)
    before = world.api.metric("charges_total", outcome="already_charged")
    wait_until(lambda: len(world.service.worker_pids()) == 2)
    killed = world.service.worker_pids()[0]
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(world.service.worker_pids()) == 2 and killed not in world.service.worker_pids())
    wait_until(lambda: all_up(world.api))
    assert world.api.metric("charges_total", outcome="already_charged") == before
    assert world.api.metric("lock_holders", resource="appointment") == 0
    assert_books_right(world.database_url)


def all_up(api: Api) -> bool:
    return (
        api.metric("dependency_up", dependency="database") == 1 == api.metric("dependency_up", dependency="lock_store")
    )
