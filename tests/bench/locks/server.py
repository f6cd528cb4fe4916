"""The Valkey that all candidates share: our own child, without persistence, on loopback."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from service.embedded import EmbeddedError, valkey_binary
from tests.harness import OwnRedis

ALONE_WITHIN_S = 10.0


class BenchFailed(Exception):
    """It could not be measured; the message is one line."""


class Server:
    """The running server, and what it knows about itself."""

    def __init__(self, *, url: str, pid: int, client: redis.Redis) -> None:
        self.url = url
        self.pid = pid
        self._client = client

    def fresh(self) -> None:
        """Empty, and with nobody connected but us. Raises BenchFailed when somebody stays."""
        give_up_at_s = time.monotonic() + ALONE_WITHIN_S
        while int(self._client.info("clients")["connected_clients"]) > 1:
            if time.monotonic() > give_up_at_s:
                raise BenchFailed("a candidate has ended, and its connections to Valkey stay")
            time.sleep(0.01)
        self._client.flushall()

    def version(self) -> str:
        """As the server tells it."""
        info = self._client.info("server")
        return str(info.get("valkey_version") or info["redis_version"])


@contextmanager
def own_server(folder: Path) -> Iterator[Server]:
    """A server for the time of the block. Raises BenchFailed."""
    try:
        own = OwnRedis(valkey_binary(), folder)
    except EmbeddedError as error:
        raise BenchFailed(str(error)) from error
    try:
        try:
            own.start()
        except AssertionError as error:
            raise BenchFailed(str(error)) from error
        assert own.process is not None
        with redis.Redis(port=own.port, socket_timeout=30) as client:
            yield Server(url=own.url, pid=own.process.pid, client=client)
    finally:
        own.kill()
