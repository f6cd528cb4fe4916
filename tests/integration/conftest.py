"""What the tests of the locks share."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing

import pytest
import redis

from tests.harness import OwnRedis
from tests.integration.lock_faults import keys_at
from tests.integration.test_locker import Keys
from tests.proxy import Proxy, postgres_proxy
from tests.servers.redis_server import RedisServer


@pytest.fixture
def name() -> str:
    """A lock's name that no other test uses."""
    return f"test:{uuid.uuid4().hex}"


@pytest.fixture
def keys(redis_server: RedisServer, name: str) -> Iterator[Keys]:
    """The test's lock on a server of its own; a module of tests on the shared one has its own."""
    with keys_at(redis_server.url, name) as keys:
        yield keys


@pytest.fixture
def proxy(own_redis: OwnRedis) -> Iterator[Proxy]:
    """A proxy before the test's own server."""
    with Proxy("127.0.0.1", own_redis.port) as proxy:
        yield proxy


@pytest.fixture
def proxied(database_url: str) -> Iterator[tuple[Proxy, str]]:
    """A proxy before the database, and the URL through it."""
    proxy, url = postgres_proxy(database_url)
    with proxy:
        yield proxy, url


@pytest.fixture
def their_client(redis_url: str) -> Iterator[redis.Redis]:
    """As python-redis-lock needs it: its BLPOP waits for longer than any socket timeout."""
    with closing(redis.Redis.from_url(redis_url, socket_timeout=None)) as client:
        yield client
