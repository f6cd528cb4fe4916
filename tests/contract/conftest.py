"""One running service for all tests of a module that are content with the default settings."""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import SEQUENCES, TEMPLATE, _beside, _run
from tests.contract.api import Api
from tests.contract.lease_client import LeaseClient
from tests.contract.postgres_proxy import PostgresProxy
from tests.harness import OwnRedis, Rows, Service, clean_environment, service
from tests.servers.kinds import server_binary


@dataclass(frozen=True, slots=True)
class World:
    """A running service, its database, and people whom no other test knows."""

    api: Api
    service: Service
    rows: Rows
    database_url: str
    redis_url: str
    _people: Iterator[int]

    def person(self, coupons: int = 0) -> int:
        """Somebody new, with so many coupons."""
        user_id = next(self._people)
        if coupons:
            self.rows.grant(user_id, coupons)
        return user_id

    def meeting(self, coupons: int = 5) -> tuple[int, int, int]:
        """A new appointment between two new people who both have coupons: its id, inviter, invitee."""
        inviter, invitee = self.person(coupons), self.person(coupons)
        return self.rows.appointment(inviter, invitee), inviter, invitee


@contextmanager
def migrated_database(cluster_url: str) -> Iterator[str]:
    """A migrated database of one's own, gone afterwards."""
    name = f"test_{uuid.uuid4().hex}"
    _run(cluster_url, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    url = _beside(cluster_url, name)
    first = random.randrange(10**6, 10**15)
    _run(url, *[f"ALTER SEQUENCE {table}_id_seq RESTART WITH {first}" for table in SEQUENCES])
    yield url
    _run(cluster_url, f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def a_world(folder: Path, database_url: str, redis_url: str, settings: dict[str, str]) -> Iterator[World]:
    """One service of two workers with these settings."""
    rows = Rows(database_url)
    # Each test's locks are a resource of their own.
    given = {"database_url": database_url, "redis_url": redis_url, "max_metric_resources": "1000", **settings}
    with service(folder, workers=2, **given) as running:
        people = itertools.count(random.randrange(10**6, 10**12))
        yield World(Api(running.url), running, rows, database_url, redis_url, people)
    rows.close()


@contextmanager
def a_world_apart(folder: Path, database_url: str, settings: dict[str, str]) -> Iterator[World]:
    """One with a Valkey of its own: what instances tell, they tell to all who share one."""
    server = OwnRedis(server_binary("valkey"), folder)
    server.start()
    try:
        with a_world(folder, database_url, server.url, settings) as world:
            yield world
    finally:
        server.kill()


@pytest.fixture(scope="module")
def module_database_url(cluster_url: str) -> Iterator[str]:
    """A migrated database for a whole module."""
    with migrated_database(cluster_url) as url:
        yield url


@pytest.fixture(scope="module")
def proxy(module_database_url: str) -> Iterator[PostgresProxy]:
    """What a module's service takes for Postgres, where its settings say so."""
    proxy = PostgresProxy(module_database_url)
    yield proxy
    proxy.close()


@pytest.fixture(scope="package")
def default_world(cluster_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One service for all modules that are content with the default settings."""
    with (
        migrated_database(cluster_url) as database_url,
        a_world(tmp_path_factory.mktemp("default"), database_url, redis_url, {}) as world,
    ):
        yield world


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """What a module's service is set to; a module that says otherwise gets a service of its own."""
    return {}


@pytest.fixture(scope="module")
def world(
    request: pytest.FixtureRequest,
    redis_url: str,
    tmp_path_factory: pytest.TempPathFactory,
    settings: dict[str, str],
) -> Iterator[World]:
    """A running service of two workers, for the whole module at least."""
    if not settings:
        yield request.getfixturevalue("default_world")
        return
    url = request.getfixturevalue("module_database_url")
    with a_world(tmp_path_factory.mktemp("service"), url, redis_url, settings) as world:
        yield world


@pytest.fixture
def leases(world: World) -> LeaseClient:
    """Leases over HTTP."""
    return LeaseClient(world.api)


@pytest.fixture
def environment(world: World) -> Mapping[str, str]:
    """As an operator on another machine has it: addresses, and no secrets."""
    return clean_environment(database_url=world.database_url, redis_url=world.redis_url)
