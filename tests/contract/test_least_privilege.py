"""A role with no more rights than the service needs: what it may not look at is told, and all else goes on."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from tests.conftest import StartService, _run
from tests.contract.api import Api
from tests.contract.page import Page
from tests.harness import Rows, run_cli, wait_until

PASSWORD = "few-rights"
ANN, BOB = 11, 22


@pytest.fixture
def role(database_url: str) -> Iterator[str]:
    """May use all tables and sequences, and is without SELECT on the sequences."""
    name = f"role_{uuid.uuid4().hex}"
    _run(
        database_url,
        f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {name}",
    )
    yield name
    _run(database_url, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


@pytest.fixture
def role_url(database_url: str, role: str) -> str:
    url = sa.make_url(database_url).set(username=role, password=PASSWORD)
    return url.render_as_string(hide_password=False)


def test_a_role_that_may_not_read_sequences_serves_and_the_start_says_so_in_one_line(
    start_service: StartService, role_url: str, rows: Rows
) -> None:
    rows.grant(ANN, 5)
    service = start_service(workers=1, database_url=role_url)

    assert Api(service.url).enter(rows.appointment(ANN, BOB), ANN).status == 201
    [told] = [json.loads(line) for line in service.logged().splitlines() if "sequence" in line]
    assert told["level"] == "warning"
    assert told["reason"] == "permission denied for sequence appointment_info_id_seq: the role lacks SELECT on it"


def test_what_the_role_may_not_look_at_is_unknown_to_the_audit_and_the_rest_is_checked(
    cli_environment: dict[str, str], role_url: str, role: str, rows: Rows
) -> None:
    environment = {**cli_environment, "CHARGEONCE_DATABASE_URL": role_url}
    rows.grant(ANN, 5)
    rows.run(f"REVOKE SELECT ON appointment_action FROM {role}")

    words = run_cli("audit", environment=environment)
    assert (words.returncode, words.stderr) == (2, "")
    assert "unknown No sequence gives an id that its table has already.\n        permission denied" in words.stdout
    assert "0 appointments, 0 charges, unknown entries, 1 user" in words.stdout
    report = json.loads(run_cli("audit", "--json", environment=environment).stdout)
    unknown = {each["name"]: each["unknown"] for each in report["invariants"] if each["unknown"]}
    assert unknown == {
        "charge_has_entry": "permission denied for table appointment_action: the role lacks SELECT on it",
        "sequences_ahead": "permission denied for sequence appointment_info_id_seq: the role lacks SELECT on it",
    }
    assert report["holds"] is False

    rows.run("UPDATE user_coupon SET count = count + 1")
    broken = run_cli("audit", environment=environment)
    assert broken.returncode == 1
    assert "BROKEN  For each user and coupon" in broken.stdout

    rows.run("UPDATE user_coupon SET count = count - 1")
    rows.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    rows.run(f"GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO {role}")
    assert run_cli("audit", environment=environment).returncode == 0


def test_a_role_that_may_not_use_spent_tokens_shows_the_page_and_says_what_it_cannot(
    start_service: StartService, role_url: str, role: str, rows: Rows
) -> None:
    rows.run(f"REVOKE ALL ON spent_token FROM {role}")
    service = start_service(workers=1, database_url=role_url)
    page = Page(Api(service.url), "monitor")

    assert [page.get("/locks").status for _ in range(3)] == [200] * 3
    [told] = [json.loads(line) for line in service.logged().splitlines() if "signed out" in line]
    assert (told["level"], told["reason"]) == (
        "warning",
        "permission denied for table spent_token: the role lacks SELECT on it",
    )
    signed_out = page.post("/logout", {})
    assert signed_out.status == 503
    assert b"You are not signed out everywhere" in signed_out.body
    rows.run(f"GRANT SELECT, INSERT, UPDATE, DELETE ON spent_token TO {role}")
    assert page.post("/logout", {}).status == 303
    assert page.get("/locks").status == 401


def test_an_audit_in_the_background_that_may_not_look_at_all_says_so_and_is_no_alarm(
    start_service: StartService, role_url: str, role: str, rows: Rows
) -> None:
    rows.run(f"REVOKE SELECT ON appointment_action FROM {role}")
    service = start_service(workers=1, database_url=role_url, audit_interval_s="0.4")
    api = Api(service.url)
    wait_until(lambda: api.metric("audit_timestamp_seconds") > 0)

    [told, *_] = [json.loads(line) for line in service.logged().splitlines() if "some invariants" in line]
    assert (told["level"], list(told["unknown"])) == ("warning", ["charge_has_entry", "sequences_ahead"])
    assert api.metric("audit_holds") == 1
    shown = Page(api, "monitor").get("/charges").body.decode()
    assert "not all could be looked at" in shown
    assert "unknown entries" in shown
    assert "BROKEN" not in shown
