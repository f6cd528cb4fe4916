"""A TCP proxy between the product and a real server, which cuts a connection at the worst moment."""

from __future__ import annotations

import contextlib
import enum
import select
import socket
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

import sqlalchemy as sa

CHUNK_BYTES = 65536


class Cut(enum.Enum):
    """When a connection is cut, seen from a request that holds the trigger."""

    BEFORE_FORWARDING = "before"  # the server never hears of the request
    AFTER_ANSWERED = "after"  # the server has done it and answered, and the answer never arrives


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
        try:
            while True:
                ready = select.select([client, server], [], [])[0]
                if server in ready:
                    answer = server.recv(CHUNK_BYTES)
                    if not answer:
                        return
                    client.sendall(answer)
                if client in ready:
                    request = client.recv(CHUNK_BYTES)
                    if not request:
                        return
                    cut = self._due(request)
                    if cut is not Cut.BEFORE_FORWARDING:
                        server.sendall(request)
                    if cut is Cut.AFTER_ANSWERED:
                        server.recv(CHUNK_BYTES)
                    if cut is not None:
                        return
        except (OSError, ValueError):  # ValueError: closed by another thread, so its number is gone
            return
        finally:
            with self._lock:
                self._connections -= {client, server}
            _close(client)
            _close(server)

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
