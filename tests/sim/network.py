"""TCP connections from processes to the server: each direction in order, and late, stalled, cut or silent."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tests.sim.process import Process
from tests.sim.world import World

FORGOTTEN_AFTER_S = 60.0  # so long after it has gone silent the server gives a connection up
BUFFER_BYTES = 65_536


class Served(Protocol):
    """The server's end of a connection."""

    def arrived(self, connection: Connection, data: bytes) -> None:
        """Some bytes."""

    def closed(self, connection: Connection) -> None:
        """The other end has closed it."""


@dataclass(frozen=True, slots=True)
class Weather:
    """How long a segment is on its way, in seconds: evenly between two ends, and longer for some of them."""

    shortest_s: float = 0.000_05
    longest_s: float = 0.000_6
    slow_share: float = 0.0
    slowest_s: float = 0.0

    def delay_s(self, numbers: random.Random) -> float:
        """Of one segment."""
        longest_s = self.longest_s
        if self.slow_share and numbers.random() < self.slow_share:
            longest_s = self.slowest_s
        return self.shortest_s + numbers.random() * (longest_s - self.shortest_s)


@dataclass(slots=True)
class Segment:
    """`data`: None is the end. `sent_at_s`: by the clock of whoever sent it."""

    data: bytes | None
    sent_at_s: float
    is_lost: bool = False


class Way:
    """One direction of a connection; what is sent arrives in order."""

    def __init__(
        self,
        world: World,
        numbers: random.Random,
        weather: Weather,
        actor: object,
        arrive: Callable[[Segment], None],
        number: int,
    ) -> None:
        self.number = number
        self._world, self._numbers, self._weather = world, numbers, weather
        self._actor, self._arrive = actor, arrive
        self.on_way: deque[Segment] = deque()
        self._last_s = 0.0
        self.is_silent = False

    def send(self, data: bytes | None, at_s: float) -> None:
        """Some bytes, or the end."""
        if self.is_silent:
            return
        self._last_s = max(self._last_s + 1e-9, at_s + self._weather.delay_s(self._numbers))
        self.on_way.append(Segment(data, at_s))
        self._world.at(self._last_s, self._actor, self._arrives)

    def stall(self, for_s: float) -> None:
        """Retransmissions: what is sent from now on arrives when that time is over, or later."""
        self._last_s = max(self._last_s, self._world.now_s + for_s)

    def delay(self, for_s: float) -> None:
        """What is on its way arrives when that time is over, and so does what is sent behind it."""
        on_way = [segment for segment in self.on_way if not segment.is_lost]
        self.lose()
        self.stall(for_s)
        for segment in on_way:
            self.send(segment.data, segment.sent_at_s)

    def lose(self) -> None:
        """What is on its way never arrives."""
        for segment in self.on_way:
            segment.is_lost = True

    def fall_silent(self) -> None:
        """Nothing arrives any more, and nobody is told."""
        self.is_silent = True
        self.lose()

    def _arrives(self) -> None:
        segment = self.on_way.popleft()
        if not segment.is_lost:
            self._arrive(segment)


class Connection:
    """The transport at the process' end, and both ways to and from the server's."""

    def __init__(
        self, world: World, process: Process, server: Served, server_actor: object, weather: Weather, number: int
    ) -> None:
        self.process, self.number = process, number
        self.protocol: Any = None
        self._world, self._server = world, server
        self._numbers = world.random(f"{process.name}.{process.life}/{number}")
        self.up = Way(world, self._numbers, weather, server_actor, self._arrived_up, 2 * number)
        self.down = Way(world, self._numbers, weather, process, self._arrived_down, 2 * number + 1)
        self._inbox: list[bytes] = []
        self._end: tuple[Exception | None] | None = None  # it has ended, and how
        self._is_open_here = self._is_open_there = True
        self._is_told = False
        process.connections[self] = None

    def __hash__(self) -> int:
        return self.number

    @property
    def ways(self) -> tuple[Way, Way]:
        """To the server, and back."""
        return self.up, self.down

    @property
    def unread(self) -> int:
        """How many segments have arrived that the process has not read."""
        return len(self._inbox)

    def __repr__(self) -> str:
        return f"<connection {self.number} of {self.process.name}>"

    # A transport, as the locks use it.

    def begin(self, protocol: Any) -> None:
        """From now on the protocol is told."""
        self.protocol = protocol
        protocol.connection_made(self)
        if self._inbox or self._end is not None:
            self.process.has_arrived(self)

    def write(self, data: bytes) -> None:
        """Sends, unless it is closing."""
        if self._is_open_here and data:
            self.up.send(data, self.process.now_s)

    def set_write_buffer_limits(self, **limits: int) -> None:
        """Nothing is ever too much to be written."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """There is none."""
        return default

    def is_closing(self) -> bool:
        """Whether no more can be sent."""
        return not self._is_open_here

    def close(self) -> None:
        """What was written goes out first."""
        if self._is_open_here:
            self.close_from_here()
            self.process.call_soon(self._tell_end, None)

    def abort(self) -> None:
        """What was written goes out, or does not."""
        if self._is_open_here:
            if self._numbers.random() < 0.3:
                self.up.lose()
            self.close()

    def deliver(self) -> None:
        """The process reads what has arrived."""
        if self._is_told or self.protocol is None or (not self._is_open_here and self._end is None):
            return
        self.process.saw(self.number, len(self._inbox))
        data, self._inbox = b"".join(self._inbox), []
        for at in range(0, len(data), BUFFER_BYTES):
            if self._is_open_here or self._end is not None:
                self._read(data[at : at + BUFFER_BYTES])
        if self._end is not None:
            self._tell_end(self._end[0])

    def _read(self, data: bytes) -> None:
        if hasattr(self.protocol, "get_buffer"):
            self.protocol.get_buffer(-1)[: len(data)] = data
            self.protocol.buffer_updated(len(data))
        else:
            self.protocol.data_received(data)

    def _tell_end(self, error: Exception | None) -> None:
        if not self._is_told:
            self._is_told, self._is_open_here = True, False
            self.process.connections.pop(self, None)
            self.protocol.connection_lost(error)

    # What the server does, and what befalls it.

    def send_down(self, data: bytes, at_s: float) -> None:
        """The server sends."""
        if self._is_open_there:
            self.down.send(data, at_s)

    def close_from_there(self, *, loses: bool) -> None:
        """The server closes it, or has died; what it had sent may never arrive then."""
        if self._is_open_there:
            self._is_open_there = False
            if loses:
                self.down.lose()
            self.down.send(None, self._world.now_s)

    def close_from_here(self) -> None:
        """The process' kernel closes it."""
        if self._is_open_here:
            self._is_open_here = False
            self.process.connections.pop(self, None)
            self.up.send(None, max(self._world.now_s, min(self.process.now_s, self.process.died_at_s)))

    def reset(self) -> None:
        """Something between them resets it: each end is told, and what is on its way may be lost."""
        for way in (self.up, self.down):
            if self._numbers.random() < 0.5:
                way.lose()
            way.send(None, self._world.now_s)
            way.is_silent = True

    def cut_off(self, for_s: float) -> None:
        """It ends at the process' end now; the server hears so much later of what was sent, and of the end."""
        now_s = self._world.now_s
        self.up.delay(for_s)
        self.up.send(None, now_s)
        self.down.lose()
        self.down.send(None, now_s)
        self.up.is_silent = self.down.is_silent = True

    def cut(self, *, up: bool = True, down: bool = True) -> None:
        """Nothing arrives any more, on these ways, and nobody is told; after a long time the server gives it up."""
        if up:
            self.up.fall_silent()
        if down:
            self.down.fall_silent()
        self._world.at(self._world.now_s + FORGOTTEN_AFTER_S, self._server, self._given_up)

    def _given_up(self) -> None:
        if self._is_open_there:
            self._is_open_there = False
            self._server.closed(self)

    def _arrived_up(self, segment: Segment) -> None:
        if not self._is_open_there or segment.sent_at_s > self.process.died_at_s:
            return
        if segment.data is None:
            self._given_up()
        else:
            self._server.arrived(self, segment.data)

    def _arrived_down(self, segment: Segment) -> None:
        if self.process.is_dead or not self._is_open_here or self._end is not None:
            return
        if segment.data is None:
            self._end = (ConnectionResetError("Connection reset by peer"),)
        else:
            self._inbox.append(segment.data)
        if self.protocol is not None:
            self.process.has_arrived(self)
