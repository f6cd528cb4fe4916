"""One way to a connection: each address has a deadline of its own, and what the address says holds for all alike."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg2
import psycopg2.extensions
import pytest
import sqlalchemy as sa

from db.connecting import Connector
from db.database import Database, DatabaseLimits
from db.errors import DatabaseDown, Unusable
from db.migrate import schema_state
from db.waiting import bound_waits
from tests.chaos.worlds.standby import StandbyGround
from tests.conftest import _run
from tests.harness import PATIENCE_S, Rows
from tests.integration.silence import Silence, silent_port
from tests.servers.processes import unused_port

ADDRESS_S = 1.0
MARGIN_S = 20.0  # far below what somebody waits who has no deadline

Way = Callable[[str], Any]


def blocking(url: str) -> Any:
    """As a command does."""
    return Connector(url, connect_timeout_s=ADDRESS_S).connect()


def bounded(url: str) -> Any:
    """As an engine of the service does, where psycopg2 waits by our own callback."""
    bound_waits(PATIENCE_S)
    try:
        return Connector(url, connect_timeout_s=ADDRESS_S).connect()
    finally:
        psycopg2.extensions.set_wait_callback(None)


def asynchronous(url: str) -> Any:
    """As a charge does."""
    return Connector(url, connect_timeout_s=ADDRESS_S).connect_asynchronously("SELECT 1")


EVERY_WAY = pytest.mark.parametrize("connect", [blocking, bounded, asynchronous])


def at(url: str, *places: str, query: str = "") -> str:
    """The URL with other hosts."""
    parts = urlsplit(url)
    return f"postgresql://{parts.username}:{parts.password}@{','.join(places)}{parts.path}{query}"


def place_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}"


@contextmanager
def ended_soon() -> Iterator[None]:
    """Fails the test where its block takes as long as without a deadline of ours."""
    began_at_s = time.monotonic()
    yield
    assert time.monotonic() - began_at_s < MARGIN_S


# Addresses


@EVERY_WAY
@pytest.mark.parametrize("how", ["accepts", "full"])
def test_a_silent_host_costs_its_own_deadline_and_the_next_one_is_had(
    database_url: str, connect: Way, how: Silence
) -> None:
    with (
        silent_port(how) as port,
        ended_soon(),
        closing(connect(at(database_url, f"127.0.0.1:{port}", place_of(database_url)))) as raw,
    ):
        assert raw.info.port == urlsplit(database_url).port


@EVERY_WAY
def test_where_every_host_is_silent_or_away_each_is_told(database_url: str, connect: Way) -> None:
    away = unused_port()
    with silent_port() as silent, ended_soon(), pytest.raises(psycopg2.OperationalError) as caught:
        connect(at(database_url, f"127.0.0.1:{silent}", f"127.0.0.1:{away}", "no.such.host.invalid"))

    assert "\n" not in str(caught.value)
    for name in (f"port {silent}: ", f"port {away}: ", "no.such.host.invalid: "):
        assert name in str(caught.value)


@EVERY_WAY
def test_each_address_of_a_name_is_tried(database_url: str, connect: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    port = urlsplit(database_url).port
    look_up = socket.getaddrinfo

    def two(host: str, *arguments: Any, **named: Any) -> Any:
        if host != "two.invalid":
            return look_up(host, *arguments, **named)
        return [each for number in ("127.0.0.2", "127.0.0.1") for each in look_up(number, *arguments, **named)]

    monkeypatch.setattr(socket, "getaddrinfo", two)
    assert port is not None
    with (
        silent_port(host="127.0.0.2", port=port),
        ended_soon(),
        closing(connect(at(database_url, f"two.invalid:{port}"))) as raw,
    ):
        assert raw.info.dsn_parameters["hostaddr"] == "127.0.0.1"
        assert raw.info.host == "two.invalid"  # certificates and passwords go by it


def test_a_silent_host_is_waited_for_once(database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        connector = Connector(
            at(database_url, f"127.0.0.1:{silent.getsockname()[1]}", place_of(database_url)),
            connect_timeout_s=ADDRESS_S,
        )
        for connect in (connector.connect, connector.connect, lambda: connector.connect_asynchronously("SELECT 1")):
            connect().close()

        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()[0].close()


def test_the_deadline_that_an_address_names_wins(database_url: str) -> None:
    with silent_port() as silent, ended_soon(), pytest.raises(psycopg2.OperationalError):
        Connector(at(database_url, f"127.0.0.1:{silent}", query="?connect_timeout=1"), connect_timeout_s=600).connect()


def test_a_standby_that_comes_first_is_passed_over(tmp_path: Path) -> None:
    with StandbyGround(tmp_path, postgres_settings={}) as ground:
        assert ground.standby is not None
        primary, standby = place_of(ground.postgres.url), place_of(ground.standby.url)
        for connect in (blocking, bounded, asynchronous):
            with closing(connect(at(ground.postgres.url, standby, primary))) as raw:
                assert raw.info.port == ground.postgres.port
            with closing(connect(at(ground.postgres.url, standby, primary, query="?target_session_attrs=any"))) as raw:
                assert raw.info.port == ground.standby.port
            with pytest.raises(psycopg2.OperationalError, match="read-only"):
                connect(at(ground.postgres.url, standby, query="?target_session_attrs=read-write"))


# What the address says


@EVERY_WAY
def test_options_and_names_of_the_address_hold_beside_ours(database_url: str, connect: Way) -> None:
    options = quote("-c search_path=billing --work-mem=123kB")
    url = f"{database_url}?options={options}&application_name=cashier"
    limits = DatabaseLimits(statement_timeout_s=0.75)
    with closing(Database(url, limits=limits)) as database:

        def shown(connection: sa.Connection) -> list[str]:
            names = ("search_path", "work_mem", "application_name", "statement_timeout", "TimeZone")
            return [str(connection.scalar(sa.text(f"SHOW {name}"))) for name in names]

        assert database.transaction(shown) == ["billing", "123kB", "cashier", "750ms", "UTC"]
    with closing(connect(url)) as raw:
        assert raw.info.parameter_status("application_name") == "cashier"
        assert raw.info.dsn_parameters["options"] == "-c search_path=billing --work-mem=123kB"


# Encoding


@pytest.fixture
def latin_url(cluster_url: str) -> Iterator[str]:
    """A database of another encoding."""
    _run(cluster_url, "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    yield sa.make_url(cluster_url).set(database="latin").render_as_string(hide_password=False)
    _run(cluster_url, "DROP DATABASE latin WITH (FORCE)")


def test_a_database_in_another_encoding_is_refused_whoever_connects(latin_url: str) -> None:
    def charging(url: str) -> Any:
        return Connector(url, connect_timeout_s=ADDRESS_S).connect_asynchronously("SELECT 1 FROM no_table_yet")

    for connect in (blocking, bounded, asynchronous, charging, schema_state):
        with pytest.raises(Unusable, match="the database's encoding is LATIN1: it must be UTF8"):
            connect(latin_url)
    with closing(Database(latin_url)) as database, pytest.raises(DatabaseDown, match="LATIN1"):
        database.transaction(lambda connection: None)
    with closing(Rows(latin_url)) as rows:
        beside = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'latin' AND pid <> pg_backend_pid()"
        assert rows.number(beside) == 0
