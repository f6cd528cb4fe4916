"""Lock stores and lock users for fault tests; all but shared_lock_cluster is the test's own and may be broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.lock_process import LockProcess
from tests.servers.clock import ShiftedClock, ShiftedClockServer, build_clock_library
from tests.servers.cluster import Cluster
from tests.servers.kinds import KINDS, TLS_KIND, server_binary
from tests.servers.redis_server import AclUser, RedisServer
from tests.servers.sentinel import SentinelGroup
from tests.servers.tls import Certificates

HARD_PASSWORD = "p@ss/w:rd%?#&"  # nothing that a URL may carry unquoted

StartRedis = Callable[..., RedisServer]
StartLockProcess = Callable[..., LockProcess]


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[StartRedis]:
    """Starts servers of any kind: start_redis("redis-7", settings=["maxmemory 3mb"], password="secret", ...)."""
    with ExitStack() as stack:

        def start(kind: str = "valkey", **options: Any) -> RedisServer:
            server = RedisServer(server_binary(kind), tmp_path, **options)
            stack.callback(server.kill)
            server.start()
            return server

        yield start


@pytest.fixture
def redis_server(start_redis: StartRedis) -> RedisServer:
    """A running Valkey."""
    return start_redis()


@pytest.fixture(params=KINDS)
def any_redis_server(request: pytest.FixtureRequest, start_redis: StartRedis) -> RedisServer:
    """A running server, of each kind in turn."""
    return start_redis(request.param)


@pytest.fixture
def password_server(start_redis: StartRedis) -> RedisServer:
    """A Valkey with a password, hard to quote, and no users."""
    return start_redis(password=HARD_PASSWORD)


@pytest.fixture
def acl_server(start_redis: StartRedis) -> RedisServer:
    """A Valkey whose only user, locker, may use keys and channels that begin with 'lock', and not administrate."""
    return start_redis(users=[AclUser("locker", HARD_PASSWORD, "~lock* &lock* +@all -@admin -@dangerous")])


@pytest.fixture
def tls_server(start_redis: StartRedis, tmp_path: Path) -> RedisServer:
    """A Redis that speaks TLS only, with a password and a certificate of an authority that nobody else knows."""
    return start_redis(TLS_KIND, certificates=Certificates.make(tmp_path), password=HARD_PASSWORD)


@pytest.fixture(scope="session")
def clock_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that moves a server's clock; skips where there is no compiler."""
    return build_clock_library(tmp_path_factory.mktemp("clock"))


@pytest.fixture
def shifted_clock_server(clock_library: Path, tmp_path: Path) -> Iterator[ShiftedClockServer]:
    """A Valkey whose clock the test moves while it runs."""
    server = ShiftedClockServer(server_binary("valkey"), tmp_path, library=clock_library)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def suspend_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that moves the clock which counts on in a suspend; skips where there is no compiler."""
    return build_clock_library(tmp_path_factory.mktemp("suspend"), clock="CLOCK_BOOTTIME")


@pytest.fixture
def suspend(suspend_library: Path, tmp_path: Path) -> ShiftedClock:
    """What a program's machine has slept: its leases go on by so much, and its timers do not."""
    return ShiftedClock(suspend_library, tmp_path)


@pytest.fixture
def sentinel_group(tmp_path: Path) -> Iterator[SentinelGroup]:
    """A Valkey master with one replica under three Sentinels."""
    with SentinelGroup(server_binary("valkey"), tmp_path) as group:
        yield group


@pytest.fixture(scope="module")
def shared_lock_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three Valkey masters, shared by the tests of a module: keys must be the test's own, and no node may be lost."""
    with Cluster(server_binary("valkey"), tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def lock_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three Valkey masters, each with a replica, so that a master may be lost."""
    with Cluster(server_binary("valkey"), tmp_path, replica_count=1) as cluster:
        yield cluster


@pytest.fixture
def lock_process(tmp_path: Path) -> Iterator[StartLockProcess]:
    """Starts processes that hold and wait: lock_process(url, instance_id="a"); all gone after the test."""
    with ExitStack() as stack:

        def start(url: str, **options: Any) -> LockProcess:
            return stack.enter_context(LockProcess.start(url, tmp_path, **options))

        yield start
