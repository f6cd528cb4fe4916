"""One running service for all tests of a module that are content with the default settings."""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import SEQUENCES, TEMPLATE, _beside, _run
from tests.contract.api import Api
from tests.harness import Rows, Service, service


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


@pytest.fixture(scope="module")
def module_database_url(cluster_url: str) -> Iterator[str]:
    """A migrated database for a whole module."""
    name = f"test_{uuid.uuid4().hex}"
    _run(cluster_url, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    url = _beside(cluster_url, name)
    first = random.randrange(10**6, 10**15)
    _run(url, *[f"ALTER SEQUENCE {table}_id_seq RESTART WITH {first}" for table in SEQUENCES])
    yield url
    _run(cluster_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a module's service keeps its things."""
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """What a module's service is set to; modules may say otherwise."""
    return {}


@pytest.fixture(scope="module")
def world(module_database_url: str, redis_url: str, module_folder: Path, settings: dict[str, str]) -> Iterator[World]:
    """One service of two workers for the whole module."""
    rows = Rows(module_database_url)
    given = {"database_url": module_database_url, "redis_url": redis_url, **settings}
    with service(module_folder, workers=2, **given) as running:
        people = itertools.count(random.randrange(10**6, 10**12))
        yield World(Api(running.url), running, rows, module_database_url, redis_url, people)
    rows.close()
