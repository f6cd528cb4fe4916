"""Names of a test's own on a real event loop, and addresses at which nobody answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import uvloop

LOOPS = ("asyncio", "uvloop")
# What the kernel keeps for a listener with the smallest queue, and some more.
QUEUE_FILLERS = 8


class Resolver:
    """Knows the addresses of some names, which may change; while it is `broken` it knows nothing.

    For names in `stuck` it never answers an event loop.
    """

    def __init__(self, **addresses: list[str]) -> None:
        self.addresses = addresses
        self.broken = False
        self.stuck: dict[str, int] = {}  # and how often it was asked for them
        self.asked = 0

    def loop_factory(self, kind: str) -> Callable[[], asyncio.AbstractEventLoop]:
        """Event loops of this kind that ask this resolver."""
        base: Any = uvloop.Loop if kind == "uvloop" else asyncio.SelectorEventLoop
        resolver = self

        class Loop(base):  # type: ignore[misc]
            async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
                if host in resolver.stuck:
                    resolver.stuck[host] += 1
                    await asyncio.get_running_loop().create_future()
                return resolver.found(host, port)

        return Loop

    def found(self, host: str | bytes, port: int | None, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        """What getaddrinfo returns. Raises socket.gaierror."""
        name = host.decode() if isinstance(host, bytes) else host
        self.asked += 1
        if self.broken or name not in self.addresses:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (ip, port or 0)) for ip in self.addresses[name]
        ]


@contextmanager
def black_hole(ip: str, port: int) -> Iterator[None]:
    """An address that answers no attempt to connect: its queue is full, and nobody takes from it."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ip, port))
        listener.listen(0)
        for _ in range(QUEUE_FILLERS):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect((ip, port))
        yield


@contextmanager
def mute_server(ip: str, port: int) -> Iterator[None]:
    """An address that takes connections, and says nothing."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ip, port))
        listener.listen(100)
        yield


@contextmanager
def nobody(ip: str, port: int) -> Iterator[None]:
    """An address that refuses connections."""
    yield
