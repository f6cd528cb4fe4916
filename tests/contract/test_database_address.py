"""DATABASE_URL means the same to every command, and nothing else leads elsewhere: no PG* variable, no silent host."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa

from tests.conftest import StartService, _run
from tests.contract.api import Api, crowd
from tests.contract.postgres_proxy import PostgresProxy
from tests.harness import Rows, Service, run_cli, wait_until
from tests.integration.silence import Silence, silent_port

SCHEMAS = ("public", "billing")
APPOINTMENT = 1  # the first of each schema


def in_schema(url: str, schema: str) -> str:
    """The URL of an operator who keeps the tables in this schema."""
    return f"{url}?options=-csearch_path%3D{schema}&connect_timeout=30&application_name=cashier"


def log_lines(service: Service, event: str) -> list[dict[str, str]]:
    """What it has logged of this kind."""
    lines = [line for line in service.logged().splitlines() if line.startswith("{")]
    return [line for line in map(json.loads, lines) if line["event"] == event]


# One schema for every command


@pytest.fixture
def two_schemas(empty_database_url: str, cli_environment: Mapping[str, str]) -> Iterator[dict[str, Rows]]:
    """Both migrated, each with the same users and the same appointment, and other balances."""
    _run(empty_database_url, "CREATE SCHEMA billing")
    schemas = {}
    for coupons, schema in enumerate(SCHEMAS, start=5):
        url = in_schema(empty_database_url, schema)
        migrated = run_cli("migrate", environment={**cli_environment, "CHARGEONCE_DATABASE_URL": url})
        assert migrated.returncode == 0, migrated.stderr
        rows = schemas[schema] = Rows(url)
        for user_id in (1, 2):
            rows.grant(user_id, coupons)
        assert rows.appointment(1, 2) == APPOINTMENT
    yield schemas
    for rows in schemas.values():
        rows.close()


@pytest.mark.parametrize("schema", SCHEMAS)
def test_who_is_charged_and_what_audit_sees_is_in_the_schema_that_migrate_used(
    two_schemas: dict[str, Rows],
    empty_database_url: str,
    cli_environment: Mapping[str, str],
    start_service: StartService,
    schema: str,
) -> None:
    ours, theirs = two_schemas[schema], two_schemas[next(each for each in SCHEMAS if each != schema)]
    url = in_schema(empty_database_url, schema)
    before = theirs.balance(1)
    api = Api(start_service(workers=1, database_url=url).url)

    answer = api.enter(APPOINTMENT, 1)
    read = api.get("/v1/users/1/coupons", user=1)

    assert answer.json["outcome"] == "charged"
    assert ours.number("SELECT count(*) FROM user_consume") == 1
    assert theirs.number("SELECT count(*) FROM user_consume") == 0
    assert theirs.balance(1) == before
    assert [coupon["count"] for coupon in read.json["coupons"]] == [ours.balance(1)]
    environment = {**cli_environment, "CHARGEONCE_DATABASE_URL": url}
    theirs.run("UPDATE user_coupon SET count = count + 1")
    assert run_cli("audit", environment=environment).returncode == 0
    ours.run("UPDATE user_coupon SET count = count + 1")
    assert run_cli("audit", environment=environment).returncode == 1


def test_a_schema_that_is_not_there_is_not_replaced_by_another(
    database_url: str, cli_environment: Mapping[str, str]
) -> None:
    environment = {**cli_environment, "CHARGEONCE_DATABASE_URL": in_schema(database_url, "billing")}

    migrated = run_cli("migrate", environment=environment)
    started = run_cli("serve", "--port", "0", environment=environment)

    assert migrated.returncode == 1
    assert migrated.stderr == "chargeonce: no schema has been selected to create in\n"
    assert started.returncode == 1
    assert "run chargeonce migrate first" in started.stderr


@pytest.mark.parametrize(
    ("query", "named"), [("options=-cstatement_timeout%3D0", "options"), ("service=there", "service")]
)
def test_what_cannot_be_honoured_stops_every_command_with_one_line(
    database_url: str, cli_environment: Mapping[str, str], query: str, named: str
) -> None:
    environment = {**cli_environment, "CHARGEONCE_DATABASE_URL": f"{database_url}?{query}"}
    for words in (["serve", "--port", "0"], ["migrate"], ["seed"], ["audit"], ["locks", "list"]):
        ended = run_cli(*words, environment=environment)
        assert ended.returncode == 2
        assert ended.stderr.startswith(f"chargeonce: CHARGEONCE_DATABASE_URL: {named} ")
        assert ended.stderr.count("\n") == 1


# Hosts


@pytest.mark.parametrize("how", ["accepts", "full"])
def test_a_service_whose_first_host_is_silent_becomes_ready_and_charges(
    start_service: StartService, database_url: str, rows: Rows, cli_environment: Mapping[str, str], how: Silence
) -> None:
    parts = urlsplit(database_url)
    rows.grant(1, 5)
    appointment_id = rows.appointment(1, 2)
    with silent_port(how) as port:
        hosts = f"127.0.0.1:{port},127.0.0.1:{parts.port}"
        url = f"postgresql://{parts.username}:{parts.password}@{hosts}{parts.path}?connect_timeout=1"
        api = Api(start_service(workers=1, database_url=url).url)

        wait_until(lambda: api.get("/readyz").status == 200, what="readiness")
        assert api.enter(appointment_id, 1).status == 201
        environment = {**cli_environment, "CHARGEONCE_DATABASE_URL": url}
        for words in (["migrate"], ["audit"]):
            ended = run_cli(*words, environment=environment)
            assert ended.returncode == 0, ended.stderr


# PG* variables

LEADING_ELSEWHERE = {
    "PGHOSTADDR": "127.0.0.9",
    "PGHOST": "127.0.0.9",
    "PGPORT": "1",
    "PGOPTIONS": "-c search_path=nowhere",
    "PGSERVICE": "nowhere",
    "PGTARGETSESSIONATTRS": "standby",
    "PGCLIENTENCODING": "LATIN1",
}
GUARDING = {"PGSSLMODE": "disable", "PGPASSFILE": "/nowhere", "PGUSER": "nobody"}


@contextmanager
def variables_set(variables: Mapping[str, str]) -> Iterator[None]:
    """Whatever is started meanwhile has them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def test_variables_of_libpq_lead_no_command_elsewhere_than_the_address(
    cli_environment: Mapping[str, str],
    database_url: str,
    rows: Rows,
    start_service: StartService,
) -> None:
    rows.grant(1, 5)
    appointment_id = rows.appointment(1, 2)
    variables = {**LEADING_ELSEWHERE, **GUARDING}
    environment = {**cli_environment, **variables}
    for words in (["migrate"], ["seed"], ["audit"]):
        ended = run_cli(*words, environment=environment)
        assert ended.returncode == 0, ended.stderr
        [line] = ended.stderr.splitlines()
        assert line.startswith("chargeonce: beside CHARGEONCE_DATABASE_URL: PGCLIENTENCODING, ")
        assert "PGTARGETSESSIONATTRS ignored; PGPASSFILE, PGSSLMODE, PGUSER used where" in line

    with variables_set(variables):
        service = start_service(workers=2)

    assert Api(service.url).enter(appointment_id, 1).status == 201
    assert len(log_lines(service, "libpq variables are set")) == 1


def test_variables_of_libpq_do_not_reach_embedded_servers(
    start_service: StartService,
) -> None:
    with variables_set({**LEADING_ELSEWHERE, **GUARDING, "PGSSLMODE": "verify-full"}):
        service = start_service(workers=1, database_url="", redis_url="")

    api = Api(service.url)
    assert api.get("/readyz").status == 200
    assert log_lines(service, "libpq variables are set") == []


# Encoding


def test_a_database_in_another_encoding_stops_every_command_with_one_line(
    cluster_url: str, cli_environment: Mapping[str, str]
) -> None:
    _run(cluster_url, "CREATE DATABASE latin_1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        url = sa.make_url(cluster_url).set(database="latin_1").render_as_string(hide_password=False)
        environment = {**cli_environment, "CHARGEONCE_DATABASE_URL": url}
        for words in (["serve", "--port", "0"], ["migrate"], ["seed"], ["audit"]):
            ended = run_cli(*words, environment=environment)
            assert ended.returncode in (1, 2)
            assert ended.stderr.startswith("chargeonce: the database's encoding is LATIN1: it must be UTF8")
            assert ended.stderr.count("\n") == 1
    finally:
        _run(cluster_url, "DROP DATABASE latin_1 WITH (FORCE)")


# Lost and regained

UNHURRIED_S = "3"  # a look that a busy machine delays is a loss, and rightly leaves lines of its own


def test_a_lost_and_a_regained_database_each_leave_one_line(database_url: str, start_service: StartService) -> None:
    with closing(PostgresProxy(database_url)) as proxy:
        service = start_service(workers=1, database_url=proxy.url, health_interval_s=UNHURRIED_S)
        api = Api(service.url)
        wait_until(lambda: api.get("/readyz").status == 200)

        proxy.cut()
        wait_until(lambda: api.get("/readyz").status == 503)
        wait_until(lambda: log_lines(service, "database lost"))
        proxy.come_back()
        wait_until(lambda: api.get("/readyz").status == 200)
        wait_until(lambda: log_lines(service, "database up"))

        [lost] = log_lines(service, "database lost")
        assert lost["level"] == "error"
        assert lost["reason"]
        assert len(log_lines(service, "database up")) == 1


def test_sessions_that_an_administrator_ends_leave_the_servers_own_reason(
    database_url: str, start_service: StartService
) -> None:
    name = urlsplit(database_url).path.strip("/")
    service = start_service(workers=1, health_interval_s=UNHURRIED_S)
    api = Api(service.url)
    wait_until(lambda: api.get("/readyz").status == 200)

    _run(
        sa.make_url(database_url).set(database="postgres").render_as_string(hide_password=False),
        f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
    )
    wait_until(lambda: log_lines(service, "database lost"))
    _run(
        sa.make_url(database_url).set(database="postgres").render_as_string(hide_password=False),
        f"ALTER DATABASE {name} ALLOW_CONNECTIONS true",
    )
    wait_until(lambda: log_lines(service, "database up"))

    [lost] = log_lines(service, "database lost")
    assert "terminating connection" in lost["reason"] or "not currently accepting connections" in lost["reason"]
    assert len(log_lines(service, "database up")) == 1


OURS = "application_name = 'chargeonce' AND datname = current_database()"


def test_sessions_that_the_server_ends_leave_one_line_with_its_reason_and_one_when_it_is_up_again(
    start_service: StartService, rows: Rows
) -> None:
    rows.grant(1, 50)
    service = start_service(workers=1, health_interval_s=UNHURRIED_S)
    api = Api(service.url)
    ids = [rows.appointment(1, 2) for _ in range(30)]
    crowd(api.url, [(id_, 1) for id_ in ids], at_once=10)  # several connections for charges, and one of looks

    for lost_count in (1, 2):
        rows.run(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {OURS}")
        wait_until(lambda count=lost_count: len(log_lines(service, "database up")) == count)  # type: ignore[misc]

    assert api.enter(rows.appointment(1, 2), 1).status == 201
    lost = log_lines(service, "database lost")
    assert [line["reason"] for line in lost] == ["FATAL:  terminating connection due to administrator command"] * 2
    assert {line["level"] for line in lost} == {"error"}


@pytest.mark.parametrize("whose", ["look", "charge"])
def test_each_kind_of_connection_tells_when_the_server_ends_it(
    start_service: StartService, rows: Rows, whose: str
) -> None:
    rows.grant(1, 50)
    service = start_service(workers=1, health_interval_s=UNHURRIED_S)
    assert Api(service.url).enter(rows.appointment(1, 2), 1).status == 201
    last = "query LIKE '%COMMIT%'" if whose == "charge" else "query NOT LIKE '%COMMIT%'"
    end = f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {OURS} AND {last}"
    wait_until(lambda: rows.run(end), what="a session to end")  # what the first look has had is forgotten after it

    wait_until(lambda: log_lines(service, "database up"))
    assert len(log_lines(service, "database lost")) == 1


def test_sessions_that_end_for_being_idle_leave_no_line(
    start_service: StartService, database_url: str, rows: Rows
) -> None:
    rows.grant(1, 50)
    rows.run(f"ALTER DATABASE {urlsplit(database_url).path.strip('/')} SET idle_session_timeout = '100ms'")
    service = start_service(workers=1, health_interval_s="0.3")
    api = Api(service.url)

    def pids() -> set[tuple[object, ...]]:
        return set(rows.run(f"SELECT pid FROM pg_stat_activity WHERE {OURS}"))

    for _ in range(3):
        assert api.enter(rows.appointment(1, 2), 1).status == 201
        before = pids()
        wait_until(lambda before=before: not before & pids(), what="the end of the idle sessions")  # type: ignore[misc]
    assert api.get("/readyz").status == 200
    assert log_lines(service, "database lost") == log_lines(service, "database up") == []
