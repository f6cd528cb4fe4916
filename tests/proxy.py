"""A TCP proxy between the product and a real server: cuts at the worst moment, silence one way, delays."""

from __future__ import annotations

import contextlib
import enum
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

import sqlalchemy as sa

CHUNK_BYTES = 65536
LOOK_AGAIN_S = 0.005  # how soon a pump that keeps bytes back finds out that it may go on


class Cut(enum.Enum):
    """When a connection is cut, seen from a request that holds the trigger."""

    BEFORE_FORWARDING = "before"  # the server never hears of the request
    AFTER_ANSWERED = "after"  # the server has done it and answered, and the answer never arrives


class Way(enum.Enum):
    """The way that bytes go."""

    REQUESTS = "to the server"
    REPLIES = "to the client"


class Fate(enum.Enum):
    """What becomes of bytes that go one way."""

    PASS = "pass"
    HOLD = "hold"
    SWALLOW = "swallow"


class Proxy:
    """Forwards bytes both ways until told otherwise; threaded, so that blocking drivers and event loops may use it."""

    def __init__(self, host: str, port: int) -> None:
        self._server_address = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._planned: tuple[Cut, bytes] | None = None
        self._then_away = False
        self._away = False
        self._closed = False
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.cut_happened = threading.Event()
        self._fates = dict.fromkeys(Way, Fate.PASS)
        self._delays_s = dict.fromkeys(Way, 0.0)
        self._eat_at: bytes | None = None
        self._replaced: tuple[bytes, bytes] | None = None
        self.reply_eaten = threading.Event()

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        # First nobody new, then an end to those there are. The listener outlives the thread that looks at it.
        self._threads[0].join()
        self._listener.close()
        self._cut_all()
        for thread in self._threads[1:]:
            thread.join()

    def cut_once(self, cut: Cut, *, at: bytes, then_away: bool = False) -> None:
        """Cuts the connection on which the next request with `at` in it comes; then_away: and takes no new one."""
        with self._lock:
            self._planned = (cut, at)
            self._then_away = then_away
            self.cut_happened.clear()

    def go_away(self) -> None:
        """Cuts every connection and takes no new one."""
        self._away = True
        self._cut_all()

    def come_back(self) -> None:
        """Takes connections again."""
        self._away = False

    def hold(self, way: Way) -> None:
        """Silence one way, as of a network that has split: bytes wait until let_through, then all arrive in order.

        The connections stay open, new ones too, and an end of connection waits behind the bytes.
        """
        self._fates[way] = Fate.HOLD

    def swallow(self, way: Way) -> None:
        """A black hole one way: what comes until let_through never arrives; the connections stay open.

        The end of a connection is not lost for ever: it is told after let_through.
        """
        self._fates[way] = Fate.SWALLOW

    def let_through(self, way: Way) -> None:
        """Ends hold and swallow on this way."""
        self._fates[way] = Fate.PASS

    def delay(self, way: Way, *, delay_s: float) -> None:
        """Whatever comes this way from now on arrives so much later, in order; 0 ends that."""
        self._delays_s[way] = delay_s

    def eat_reply_once(self, *, at: bytes) -> None:
        """Forwards the next request with `at` in it, and lets nothing reach that connection's client from then on.

        The connection stays open and its later requests get through. (Without the one reply all later ones would
        answer the wrong requests, which TCP does not do.) reply_eaten is set once the server has answered.
        """
        with self._lock:
            self._eat_at = at
            self.reply_eaten.clear()

    def replace_reply_once(self, reply: bytes, *, at: bytes) -> None:
        """The next request with `at` in it is answered so, whatever the server says once it has done it."""
        with self._lock:
            self._replaced = (at, reply)

    def point_at(self, port: int) -> None:
        """New connections lead to the server on this port of the same host; those there are go on."""
        self._server_address = (self._server_address[0], port)

    def _accept(self) -> None:
        while not self._closed:
            # A timeout, since nothing wakes a thread that waits on a listener.
            if not select.select([self._listener], [], [], 0.05)[0] or self._closed:
                continue
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._away:
                _close(client)
                continue
            try:
                server = socket.create_connection(self._server_address)
            except OSError:
                _close(client)
                continue
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._connections |= {client, server}
            self._start(partial(self._pump, client, server))

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        """One connection's life; one thread for both ways, so that a cut has a place in their order."""
        requests, replies = _Stream(Way.REQUESTS, client, server), _Stream(Way.REPLIES, server, client)
        try:
            while True:
                sources = [stream.source for stream in (requests, replies) if not stream.ended]
                ready = select.select(sources, [], [], self._pause_s(requests, replies))[0]
                if server in ready:
                    self._take(replies, server.recv(CHUNK_BYTES))
                if client in ready:
                    request = client.recv(CHUNK_BYTES)
                    cut = self._due(request)
                    if cut is not Cut.BEFORE_FORWARDING:
                        self._take(requests, request)
                    if cut is Cut.AFTER_ANSWERED:
                        requests.drain()
                        server.recv(CHUNK_BYTES)
                    if cut is not None:
                        return
                    if (reply := self._replacement(request)) is not None:
                        requests.drain()
                        server.recv(CHUNK_BYTES)
                        client.sendall(reply)
                    replies.eaten = replies.eaten or self._to_eat(request)
                for stream in (requests, replies):
                    if self._fates[stream.way] is Fate.PASS and not stream.forward_due():
                        return
        except (OSError, ValueError):  # ValueError: closed by another thread, so its number is gone
            return
        finally:
            with self._lock:
                self._connections -= {client, server}
            _close(client)
            _close(server)

    def _take(self, stream: _Stream, received: bytes) -> None:
        if stream.eaten and received:
            self.reply_eaten.set()
        elif not received or self._fates[stream.way] is not Fate.SWALLOW:
            stream.add(received, due_at_s=time.monotonic() + self._delays_s[stream.way])

    def _pause_s(self, *streams: _Stream) -> float | None:
        """Until something that is kept may be sent; None when nothing is kept."""
        pauses_s = [
            stream.due_in_s() if self._fates[stream.way] is Fate.PASS else LOOK_AGAIN_S
            for stream in streams
            if stream.kept
        ]
        return min(pauses_s, default=None)

    def _to_eat(self, request: bytes) -> bool:
        with self._lock:
            if self._eat_at is None or self._eat_at not in request:
                return False
            self._eat_at = None
            return True

    def _replacement(self, request: bytes) -> bytes | None:
        with self._lock:
            if self._replaced is None or self._replaced[0] not in request:
                return None
            reply, self._replaced = self._replaced[1], None
            return reply

    def _due(self, request: bytes) -> Cut | None:
        with self._lock:
            if self._planned is None or self._planned[1] not in request:
                return None
            cut, self._planned = self._planned[0], None
            self._away = self._then_away
        self.cut_happened.set()
        return cut

    def _cut_all(self) -> None:
        with self._lock:
            connections = list(self._connections)
        for each in connections:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()


class _Stream:
    """The bytes of one connection that go one way, and when each may arrive; b"" is the connection's end."""

    def __init__(self, way: Way, source: socket.socket, sink: socket.socket) -> None:
        self.way = way
        self.source = source
        self.kept: deque[tuple[float, bytes]] = deque()
        self.ended = False
        self.eaten = False
        self._sink = sink

    def add(self, received: bytes, *, due_at_s: float) -> None:
        """Keeps them until they are due, and behind all that came before."""
        self.kept.append((max(due_at_s, self.kept[-1][0] if self.kept else 0.0), received))
        self.ended = not received

    def due_in_s(self) -> float:
        """How long until the first of the kept ones is due."""
        return max(0.0, self.kept[0][0] - time.monotonic())

    def forward_due(self) -> bool:
        """Sends what is due; False when the connection's end is."""
        while self.kept and self.due_in_s() <= 0:
            _, received = self.kept.popleft()
            if not received:
                return False
            self._sink.sendall(received)
        return True

    def drain(self) -> None:
        """Sends everything, due or not."""
        for _, received in self.kept:
            self._sink.sendall(received)
        self.kept.clear()


def postgres_proxy(database_url: str) -> tuple[Proxy, str]:
    """A proxy before the Postgres of this URL, and the URL that leads through it, in plain text."""
    url = sa.make_url(database_url)
    proxy = Proxy(url.host or "127.0.0.1", url.port or 5432)
    through = url.set(host="127.0.0.1", port=proxy.port).update_query_dict(
        {"sslmode": "disable", "gssencmode": "disable"}
    )
    return proxy, through.render_as_string(hide_password=False)


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
