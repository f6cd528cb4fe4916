"""A keep-alive connection that is cheap enough to share two cores with what it measures: about 10 µs a request.

The bytes of a request are made beforehand; of an answer only the status, the length and the outcome are read.
"""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol, cast

CHARGED = b"201 charged"
ALREADY_CHARGED = b"200 already_charged"
HEAD_END = b"\r\n\r\n"
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
SAID = re.compile(rb'"(?:outcome|code|lease_id)"[ \t\r\n]*:[ \t\r\n]*"([^"]{1,60})"')
NO_CONTENT = b"204"


class LoadError(Exception):
    """The load could not be kept up for the whole window."""


class Owner(Protocol):
    """Who sends on connections, and hears of the answers."""

    def answered(self, connection: Connection, answer: bytes) -> None:
        """The status and the outcome, the code of a refusal, or the lease's id: `201 charged`; `204` alone."""

    def broken(self, why: str) -> None:
        """The connection can be used no more."""


class Connection(asyncio.Protocol):
    """One connection with at most one request in flight. `since_s` is for its owner: when the request was due."""

    def __init__(self, owner: Owner) -> None:
        self.since_s = 0.0
        self._owner = owner
        self._buffer = b""
        self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready to send."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def send(self, request: bytes) -> None:
        """Sends it at once."""
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Tells the owner once an answer is whole."""
        if self._buffer:
            data = self._buffer + data
        head_end = data.find(HEAD_END)
        if head_end < 0:
            self._buffer = data
            return
        if data[9:12] == NO_CONTENT:
            self._buffer = b""
            self._owner.answered(self, NO_CONTENT)
            return
        length = LENGTH.search(data, 0, head_end)
        if length is None:
            self._owner.broken(f"an answer without Content-Length: {data[:200]!r}")
            return
        if len(data) < head_end + 4 + int(length[1]):
            self._buffer = data
            return
        self._buffer = b""
        said = SAID.search(data, head_end)
        self._owner.answered(self, b"%b %b" % (data[9:12], said[1] if said else b"(no code)"))

    def connection_lost(self, error: Exception | None) -> None:
        """Nobody but us should have closed it."""
        if not self._closing:
            self._owner.broken(f"the server closed a connection ({error!r})")

    def close(self) -> None:
        """Closed, and nobody told."""
        self._closing = True
        self._transport.close()


@asynccontextmanager
async def connected(owner: Owner, *, host: str, port: int, connections: int) -> AsyncIterator[list[Connection]]:
    """So many connections, one after the other, so that no backlog overflows; closed with the block."""
    loop = asyncio.get_running_loop()
    them: list[Connection] = []
    try:
        for _ in range(connections):
            _, connection = await loop.create_connection(lambda: Connection(owner), host, port)
            them.append(connection)  # at once, so that it is closed even when the next cannot be had
        with _without_collections():
            yield them
    finally:
        for each in them:
            each.close()


@contextmanager
def _without_collections() -> Iterator[None]:
    """A collection in the middle would stop every connection at once; there is nothing cyclic to collect."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
