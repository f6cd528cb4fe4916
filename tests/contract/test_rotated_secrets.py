"""The lock store's password and certificates are replaced under a running service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.contract.api import Api
from tests.harness import Rows, Service, clean_environment, run_cli, wait_until
from tests.servers.fixtures import HARD_PASSWORD, StartRedis
from tests.servers.kinds import TLS_KIND
from tests.servers.redis_server import AclUser, RedisServer
from tests.servers.tls import Certificates

StartService = Callable[..., Service]
NEW_PASSWORD = f"another {HARD_PASSWORD}"
WORKERS = 2


def enters_under_the_lock(api: Api, rows: Rows) -> bool:
    """Whether somebody new is charged, and the lock was had for it."""
    rows.grant(1, 1)
    before = api.metric("lock_acquire_total", resource="appointment", outcome="acquired")
    assert api.enter(rows.appointment(1, 2), 1).status == 201
    return api.metric("lock_acquire_total", resource="appointment", outcome="acquired") == before + 1


def connected(server: RedisServer) -> int:
    """How many connections the service has."""
    return str(server.ask("CLIENT", "LIST")).count("user=locker")


def test_a_password_file_that_is_replaced_is_used_when_the_connection_is_made_anew(
    start_service: StartService, start_redis: StartRedis, rows: Rows, tmp_path: Path
) -> None:
    rules = "~lock* &lock* +@all -@dangerous"
    server = start_redis(users=[AclUser("operator", "word"), AclUser("locker", HARD_PASSWORD, rules)])
    password = tmp_path / "password"
    password.write_text(HARD_PASSWORD)
    url = f"redis://locker@127.0.0.1:{server.port}/0?password_file={quote(str(password))}"
    service = start_service(redis_url=url, workers=WORKERS, lock_outage="refuse")
    api = Api(service.url)
    assert enters_under_the_lock(api, rows)

    password.write_text(f"{NEW_PASSWORD}\n")
    server.ask("ACL", "SETUSER", "locker", "resetpass", f">{NEW_PASSWORD}")
    server.ask("CLIENT", "KILL", "USER", "locker")

    wait_until(lambda: connected(server) == 2 * WORKERS, what="connections with the new password")
    wait_until(lambda: api.every_worker_says("lock_store", "up"))
    assert enters_under_the_lock(api, rows)
    assert HARD_PASSWORD not in service.logged()


def test_certificates_that_are_replaced_are_used_when_the_connection_is_made_anew(
    start_service: StartService, start_redis: StartRedis, rows: Rows, tmp_path: Path
) -> None:
    certificates = Certificates.make(tmp_path)
    server = start_redis(TLS_KIND, certificates=certificates)
    api = Api(start_service(redis_url=server.url, workers=WORKERS, lock_outage="refuse").url)
    assert enters_under_the_lock(api, rows)

    Certificates.make(tmp_path)
    server.restart()

    wait_until(lambda: api.every_worker_says("lock_store", "up"))
    wait_until(lambda: api.get("/readyz").status == 200)
    assert enters_under_the_lock(api, rows)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://user:hunter2@h?pasword_file=/p", "'pasword_file'"),
        ("redis://user@h?password_file=/nowhere/p", "password_file cannot be read: No such file or directory"),
        ("redis+sentinel://h/s?sentinel_tsl=1", "'sentinel_tsl'"),
    ],
)
def test_a_wrong_word_of_the_lock_stores_url_stops_the_start_with_one_line(url: str, told: str) -> None:
    environment = clean_environment(redis_url=url, database_url="postgresql://h/d")
    done = run_cli("locks", "list", environment=environment)
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert "REDIS_URL" in line
    assert told in line
    assert "hunter2" not in line
