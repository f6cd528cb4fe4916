"""A Postgres that answers and only reads, or gives ids that are taken: nothing is charged, and that is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa

from tests.chaos.worlds.standby import StandbyGround
from tests.conftest import StartService
from tests.contract.api import Answer, Api, assert_books_right, everything, fresh_reference, problem
from tests.harness import Rows, run_cli, service, wait_until
from tests.proxy import Proxy

SERVICE: dict[str, Any] = {"user": 1, "scope": "service"}
ANN, BOB = 11, 22
NUMBERS = {
    "appointment_info": ("user_id", "invitee_user_id", "prepare_id", "lock_fence"),
    "coupon_grant": ("user_id", "coupon_id", "count"),
    "coupon_price": ("count",),
    "user_consume": ("appointment_id", "user_id", "other_user_id", "coupon_id", "prop_id", "count", "lock_fence"),
    "user_coupon": ("user_id", "coupon_id", "count"),
}


class Failover(NamedTuple):
    """A service whose address of Postgres leads to a primary, and its standby."""

    api: Api
    rows: Rows
    proxy: Proxy
    ground: StandbyGround


@pytest.fixture
def failover(tmp_path: Path) -> Iterator[Failover]:
    ground = StandbyGround(tmp_path / "ground", postgres_settings={})
    with ground, Proxy("127.0.0.1", ground.postgres.port) as proxy, closing(Rows(ground.database_url)) as rows:
        through = sa.make_url(ground.database_url).set(host="127.0.0.1", port=proxy.port)
        url = through.update_query_dict({"sslmode": "disable"}).render_as_string(hide_password=False)
        with service(tmp_path, workers=2, database_url=url, redis_url=ground.redis_url) as running:
            yield Failover(Api(running.url), rows, proxy, ground)


def grant(api: Api, user_id: int) -> Answer:
    send = {"coupon_id": 1, "count": 1, "reference": fresh_reference()}
    return api.post(f"/v1/users/{user_id}/coupons", send=send, **SERVICE)


def is_ready(api: Api, state: str) -> bool:
    up = api.metric("dependency_up", dependency="database")
    return api.every_worker_says("database", state) and up == (state == "up")


def test_a_standby_behind_the_address_is_down_and_all_is_well_as_soon_as_the_primary_is_back(
    failover: Failover,
) -> None:
    api, rows, proxy, ground = failover
    rows.grant(ANN, 9)
    charged, *others = [rows.appointment(ANN, BOB) for _ in range(4)]
    wait_until(lambda: is_ready(api, "up"))
    assert api.enter(charged, ANN).status == 201
    before = everything(rows)
    assert ground.standby is not None

    proxy.point_at(ground.standby.port)
    proxy.go_away()
    proxy.come_back()
    for _ in range(4):
        problem(api.enter(others[0], ANN), "database-down")
        problem(api.enter(charged, BOB), "database-down")
        problem(grant(api, ANN), "database-down")
        two = {"user_id": ANN, "invitee_user_id": BOB}
        problem(api.post("/v1/appointments", send=two, **SERVICE), "database-down")
        problem(api.call("PATCH", f"/v1/appointments/{charged}", send={"status": "ended"}, **SERVICE), "database-down")
    wait_until(lambda: is_ready(api, "down"))
    problem(api.get("/readyz"), "database-down")
    assert api.get(f"/v1/appointments/{charged}", user=ANN).status == 200
    assert everything(rows) == before

    # Connections to the standby stay open, and nobody waits for the service to notice anything.
    proxy.point_at(ground.postgres.port)
    for id_ in others:
        assert api.enter(id_, ANN).status == 201
        assert api.enter(charged, BOB).status == 200
        assert grant(api, ANN).status == 201
    wait_until(lambda: is_ready(api, "up"))
    # What is read is the primary's, by whichever connection.
    rows.run("INSERT INTO appointment_action (appointment_id, user_id, type) VALUES (%s, %s, 1)", charged, ANN)
    seen = rows.run("SELECT count(*) FROM appointment_action WHERE appointment_id = %s", charged)
    for _ in range(12):
        shown = api.get(f"/v1/appointments/{charged}", user=ANN)
        assert [(len(shown.json["entries"]),)] == seen
    assert_books_right(ground.database_url)


def test_sessions_that_only_read_cost_nothing_once_the_database_takes_writes_again(
    start_service: StartService, database_url: str, rows: Rows
) -> None:
    rows.grant(ANN, 9)
    api, ids = Api(start_service().url), [rows.appointment(ANN, BOB) for _ in range(8)]
    database_name = sa.make_url(database_url).database
    wait_until(lambda: is_ready(api, "up"))

    rows.run(f"ALTER DATABASE {database_name} SET default_transaction_read_only = on")
    ours = "application_name = 'chargeonce' AND datname = current_database()"
    rows.run(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {ours}")
    wait_until(lambda: is_ready(api, "down"))
    problem(api.enter(ids[0], ANN), "database-down")
    problem(grant(api, ANN), "database-down")
    rows.run(f"ALTER DATABASE {database_name} RESET default_transaction_read_only")

    for id_ in ids:
        assert api.enter(id_, ANN).status == 201
        assert grant(api, ANN).status == 201
    wait_until(lambda: is_ready(api, "up"))
    assert_books_right(database_url)


def test_numbers_are_whole_whatever_type_an_operator_has_given_to_their_columns(
    start_service: StartService, database_url: str, rows: Rows
) -> None:
    """As where counts came from another system. What is read of a numeric column is a Decimal to the driver."""
    rows.grant(ANN, 9)
    api, id_ = Api(start_service(workers=1).url), rows.appointment(ANN, BOB)
    for table, columns in NUMBERS.items():
        for column in columns:
            rows.run(f"ALTER TABLE {table} ALTER COLUMN {column} TYPE numeric")
    rows.run("INSERT INTO coupon_price VALUES (%s, 2.000)", BOB)

    assert api.enter(id_, ANN).json["charge"]["count"] == 2
    for person in (ANN, BOB):
        again = api.enter(id_, person)
        assert (again.status, again.json["charge"]["count"], again.json["charge"]["payer_id"]) == (200, 2, ANN)
    assert grant(api, ANN).json["balance"] == 8
    coupons = api.get(f"/v1/users/{ANN}/coupons", user=ANN).json
    assert (coupons["coupons"][0]["count"], [each["count"] for each in coupons["movements"]]) == (8, [1, -2, 9])
    shown = api.get(f"/v1/appointments/{id_}", user=ANN).json
    assert (shown["charge"]["count"], shown["prepare_id"], len(shown["entries"])) == (2, None, 3)
    assert_books_right(database_url)


def test_a_sequence_behind_its_table_is_named_at_the_start_by_the_audit_and_in_the_answer(
    start_service: StartService, cli_environment: dict[str, str], rows: Rows
) -> None:
    rows.grant(ANN, 9)
    first = start_service(workers=1)
    ids = [rows.appointment(ANN, BOB) for _ in range(4)]
    for id_ in ids[:3]:
        assert Api(first.url).enter(id_, ANN).status == 201
    first.stop()
    rows.run("SELECT setval('user_consume_id_seq', (SELECT min(id) FROM user_consume), false)")

    behind = start_service(workers=1)
    [told] = [json.loads(line) for line in behind.logged().splitlines() if "sequence is behind" in line]
    assert (told["level"], told["sequence"], told["table_name"]) == ("error", "user_consume_id_seq", "user_consume")
    assert told["behind"] == 3
    answer = Api(behind.url).enter(ids[3], ANN)
    assert (answer.status, answer.code, answer.json["charged"]) == (500, "internal-error", False)
    assert "user_consume_id_seq is behind its table" in answer.json["detail"]
    wait_until(lambda: "user_consume_id_seq is behind its table" in behind.logged(), what="the line in the log")
    audit = run_cli("audit", "--json", environment=cli_environment)
    broken = {each["name"]: each["examples"] for each in json.loads(audit.stdout)["invariants"] if each["broken_count"]}
    assert audit.returncode == 1
    assert broken.keys() == {"sequences_ahead"}
    assert broken["sequences_ahead"][0] == {key: told[key] for key in ("table_name", "sequence", "run")} | {"behind": 2}
    assert rows.balance(ANN) == 6

    rows.run(told["run"])

    assert run_cli("audit", environment=cli_environment).returncode == 0
    assert Api(behind.url).enter(ids[3], ANN).status == 201
