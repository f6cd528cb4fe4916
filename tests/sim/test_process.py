"""A simulated process runs its callbacks in the order in which the real event loops do."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from tests.sim.circumstances import CALM
from tests.sim.network import Connection
from tests.sim.process import Process
from tests.sim.world import World

Log = list[str]


class Silent:
    """Listens to nothing."""

    def stood_still(self, process: Process, from_s: float, to_s: float, *, suspended: bool = False) -> None: ...

    def unhandled(self, process: Process, what: str) -> None:
        raise AssertionError(what)


class Reader(asyncio.Protocol):
    """Logs what it reads, and calls something soon."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def data_received(self, data: bytes) -> None:
        self._log.append("read")
        asyncio.get_running_loop().call_soon(self._log.append, "soon, of the reader")


def _fill(loop: asyncio.AbstractEventLoop, log: Log, send: Callable[[], Any]) -> None:
    """In one callback: something to read arrives, a timer falls due, and two calls are made soon, one of which makes
    another."""

    def soon() -> None:
        log.append("soon")
        loop.call_soon(log.append, "soon, of the next tick")

    def timer() -> None:
        log.append("timer")
        loop.call_soon(log.append, "soon, of the timer")

    send()
    loop.call_later(0.002, timer)
    loop.call_soon(soon)
    loop.call_soon(log.append, "soon, second")


def real(loop: asyncio.AbstractEventLoop) -> Log:
    """What a real loop does."""
    log: Log = []
    ours, theirs = socket.socketpair()

    async def main() -> None:
        transport, _ = await loop.create_connection(lambda: Reader(log), sock=ours)
        await asyncio.sleep(0.01)

        def fill() -> None:
            _fill(loop, log, lambda: theirs.send(b"x"))
            time.sleep(0.02)  # so that all of it is ready at the next tick

        loop.call_soon(fill)
        await asyncio.sleep(0.2)
        transport.close()
        await asyncio.sleep(0)

    try:
        loop.run_until_complete(main())
    finally:
        theirs.close()
        loop.close()
    return log


class Peer:
    """A server that says nothing by itself."""

    def arrived(self, connection: Connection, data: bytes) -> None: ...

    def closed(self, connection: Connection) -> None: ...


def simulated(*, is_uvloop: bool) -> Log:
    """What a simulated one does."""
    log: Log = []
    world = World(1)
    process = Process(world, Silent(), name="p0", life=1, is_uvloop=is_uvloop)  # type: ignore[abstract]
    peer = Peer()
    connection = Connection(world, process, peer, peer, CALM, 1)

    async def main() -> None:
        connection.begin(Reader(log))
        await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_soon(fill)
        await asyncio.sleep(0.2)

    def fill() -> None:
        _fill(process, log, lambda: connection.send_down(b"x", process.now_s))
        process.block(0.02)

    process.start(main())
    world.run(until_s=1.0)
    return log


@pytest.mark.parametrize(
    ("new_loop", "is_uvloop"),
    [(asyncio.new_event_loop, False), (uvloop.new_event_loop, True)],
    ids=["asyncio", "uvloop"],
)
def test_callbacks_run_in_the_order_of_the_real_loop(
    new_loop: Callable[[], asyncio.AbstractEventLoop], is_uvloop: bool
) -> None:
    assert simulated(is_uvloop=is_uvloop) == real(new_loop())


def test_the_two_loops_have_different_orders() -> None:
    assert simulated(is_uvloop=True) != simulated(is_uvloop=False)
