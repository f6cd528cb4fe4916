"""/metrics as Prometheus reads it: clean, all there from the start, exact, and enough for the alerts."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from db.audit import INVARIANTS
from service.observe import LONGEST_RESOURCE
from tests.contract.api import crowd
from tests.contract.conftest import World
from tests.contract.lease_client import LeaseClient
from tests.harness import wait_until
from tests.promtool import ROOT, promtool

OF_TARGET = {"job", "instance", "alertname", "alertstate"}  # labels that Prometheus adds
QUEUES = ("together", "alone", "again", "read", "lock")


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"max_leases": "123", "max_metric_resources": "12"}  # so that this service is no other module's


@pytest.fixture(scope="module", autouse=True)
def from_the_start(world: World) -> str:
    """What the first scrape of this module's service has told: nobody has asked it for anything else."""
    return world.api.get("/metrics").body.decode()


def test_prometheus_finds_nothing_to_object_to(world: World) -> None:
    assert promtool("check", "metrics", given=world.api.get("/metrics").body) == ""


def test_the_gauges_are_there_from_the_start_as_totals_over_both_workers(world: World) -> None:
    samples = world.api.metrics()

    def value(name: str, **labels: str) -> float:
        return samples[f"chargeonce_{name}", tuple(sorted(labels.items()))]

    for queue in QUEUES:
        assert value("queue_depth", queue=queue) == 0
        assert value("queue_limit", queue=queue) == 2 * (10_000 if queue == "lock" else 2000)
    for queue in QUEUES[:-1]:
        assert value("database_lanes_busy", queue=queue) == 0
        assert value("database_lanes", queue=queue) == 2 * 2
    assert value("leases_limit") == 2 * 123
    assert value("lock_oldest_held_seconds", resource="appointment") == 0
    assert value("lock_oldest_wait_seconds", resource="appointment") == 0
    assert value("fencing_refused_total") == 0
    assert value("build_info", version=version("chargeonce")) == 1
    assert value("audit_holds") == 1
    assert value("audit_timestamp_seconds") == value("audit_seconds") == value("audit_interval_seconds") == 0
    assert all(value("audit_broken_invariants", invariant=invariant) == 0 for invariant in INVARIANTS)


def test_a_thousand_entries_are_counted_to_the_last_unit(world: World) -> None:
    meetings = [world.meeting() for _ in range(25)]
    before = world.api.metrics()
    crowd(world.api.url, [(id_, person) for _ in range(20) for id_, *pair in meetings for person in pair])
    after = world.api.metrics()

    def gained(name: str, **labels: str) -> float:
        sample = (f"chargeonce_{name}", tuple(sorted(labels.items())))
        return after[sample] - before[sample]

    def gained_in_all(name: str) -> float:
        return sum(
            value - before.get(sample, 0) for sample, value in after.items() if sample[0] == f"chargeonce_{name}"
        )

    ids = [id_ for id_, *_ in meetings]
    assert gained_in_all("charges_total") == 1000
    charged = world.rows.number("SELECT count(*) FROM user_consume WHERE appointment_id = ANY(%s)", ids)
    assert gained("charges_total", outcome="charged") == charged == 25
    entered = world.rows.number("SELECT count(*) FROM appointment_action WHERE appointment_id = ANY(%s)", ids)
    assert entered == 1000
    assert gained_in_all("duplicates_prevented_total") == gained("charges_total", outcome="already_charged") == 975
    for stage in ("lock", "queue", "transaction"):
        assert gained("charge_seconds_count", stage=stage) == 1000
    assert gained_in_all("lock_acquire_total") == gained_in_all("lock_wait_seconds_count") <= 1000
    assert gained_in_all("lock_held_seconds_count") == gained(
        "lock_acquire_total", resource="appointment", outcome="acquired"
    )
    assert gained_in_all("http_server_request_duration_seconds_count") >= 1000


def test_the_oldest_lease_shows_its_age_and_a_dead_workers_gauges_are_gone(world: World) -> None:
    lease = LeaseClient(world.api).lease(f"report:{time.monotonic_ns()}", ttl_ms=60_000)

    def age_s() -> float:
        return world.api.metrics().get(("chargeonce_lock_oldest_held_seconds", (("resource", "report"),)), 0.0)

    wait_until(lambda: 1 <= age_s() < 60)
    assert lease["name"] not in world.api.get("/metrics").body.decode()

    killed = world.service.worker_pids()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(world.service.worker_pids()) == 2 and not {*killed} & {*world.service.worker_pids()})
    wait_until(lambda: world.api.metric("leases_limit") == 2 * 123)
    assert age_s() == 0
    assert all(world.api.metric("queue_limit", queue=queue) in (4000, 20_000) for queue in QUEUES)
    assert world.api.metric("build_info", version=version("chargeonce")) == 1


def test_clients_that_make_up_resources_do_not_make_the_metrics_large(world: World, from_the_start: str) -> None:
    assert len(from_the_start) < 60_000
    leases = LeaseClient(world.api)
    for number in range(50):
        for length in (LONGEST_RESOURCE, 150):
            name = f"made-up-{number}-".ljust(length, "x") + ":1"
            leases.release(name, leases.lease(name)["lease_id"])

    told = world.api.get("/metrics").body

    assert b'resource="other"' in told
    assert b"x" * (LONGEST_RESOURCE + 1) not in told
    assert len(told) < 2 * 12 * 15_000  # two workers, each with resources of its own


@pytest.mark.parametrize("file", ["prometheus/alerts.yml", "grafana/chargeonce.json"])
def test_every_series_that_an_alert_or_a_panel_asks_for_is_there_from_the_start(from_the_start: str, file: str) -> None:
    labels, values = known(from_the_start)
    expressions = expressions_of(ROOT / "deploy" / file)
    assert len(expressions) > 10
    for expression in expressions:
        names = set(re.findall(r"\bchargeonce_\w+", expression))
        for name in names:
            assert name in labels, f"{name} in {expression}"
        of_these = OF_TARGET.union(*[labels[name] for name in names])
        for name, selector in re.findall(r"\b(chargeonce_\w+)\{([^}]*)\}", expression):
            for label, operator, value in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', selector):
                assert label in labels[name] | OF_TARGET, f"{label} of {name}"
                if label not in OF_TARGET:
                    wanted = value.split("|") if "~" in operator else [value]
                    assert {*wanted} <= values[name, label], f"{label} of {name}"
        for grouping in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
            assert {label.strip() for label in grouping.split(",")} <= of_these, expression


def known(text: str) -> tuple[dict[str, set[str]], dict[tuple[str, str], set[str]]]:
    """Each sample's labels, and the values that each of them has."""
    labels, values = defaultdict[str, set[str]](set), defaultdict[tuple[str, str], set[str]](set)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels[sample.name] |= sample.labels.keys()
            for label, value in sample.labels.items():
                values[sample.name, label].add(value)
    return labels, values


def expressions_of(file: Path) -> list[str]:
    """All PromQL of the rules, or of the dashboard."""
    if file.suffix == ".yml":
        return [rule["expr"] for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]
    board = json.loads(file.read_text())
    variables = [each["definition"] for each in board["templating"]["list"] if each["type"] == "query"]
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])] + variables
