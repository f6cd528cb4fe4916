"""Shared real servers, and a database of its own for each test."""

from __future__ import annotations

import os
import random
import signal
import statistics
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import psycopg2
import psycopg2.extensions
import pytest
import sqlalchemy as sa

from db.database import Database
from db.migrate import migrate
from service.embedded import EmbeddedServers, valkey_binary
from tests.harness import APP_CERTIFICATE, APP_ID, SECRET, OwnRedis, Rows, Service, Start, clean_environment, service

pytest_plugins = ["tests.servers.fixtures"]

GIVEN_REDIS_URL = os.environ.get("CHARGEONCE_REDIS_URL")
TEMPLATE = "template_migrated"
SEQUENCES = ("appointment_info", "appointment_action", "coupon_grant", "user_consume", "lock_audit")
FIGURES = "figures"

# The longest first: where processes share the tests, each takes whole files, and none should begin a long one last.
LONG_FILES = (
    "sim/test_mutants.py",
    "contract/test_commands.py",
    "contract/test_slow_servers.py",
    "browser/test_page.py",
    "integration/test_embedded.py",
    "chaos/test_chaos.py",
    "chaos/test_race.py",
    "chaos/test_worlds_postgres.py",
    "integration/test_lock_stores.py",
    "contract/test_database_address.py",
    "contract/test_overload.py",
    "contract/test_lock_outage.py",
    "contract/test_dying_workers.py",
    "contract/test_draining.py",
    "contract/test_contention.py",
    "integration/test_lock_faults_processes.py",
    "contract/test_leases.py",
    "contract/test_shared_lock.py",
    "contract/test_stuck_rows.py",
    "chaos/test_worlds_redis.py",
    "chaos/test_interleave.py",
    "chaos/test_mutants_charges.py",
    "integration/test_lock_model.py",
    "sim/conformance/test_conformance.py",
    "contract/test_background_audit.py",
    "contract/test_locks_command.py",
    "contract/test_postgres_away.py",
    "contract/test_read_only_postgres.py",
    "contract/test_metrics.py",
    "contract/test_openapi.py",
    "integration/test_lock_faults_server.py",
    "contract/test_races.py",
    "integration/test_charging_frozen.py",
    "contract/test_crowd.py",
    "contract/test_disconnects.py",
    "contract/test_dashboard.py",
    "contract/test_tracing.py",
    "contract/test_running.py",
    "contract/test_force_release.py",
)

ReportFigures = Callable[[str, Sequence[float]], None]


def pytest_configure() -> None:
    """A script's background job ignores Ctrl-C, and so would every program that is started here; nohup likewise.

    A signal with a handler, which does nothing, is a program's own to decide about again.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where processes share the tests, the long files come first."""
    if hasattr(config, "workerinput"):
        ranks = {Path(__file__).parent / file: rank for rank, file in enumerate(LONG_FILES)}
        items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture
def report_figures(record_property: Callable[[str, object], None]) -> ReportFigures:
    """Puts measured milliseconds into the run's summary and the test's properties: report_figures("what", [...])."""

    def report(what: str, figures_ms: Sequence[float]) -> None:
        least, median, most = min(figures_ms), statistics.median(figures_ms), max(figures_ms)
        record_property(
            FIGURES, f"{what}: min {least:.1f}, median {median:.1f}, max {most:.1f} ms of {len(figures_ms)}"
        )

    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what the tests have measured, in whichever process."""
    calls = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call"
    ]
    if lines := [str(value) for report in calls for name, value in report.user_properties if name == FIGURES]:
        terminalreporter.section("measured")
        terminalreporter.write_line("\n".join(lines))


@pytest.fixture(scope="session")
def shared_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServers]:
    """One Postgres and one Valkey for the session; the Valkey is not used when CHARGEONCE_REDIS_URL names another."""
    with EmbeddedServers.start(tmp_path_factory.mktemp("servers") / "data") as servers:
        yield servers


@pytest.fixture(scope="session")
def redis_url(shared_servers: EmbeddedServers) -> str:
    """A Redis-compatible server that tests share: names must be the test's own, and it must not be emptied."""
    assert shared_servers.addresses.redis_url is not None
    return GIVEN_REDIS_URL or shared_servers.addresses.redis_url


@pytest.fixture(scope="session")
def cluster_url(shared_servers: EmbeddedServers) -> str:
    """The shared Postgres, with a migrated database to copy."""
    assert shared_servers.addresses.database_url is not None
    url = shared_servers.addresses.database_url
    _run(url, f"CREATE DATABASE {TEMPLATE}")
    migrate(_beside(url, TEMPLATE))
    return url


@pytest.fixture
def make_database(cluster_url: str) -> Iterator[Callable[[str], str]]:
    """Makes a database as a copy of a template; gone after the test."""
    names: list[str] = []

    def make(template: str) -> str:
        names.append(f"test_{uuid.uuid4().hex}")
        _run(cluster_url, f"CREATE DATABASE {names[-1]} TEMPLATE {template}")
        return _beside(cluster_url, names[-1])

    yield make
    for name in names:
        _run(cluster_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_database_url(make_database: Callable[[str], str]) -> str:
    """A database without any schema."""
    return make_database("template1")


@pytest.fixture
def database_url(make_database: Callable[[str], str]) -> str:
    """A migrated database; ids begin somewhere else in each test, so that locks of two tests never meet."""
    url = make_database(TEMPLATE)
    first = random.randrange(10**6, 10**15)
    _run(url, *[f"ALTER SEQUENCE {table}_id_seq RESTART WITH {first}" for table in SEQUENCES])
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """The migrated database through our own engine."""
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def rows(database_url: str) -> Iterator[Rows]:
    """The same database, seen from outside."""
    rows = Rows(database_url)
    yield rows
    rows.close()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    """A running Valkey that the test may stop, freeze and empty."""
    server = OwnRedis(valkey_binary(), tmp_path)
    server.start()
    yield server
    server.kill()


StartService = Callable[..., Service]


@pytest.fixture
def start_service(tmp_path: Path, database_url: str, redis_url: str) -> Iterator[StartService]:
    """Starts `chargeonce serve` on this test's database: start_service(workers=2, payer="inviter", ...)."""
    with ExitStack() as stack:

        def start(how: Start | None = None, /, *, workers: int = 2, **settings: str) -> Service:
            addresses = {"database_url": database_url, "redis_url": redis_url}
            return stack.enter_context(service(tmp_path, how, workers=workers, **{**addresses, **settings}))

        yield start


@pytest.fixture
def cli_environment(tmp_path: Path, database_url: str, redis_url: str) -> dict[str, str]:
    """An environment for `chargeonce` commands on this test's database."""
    return clean_environment(
        database_url=database_url,
        redis_url=redis_url,
        jwt_secret=SECRET,
        agora_app_id=APP_ID,
        agora_app_certificate=APP_CERTIFICATE,
        data_dir=str(tmp_path / "data"),
    )


def _beside(url: str, name: str) -> str:
    return sa.make_url(url).set(database=name).render_as_string(hide_password=False)


def _run(url: str, *statements: str) -> None:
    connection = psycopg2.connect(url)
    connection.set_isolation_level(psycopg2.extensions.ISOLATION_LEVEL_AUTOCOMMIT)
    try:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
    finally:
        connection.close()
