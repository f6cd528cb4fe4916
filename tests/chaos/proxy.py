"""A TCP proxy in the event loop, one before each server of each instance: silence, delay, resets, answers lost.

Its port is its own for good, whatever becomes of the server behind it.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from functools import partial
from typing import Self

from tests.chaos.proxy_link import Cut, Link, ProxyCounts, Traffic, Trap, Way, reset
from tests.servers.processes import unused_port

__all__ = ["ChaosProxy", "ProxyCounts", "Way"]

BACKLOG = 512


class ChaosProxy:
    """Forwards bytes both ways until told otherwise. For the loop's own thread; only close() waits for anything."""

    def __init__(self, host: str, port: int) -> None:
        self.port = unused_port()
        self._server_address = (host, port)
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._traffic = Traffic()
        self._links: set[Link] = set()
        self._opening: set[asyncio.Task[None]] = set()

    @classmethod
    async def start(cls, host: str, port: int) -> Self:
        """A proxy on loopback that leads to this server."""
        proxy = cls(host, port)
        proxy.accept()
        return proxy

    async def close(self) -> None:
        """Takes no connection any more and resets those there are; harmless twice."""
        self.refuse()
        self.cut()
        for trap in self._traffic.traps:
            trap.sprung.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)

    @property
    def counts(self) -> ProxyCounts:
        """What it has done so far."""
        return self._traffic.counts

    def connection_count(self) -> int:
        """How many connections lead through it now."""
        return len(self._links)

    def upstream_ports(self) -> list[int]:
        """The local ports of its connections to the server, by which the server knows them."""
        return [link.upstream_port for link in self._links]

    def point_at(self, host: str, port: int) -> None:
        """New connections lead to this server; those there are stay with theirs."""
        self._server_address = (host, port)

    def refuse(self) -> None:
        """Nobody listens here from now on, so that the kernel refuses; the connections there are stay."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def accept(self) -> None:
        """Ends refuse(); harmless when it accepts already."""
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=BACKLOG)
            self._listener.setblocking(False)
            self._loop.add_reader(self._listener, self._take_connection)

    def cut(self) -> int:
        """Resets every connection at both ends, what is on its way is lost; how many there were."""
        links = list(self._links)
        for link in links:
            link.reset()
        for task in self._opening:
            task.cancel()
        self.counts.cut += len(links)
        return len(links)

    def hold(self, way: Way) -> None:
        """Silence one way, as of a network that has split: what comes waits, an end of connection included.

        Connections stay open, and new ones are taken.
        """
        self._traffic.held.add(way)

    def let_through(self, way: Way) -> None:
        """Ends hold(): all that has waited arrives, in order."""
        self._traffic.held.discard(way)
        for link in list(self._links):
            link.streams[way].forward_due()

    def delay(self, way: Way, delay_s: float) -> None:
        """Whatever comes this way from now on arrives so much later, in order; 0 ends that."""
        self._traffic.delays_s[way] = delay_s

    def lose_request_once(self, *, at: bytes) -> asyncio.Future[None]:
        """Resets the connection on which the next request with `at` in it comes; the server never hears of it.

        A request is what one read of a connection brings. The future is done when it has happened; cancelling the
        future takes the trap away.
        """
        return self._set_trap(Cut.BEFORE_FORWARDING, at)

    def lose_reply_once(self, *, at: bytes) -> asyncio.Future[None]:
        """Forwards that request, waits for the server's answer, throws it away and resets the connection.

        Request and future are as in lose_request_once.
        """
        return self._set_trap(Cut.AFTER_ANSWERED, at)

    def _set_trap(self, cut: Cut, at: bytes) -> asyncio.Future[None]:
        trap = Trap(cut, at, self._loop.create_future())
        self._traffic.traps.append(trap)
        return trap.sprung

    def _take_connection(self) -> None:
        assert self._listener is not None
        with suppress(BlockingIOError, ConnectionAbortedError):
            client, _ = self._listener.accept()
            task = self._loop.create_task(self._open(client))
            self._opening.add(task)
            task.add_done_callback(partial(self._opened, client))

    def _opened(self, client: socket.socket, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        if task.cancelled():  # perhaps before its first step
            reset(client)

    async def _open(self, client: socket.socket) -> None:
        server = socket.socket()
        try:
            server.setblocking(False)
            await self._loop.sock_connect(server, self._server_address)
            self._links.add(Link(self._traffic, client, server, self._links.discard))
            self.counts.connections += 1
        except OSError:
            self.counts.refused += 1
            reset(server)
            reset(client)
        except BaseException:
            reset(server)
            raise
