"""The audit in the background: one worker looks, every worker shows what it has found."""

from __future__ import annotations

import json
import re
import time
from contextlib import closing
from itertools import pairwise

import redis

from tests.conftest import StartService
from tests.contract.api import Api
from tests.harness import PATIENCE_S, OwnRedis, Rows, wait_until

WAITS_FOR_LONG = """
    SELECT pid FROM pg_stat_activity
    WHERE wait_event_type = 'Lock' AND datname = current_database() AND clock_timestamp() - query_start > interval '2 s'
"""
SETTINGS = {"audit_interval_s": "0.4", "log_format": "json"}


def told_ends_s(server: OwnRedis, count: int) -> list[float]:
    """When the next so many audits ended, unix seconds, as whoever looked tells all others."""
    ends_s: list[float] = []
    with redis.Redis(port=server.port, socket_timeout=PATIENCE_S) as client, client.monitor() as monitor:
        while len(ends_s) < count:
            command = monitor.next_command()["command"]
            if re.match(r"SET \S*audit/", command):
                ends_s += [float(end) for end in re.findall(r'"at":([\d.]+)', command)]
    return ends_s


def test_a_broken_table_shows_within_the_interval_on_every_worker_and_so_does_its_repair(
    start_service: StartService, rows: Rows, own_redis: OwnRedis
) -> None:
    rows.grant(7, 5)
    service = start_service(redis_url=own_redis.url, **SETTINGS)
    api = Api(service.url)
    wait_until(lambda: api.metric("audit_timestamp_seconds") > 0)
    assert api.metric("audit_holds") == 1
    assert api.metric("audit_interval_seconds") == 0.4

    rows.run("UPDATE user_coupon SET count = count + 1 WHERE user_id = 7")
    wait_until(lambda: api.metric("audit_holds") == 0)
    assert api.metric("audit_broken_invariants", invariant="balances_add_up") == 1
    assert api.metric("audit_broken_invariants", invariant="one_charge_per_appointment") == 0
    logged = [json.loads(line) for line in service.logged().splitlines() if "broken invariants" in line]
    assert logged[0]["level"] == "error"
    assert logged[0]["broken"] == {"balances_add_up": 1}

    rows.run("UPDATE user_coupon SET count = count - 1 WHERE user_id = 7")
    wait_until(lambda: api.metric("audit_holds") == 1)  # livemin: every worker has seen it
    assert api.metric("audit_broken_invariants", invariant="balances_add_up") == 0
    assert abs(time.time() - api.metric("audit_timestamp_seconds")) < 60


def test_a_service_that_nobody_uses_has_no_attempts_though_it_audits(
    start_service: StartService, own_redis: OwnRedis
) -> None:
    api = Api(start_service(redis_url=own_redis.url, **SETTINGS).url)
    told_ends_s(own_redis, 9)  # 3 s: each worker tells once a second what it has seen

    now = api.get("/v1/contention", user=1, scope="monitor").json
    assert (now["wait"]["count"], now["contention_ratio"]) == (0, 0)
    assert not [sample for sample in api.metrics() if ("resource", "chargeonce") in sample[1]]
    assert api.metric("lock_acquire_total", resource="appointment", outcome="acquired") == 0


def test_only_one_of_two_services_looks_at_a_time_and_without_redis_none_does_until_it_is_back(
    start_service: StartService, own_redis: OwnRedis
) -> None:
    apis = [Api(start_service(redis_url=own_redis.url, audit_interval_s="1").url) for _ in range(2)]
    wait_until(lambda: all(api.metric("audit_timestamp_seconds") > 0 for api in apis))

    ends_s = told_ends_s(own_redis, 4)
    assert all(later - earlier >= 1 for earlier, later in pairwise(ends_s)), "four workers share the looks"

    own_redis.kill()
    wait_until(lambda: all(api.metric("dependency_up", dependency="lock_store") == 0 for api in apis))
    stands = [api.metric("audit_timestamp_seconds") for api in apis]
    assert all(api.get("/livez").status == 200 for api in apis)
    own_redis.start()
    wait_until(lambda: all(api.metric("audit_timestamp_seconds") > was for api, was in zip(apis, stands, strict=True)))


def test_an_audit_may_take_longer_than_other_statements_and_no_drain_waits_for_it(
    start_service: StartService, database_url: str, rows: Rows, own_redis: OwnRedis
) -> None:
    slow = {"row_lock_timeout_s": "200", "charge_timeout_s": "300", "statement_timeout_s": "0.2"}
    service = start_service(redis_url=own_redis.url, **SETTINGS, **slow)
    with closing(Rows(database_url)) as foreign:
        foreign.run("BEGIN")
        foreign.run("LOCK TABLE user_coupon IN ACCESS EXCLUSIVE MODE")
        wait_until(lambda: rows.run(WAITS_FOR_LONG), what="an audit that waits for the table")
        assert "audit could not look" not in service.logged()
        began_at_s = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began_at_s < 30
