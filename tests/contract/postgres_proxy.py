"""A TCP proxy in front of Postgres, to be cut, silenced, or cut exactly while the COMMIT of a write is under way."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Literal

import sqlalchemy as sa

from tests.harness import Rows

CommitCut = Literal["before", "after"]
COMMIT = b"COMMIT\x00"
HAS_WRITTEN = "SELECT backend_xid IS NOT NULL FROM pg_stat_activity WHERE client_port = %s"


class PostgresProxy:
    """Forwards while it is there. `away`: refuses everybody; `silent`: takes everything and never answers."""

    def __init__(self, database_url: str) -> None:
        upstream = sa.make_url(database_url)
        assert upstream.host is not None
        assert upstream.port is not None
        self._upstream = (upstream.host, upstream.port)
        self._rows = Rows(database_url)
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=200)
        address = upstream.set(host="127.0.0.1", port=self._listening.getsockname()[1])
        self.url = address.render_as_string(hide_password=False)
        self.away = False
        self.cut_at_commit: CommitCut | None = None  # the next COMMIT of what has written, once
        self.away_after_cut = False
        self.cuts = 0
        self._flowing = threading.Event()
        self._flowing.set()
        self._deciding = threading.Lock()
        self._connections: set[_Connection] = set()
        self._accepting = threading.Thread(target=self._accept, name="proxy")
        self._accepting.start()

    def cut(self) -> None:
        """Gone: every connection is cut, and no new one is served."""
        self.away = True
        for connection in list(self._connections):
            connection.close()

    def come_back(self) -> None:
        """Serves again."""
        self.away = False
        self._flowing.set()

    def silence(self) -> None:
        """Nothing goes through any more, and nobody is told."""
        self._flowing.clear()

    def close(self) -> None:
        """Ends all of it."""
        self.cut()
        self._flowing.set()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._accepting.join(30)
        for connection in list(self._connections):
            connection.join()
        self._rows.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if self.away:
                client.close()
                continue
            connection = _Connection(self, client, socket.create_connection(self._upstream))
            self._connections.add(connection)
            connection.start()
            if self.away:  # cut() was called meanwhile, and has not seen this one
                connection.close()

    def forget(self, connection: _Connection) -> None:
        """For a connection that has ended."""
        self._connections.discard(connection)

    def wait_for_flow(self) -> None:
        """Returns while things flow."""
        self._flowing.wait()

    def cut_now(self, port: int) -> CommitCut | None:
        """How the COMMIT of the session from this port is to be cut, if it is. Postgres says whether it has written."""
        with self._deciding:
            if self.cut_at_commit is None or not self._rows.one(HAS_WRITTEN, port):
                return None
            how, self.cut_at_commit = self.cut_at_commit, None
            self.cuts += 1
            self.away = self.away_after_cut
            return how


class _Connection:
    """One client's connection, and ours behind it."""

    def __init__(self, proxy: PostgresProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._swallow_answer = False
        self._threads = [
            threading.Thread(target=self._to_server, name="proxy up"),
            threading.Thread(target=self._to_client, name="proxy down"),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(30)

    def close(self) -> None:
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _to_server(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._client.recv(65536):
                self._proxy.wait_for_flow()
                if not self._forward(data):
                    break
        self.close()
        self._threads[1].join()
        self._client.close()
        self._server.close()
        self._proxy.forget(self)

    def _forward(self, data: bytes) -> bool:
        if data.endswith(COMMIT):
            match self._proxy.cut_now(self._server.getsockname()[1]):
                case "before":
                    return False
                case "after":
                    self._swallow_answer = True
        self._server.sendall(data)
        return True

    def _to_client(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._server.recv(65536):
                if self._swallow_answer:
                    break
                self._proxy.wait_for_flow()
                self._client.sendall(data)
        self.close()
