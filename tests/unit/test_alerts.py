"""The alert rules and the Grafana dashboard, judged without a service; tests/contract/test_metrics.py has one."""

from __future__ import annotations

import json
import re
from itertools import combinations, pairwise
from typing import Any

import pytest
import yaml

from tests.promtool import ROOT, promtool

FOLDER = ROOT / "deploy/prometheus"
RULES: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
CASES: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
GRAFANA: dict[str, Any] = json.loads((ROOT / "deploy/grafana/chargeonce.json").read_text())
PANELS = [panel for panel in GRAFANA["panels"] if panel["type"] != "row"]


def test_the_rules_are_well_formed() -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "rules", "alerts.yml", folder=FOLDER)


def test_each_alert_fires_when_it_should_and_not_when_all_is_well() -> None:
    promtool("test", "rules", "alerts_test.yml", folder=FOLDER)


def test_the_example_configuration_loads_the_rules() -> None:
    assert "SUCCESS: 1 rule files found" in promtool("check", "config", "prometheus.yml", folder=FOLDER)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_has_a_case_in_which_it_begins_to_fire(rule: dict[str, Any]) -> None:
    def fires(moment: dict[str, Any]) -> bool:
        return any(f'"{rule["alert"]}"' in sample["labels"] for sample in moment["exp_samples"])

    moments = [case["promql_expr_test"] for case in CASES if "promql_expr_test" in case]
    assert any(not fires(before) and fires(after) for case in moments for before, after in pairwise(case))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_says_how_grave_it_is_and_where_the_runbook_is(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert "for" in rule
    annotations = rule["annotations"]
    assert annotations["summary"]
    assert annotations["description"]
    link = re.fullmatch(r"({{ .+ }})/([\w.]+)#(\w+)", annotations["runbook_url"])
    assert link is not None
    base, page, anchor = link.groups()
    assert base == '{{ or $externalLabels.chargeonce_docs "docs" }}'
    assert anchor in anchors_of((ROOT / "docs" / page).read_text())
    assert anchor == rule["alert"].lower()


def test_the_example_configuration_says_where_the_runbooks_are() -> None:
    configured = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert configured["global"]["external_labels"]["chargeonce_docs"].startswith("https://")


def test_every_runbook_is_some_alerts() -> None:
    _, _, runbook = (ROOT / "docs/monitoring.md").read_text().partition("\n## Runbook\n")
    assert anchors_of(runbook) == {rule["alert"].lower() for rule in RULES}


def anchors_of(markdown: str) -> set[str]:
    """Of its headings, as Git hosts make them: lower case, words and hyphens."""
    headings = re.findall(r"^#+ (.+)$", markdown, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_dashboard_asks_for_its_data_source_and_no_two_panels_overlap() -> None:
    variables = [variable["name"] for variable in GRAFANA["templating"]["list"]]
    assert variables == ["datasource", "job", "instance"]
    assert len({panel["id"] for panel in GRAFANA["panels"]}) == len(GRAFANA["panels"])
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    places = [panel["gridPos"] for panel in GRAFANA["panels"]]
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below
    assert all(place["x"] + place["w"] <= 24 for place in places)
