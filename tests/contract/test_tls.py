"""TLS to Postgres and to Redis: the service works through it, and goes to nobody whose certificate is another's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from db.migrate import migrate
from tests.contract.api import Api, problem
from tests.harness import Rows, Service, clean_environment, run_cli, wait_until
from tests.servers.fixtures import HARD_PASSWORD, StartRedis
from tests.servers.kinds import TLS_KIND
from tests.servers.tls import Certificates
from tests.servers.tls_postgres import PASSWORD, TlsDoor, own_tls_postgres, postgres_with_tls

StartService = Callable[..., Service]
INSTALLED = postgres_with_tls()
SERVERS = ["embedded behind a door", *(["installed"] if INSTALLED else [])]


@dataclass(frozen=True, slots=True)
class Authorities:
    """The certificates of a server at 127.0.0.1, of one elsewhere, and an authority that knows neither."""

    here: Certificates
    elsewhere: Certificates
    stranger: Path


@pytest.fixture
def authorities(tmp_path: Path) -> Authorities:
    def made(name: str, host: str = "127.0.0.1") -> Certificates:
        (tmp_path / name).mkdir()
        return Certificates.make(tmp_path / name, host=host)

    return Authorities(made("here"), made("elsewhere", "127.0.0.2"), made("stranger").authority)


@contextmanager
def postgres(server: str, certificates: Certificates, database_url: str) -> Iterator[str]:
    """A Postgres that takes nobody without TLS, migrated; its URL without a word of TLS."""
    if server == "installed":
        assert INSTALLED is not None
        with own_tls_postgres(INSTALLED, certificates) as url:
            migrate(f"{url}?sslmode=require")
            yield url
        return
    with TlsDoor(database_url, certificates) as door:
        yield door.url


def checked(url: str, authority: Path) -> str:
    """The URL of who trusts this authority, and the host of that name alone."""
    return f"{url}?sslmode=verify-full&sslrootcert={quote(str(authority))}"


@pytest.mark.parametrize("server", SERVERS)
def test_everything_works_over_tls_and_no_secret_is_logged(
    server: str, authorities: Authorities, database_url: str, start_service: StartService, start_redis: StartRedis
) -> None:
    redis = start_redis(TLS_KIND, certificates=authorities.here, password=HARD_PASSWORD)
    with postgres(server, authorities.here, database_url) as url:
        url = checked(url, authorities.here.authority)
        rows = Rows(url)
        rows.grant(1, 5)
        appointment_id = rows.appointment(1, 2)
        service = start_service(database_url=url, redis_url=redis.url, lock_outage="refuse", log_level="debug")
        api = Api(service.url)
        answer = api.enter(appointment_id, 1)
        assert (answer.status, answer.json["outcome"]) == (201, "charged")
        assert api.metric("lock_acquire_total", resource="appointment", outcome="acquired") == 1
        assert api.post("/v1/locks/tls/leases", user=1, scope="locks", send={"ttl_ms": 1000}).status == 201
        if server == "installed":
            assert (
                rows.number(
                    "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE NOT ssl"
                    " AND client_addr IS NOT NULL"
                )
                == 0
            )
        for words in (("audit",), ("locks", "list")):
            ended = run_cli(*words, environment=service.environment)
            assert ended.returncode == 0, ended.stderr
        rows.close()
        assert service.stop() == 0
        for secret in (PASSWORD, quote(PASSWORD, safe=""), HARD_PASSWORD, quote(HARD_PASSWORD, safe="")):
            assert secret not in service.logged()


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(
    ("shown", "trusted", "told"),
    [
        ("here", "stranger", "certificate verify failed"),
        ("elsewhere", "elsewhere", "does not match host name"),
    ],
)
def test_a_postgres_that_is_not_the_one_is_told_of_in_one_line(
    server: str,
    shown: str,
    trusted: str,
    told: str,
    authorities: Authorities,
    database_url: str,
    redis_url: str,
    start_service: StartService,
) -> None:
    certificates = {"here": authorities.here, "elsewhere": authorities.elsewhere}[shown]
    authority = {"stranger": authorities.stranger, "elsewhere": authorities.elsewhere.authority}[trusted]
    with postgres(server, certificates, database_url) as url:
        environment = clean_environment(database_url=checked(url, authority), redis_url=redis_url)
        for words, status in ((("migrate",), 1), (("audit",), 2)):
            ended = run_cli(*words, environment=environment)
            (line,) = ended.stderr.splitlines()
            assert (ended.returncode, told in line) == (status, True), ended.stderr
        # It may be mended while we run, as any other outage: the service starts, says so, and takes no traffic.
        service = start_service(workers=1, database_url=checked(url, authority))
        assert problem(Api(service.url).get("/readyz"), "database-down")
        assert told in service.logged()
        assert PASSWORD not in service.logged() + ended.stderr


@pytest.mark.parametrize("server", SERVERS)
def test_a_postgres_with_tls_takes_nobody_without(server: str, authorities: Authorities, database_url: str) -> None:
    with postgres(server, authorities.here, database_url) as url:
        ended = run_cli("migrate", environment=clean_environment(database_url=f"{url}?sslmode=disable"))
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1), ended.stderr


@pytest.mark.parametrize(
    ("trusted", "host", "told"),
    [
        ("stranger", "127.0.0.1", "certificate verify failed"),
        ("here", "127.1", "Hostname mismatch"),  # the same server by a name that its certificate does not have
    ],
)
def test_a_redis_that_is_not_the_one_is_told_of_and_gets_no_password(
    trusted: str, host: str, told: str, authorities: Authorities, start_redis: StartRedis, start_service: StartService
) -> None:
    authority = {"stranger": authorities.stranger, "here": authorities.here.authority}[trusted]
    server = start_redis(TLS_KIND, certificates=authorities.here, password=HARD_PASSWORD)
    url = f"rediss://:{quote(HARD_PASSWORD, safe='')}@{host}:{server.port}/0?ssl_ca_certs={quote(str(authority))}"
    service = start_service(workers=1, redis_url=url, lock_outage="refuse")
    assert problem(Api(service.url).get("/readyz"), "lock-store-down")
    wait_until(lambda: told in service.logged(), what="the reason in the log")
    ended = run_cli("locks", "list", environment=service.environment)
    (line,) = ended.stderr.splitlines()
    assert ended.returncode not in (0, -9)
    assert told in line
    for secret in (HARD_PASSWORD, quote(HARD_PASSWORD, safe="")):
        assert secret not in service.logged() + line


def test_a_certificate_that_cannot_be_read_stops_the_start_with_one_line(redis_url: str) -> None:
    environment = clean_environment(database_url="postgresql://h/d", redis_url="rediss://h/0?ssl_ca_certs=/nowhere/ca")
    ended = run_cli("serve", "--port", "0", environment=environment)
    (line,) = ended.stderr.splitlines()
    assert (ended.returncode, "CHARGEONCE_REDIS_URL" in line) == (2, True)
