"""What a simulated connection does to what is sent on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.sim.network import Connection, Weather
from tests.sim.process import Process
from tests.sim.test_process import Silent
from tests.sim.world import World

JITTER = Weather(slow_share=0.5, slowest_s=0.2)


class Echo:
    """A server that says everything again."""

    def __init__(self, world: World) -> None:
        self.heard = b""
        self.has_closed = False
        self._world = world

    def arrived(self, connection: Connection, data: bytes) -> None:
        self.heard += data
        connection.send_down(data, self._world.now_s)

    def closed(self, connection: Connection) -> None:
        self.has_closed = True


class Client(asyncio.Protocol):
    """Keeps what it hears, and of its end."""

    def __init__(self) -> None:
        self.heard = b""
        self.end: list[Exception | None] = []

    def data_received(self, data: bytes) -> None:
        self.heard += data

    def connection_lost(self, error: Exception | None) -> None:
        self.end.append(error)


class Line:
    """A process, a server, and one connection between them."""

    def __init__(self, seed: int = 1) -> None:
        self.world = World(seed)
        self.server, self.client = Echo(self.world), Client()
        self.process = Process(self.world, Silent(), name="p0", life=1)  # type: ignore[abstract]
        self.connection = Connection(self.world, self.process, self.server, self.server, JITTER, 1)
        self.process.start(self._begin())
        self.world.run(until_s=0.1)

    async def _begin(self) -> None:
        self.connection.begin(self.client)

    def say(self, *words: bytes, every_s: float = 0.01) -> None:
        """From the process, one after another."""
        for number, word in enumerate(words):
            self.process.call_later(number * every_s, self.connection.write, word)

    def run(self, for_s: float) -> None:
        """Goes on."""
        self.world.run(until_s=self.world.now_s + for_s)


@pytest.mark.parametrize("seed", range(10))
def test_what_is_sent_arrives_in_order_either_way(seed: int) -> None:
    line = Line(seed)
    line.say(*[b"%d," % number for number in range(50)])
    line.run(5.0)
    expected = b"".join(b"%d," % number for number in range(50))
    assert line.server.heard == line.client.heard == expected


def test_a_stall_makes_everything_behind_it_late() -> None:
    line = Line()
    line.connection.up.stall(1.0)
    line.say(b"a", b"b")
    line.run(0.9)
    assert line.server.heard == b""
    line.run(1.0)
    assert line.server.heard == b"ab"


@pytest.mark.parametrize(
    ("cut", "server_hears", "client_hears"),
    [({"up": True, "down": False}, b"", b""), ({"up": False, "down": True}, b"a", b""), ({}, b"", b"")],
    ids=["up", "down", "both"],
)
def test_a_cut_is_silent_for_both(cut: dict[str, bool], server_hears: bytes, client_hears: bytes) -> None:
    line = Line()
    line.connection.cut(**cut)
    line.say(b"a")
    line.run(10.0)
    assert (line.server.heard, line.client.heard) == (server_hears, client_hears)
    assert not line.server.has_closed
    assert not line.client.end
    line.run(60.0)
    assert line.server.has_closed  # it gives up what has been silent for so long


def test_a_reset_is_told_at_both_ends() -> None:
    line = Line()
    line.connection.reset()
    line.run(1.0)
    assert line.server.has_closed
    assert [type(error) for error in line.client.end] == [ConnectionResetError]


@pytest.mark.parametrize("close", [Connection.close, Connection.abort], ids=["close", "abort"])
def test_who_closes_is_told_once_and_the_server_hears_of_it(close: Callable[[Connection], None]) -> None:
    line = Line()
    line.process.call_soon(close, line.connection)
    line.process.call_soon(close, line.connection)
    line.run(1.0)
    assert line.client.end == [None]
    assert line.server.has_closed


def test_a_killed_process_hears_nothing_more_and_what_it_sent_after_its_death_was_never_sent() -> None:
    line = Line()

    def busy() -> None:
        line.connection.write(b"before")
        line.process.block(1.0)
        line.connection.write(b"after")

    line.process.call_soon(busy)
    line.run(0.5)
    line.process.die(tells=True)
    line.run(5.0)
    assert line.server.heard == b"before"
    assert line.server.has_closed
    assert line.client.heard == b""


def test_the_power_goes_and_nobody_is_told() -> None:
    line = Line()
    line.process.die(tells=False)
    line.run(10.0)
    assert not line.server.has_closed
