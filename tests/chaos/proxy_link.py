"""One connection through a chaos proxy: a stream of bytes each way, under what the proxy does to all of them."""

from __future__ import annotations

import asyncio
import enum
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

CHUNK_BYTES = 1 << 16
MAX_KEPT_BYTES = 1 << 20  # of one stream; then its sender waits, as for a full network
ANSWERED_AFTER_S = 0.005  # of silence
RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # struct linger: close(2) sends RST and waits for nothing


class Way(enum.Enum):
    """The way that bytes go."""

    REQUESTS = "requests"
    REPLIES = "replies"


class Cut(enum.Enum):
    """When a connection is cut, seen from a request that a trap waits for."""

    BEFORE_FORWARDING = "before"  # the server never hears of the request
    AFTER_ANSWERED = "after"  # the server has done it and answered, and the answer never arrives


@dataclass(slots=True)
class ProxyCounts:
    """What a proxy has done so far."""

    connections: int = 0
    refused: int = 0  # taken, and reset since nobody listened behind
    cut: int = 0  # connections reset by order, those of traps included
    lost_requests: int = 0
    lost_replies: int = 0


@dataclass(slots=True, eq=False)
class Trap:
    """A request to wait for, and what becomes of its connection."""

    cut: Cut
    at: bytes
    sprung: asyncio.Future[None]


@dataclass(slots=True)
class Traffic:
    """What is done at this time to the bytes of every connection of a proxy, and what has been done."""

    held: set[Way] = field(default_factory=set)
    delays_s: dict[Way, float] = field(default_factory=lambda: dict.fromkeys(Way, 0.0))
    traps: list[Trap] = field(default_factory=list)
    counts: ProxyCounts = field(default_factory=ProxyCounts)

    def take_trap(self, request: bytes) -> Trap | None:
        """The trap that this request springs, which is none any more."""
        if not self.traps:
            return None
        self.traps = [trap for trap in self.traps if not trap.sprung.done()]
        for trap in self.traps:
            if trap.at in request:
                self.traps.remove(trap)
                return trap
        return None


class Link:
    """Two sockets, and a stream each way between them; it reads by itself until it has ended."""

    def __init__(
        self, traffic: Traffic, client: socket.socket, server: socket.socket, on_end: Callable[[Link], None]
    ) -> None:
        self.traffic = traffic
        self.loop = asyncio.get_running_loop()
        self.upstream_port: int = server.getsockname()[1]
        self.reply_trap: Trap | None = None
        self._on_end = on_end
        self._sockets = (client, server)
        for each in self._sockets:
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.streams = {
            Way.REQUESTS: Stream(self, Way.REQUESTS, client, server),
            Way.REPLIES: Stream(self, Way.REPLIES, server, client),
        }

    def end_if_over(self) -> None:
        """Both ends have said that they are done, and have heard it of each other."""
        if all(stream.over for stream in self.streams.values()):
            self._end()
            for each in self._sockets:
                each.close()

    def reset(self) -> None:
        """Both ends get RST, at once and whatever is on its way."""
        self._end()
        for each in self._sockets:
            reset(each)

    def spring(self, trap: Trap) -> None:
        """The connection is cut for this trap."""
        counts = self.traffic.counts
        counts.cut += 1
        if trap.cut is Cut.BEFORE_FORWARDING:
            counts.lost_requests += 1
        else:
            counts.lost_replies += 1
        self.reset()
        if not trap.sprung.done():
            trap.sprung.set_result(None)

    def _end(self) -> None:
        for stream in self.streams.values():
            stream.end()
        self._on_end(self)


class Stream:
    """The bytes of one connection that go one way. Kept ones go out in order, each not before it is due."""

    def __init__(self, link: Link, way: Way, source: socket.socket, sink: socket.socket) -> None:
        self.over = False  # nothing is read or sent any more
        self._link = link
        self._traffic = link.traffic
        self._loop = link.loop
        self._way = way
        self._source = source
        self._sink = sink
        self._kept: deque[tuple[float, bytes | _Close]] = deque()
        self._kept_bytes = 0
        self._source_closed = False
        self._reads = self._writes = False
        self._alarm: asyncio.TimerHandle | None = None
        self._read_on()

    def end(self) -> None:
        """Nothing more is read or sent; harmless twice."""
        self.over = True
        self._kept.clear()
        self._read_no_more()
        self._write_no_more()
        self._stop_alarm()

    def forward_due(self) -> None:
        """Sends what is due and may go."""
        while self._kept and self._way not in self._traffic.held:
            due_s, first = self._kept[0]
            if (wait_s := due_s - time.monotonic()) > 0:
                self._call_later(wait_s, self.forward_due)
                break
            self._kept.popleft()
            if isinstance(first, _Close):
                self._pass_on_close(first)
                return
            sent = self._send(first)
            self._kept_bytes -= sent
            if sent < len(first):
                self._kept.appendleft((due_s, first[sent:]))
                self._write_on()
                return
        self._write_no_more()
        self._read_on()

    def _read(self) -> None:
        try:
            received = self._source.recv(CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._keep(_Close.RESET)
            return
        if not received:
            self._keep(_Close.IN_ORDER)
        elif self._way is Way.REQUESTS and (trap := self._traffic.take_trap(received)) is not None:
            self._spring(trap, received)
        elif self._way is Way.REPLIES and (trap := self._link.reply_trap) is not None:
            # The first bytes may answer an earlier request: ours is answered when there comes nothing more.
            self._call_later(ANSWERED_AFTER_S, lambda: self._link.spring(trap))
        else:
            self._pass_on(received)

    def _spring(self, trap: Trap, request: bytes) -> None:
        if trap.cut is Cut.BEFORE_FORWARDING:
            self._link.spring(trap)
        else:
            self._link.reply_trap = trap
            self._pass_on(request)

    def _pass_on(self, received: bytes) -> None:
        if not self._kept and self._way not in self._traffic.held and not self._traffic.delays_s[self._way]:
            sent = self._send(received)
            if sent == len(received):
                return
            received = received[sent:]
        self._kept_bytes += len(received)
        self._keep(received)

    def _pass_on_close(self, how: _Close) -> None:
        if how is _Close.RESET:
            self._link.reset()
            return
        self.end()
        with suppress(OSError):  # the other end may have gone in the meantime
            self._sink.shutdown(socket.SHUT_WR)
        self._link.end_if_over()

    def _keep(self, received: bytes | _Close) -> None:
        due_s = time.monotonic() + self._traffic.delays_s[self._way]
        self._kept.append((max(due_s, self._kept[-1][0]) if self._kept else due_s, received))
        self._source_closed = isinstance(received, _Close)
        if self._source_closed or self._kept_bytes >= MAX_KEPT_BYTES:
            self._read_no_more()
        self.forward_due()

    def _send(self, data: bytes) -> int:
        try:
            return self._sink.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._link.reset()
            return len(data)

    def _read_on(self) -> None:
        if not (self._reads or self.over or self._source_closed or self._kept_bytes >= MAX_KEPT_BYTES):
            self._reads = True
            self._loop.add_reader(self._source, self._read)

    def _read_no_more(self) -> None:
        if self._reads:
            self._reads = False
            self._loop.remove_reader(self._source)

    def _write_on(self) -> None:
        if not self._writes:
            self._writes = True
            self._loop.add_writer(self._sink, self.forward_due)

    def _write_no_more(self) -> None:
        if self._writes:
            self._writes = False
            self._loop.remove_writer(self._sink)

    def _call_later(self, wait_s: float, work: Callable[[], None]) -> None:
        self._stop_alarm()
        self._alarm = self._loop.call_later(wait_s, work)

    def _stop_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None


class _Close(enum.Enum):
    """How one end has closed its half, to be told to the other behind all bytes."""

    IN_ORDER = "FIN"
    RESET = "RST"


def reset(connection: socket.socket) -> None:
    """Closes it so that the other end gets RST; harmless twice."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    connection.close()
