"""Clients of Postgres that are none of the product's, and behave badly."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

import psycopg2

from tests.chaos.ground import STRANGER, PostgresServer
from tests.harness import PATIENCE_S

LOCK_WAIT_MS = 1000
CONNECT_WAIT_S = 2.0
GONE_POLL_S = 0.02
PROTOCOL_3 = 196608
ASKS_FOR_PASSWORD, TOO_MANY_CONNECTIONS = b"R", b"C53300"  # AuthenticationSASL; the code in an ErrorResponse
ANSWER_BYTES = 1024
PARAMETERS = f"user\0{STRANGER}\0database\0chargeonce\0\0".encode()


class Sitter:
    """A session that holds a lock until it dies: its connection ends without a goodbye, whatever it is doing."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._session: psycopg2.extensions.connection | None = None
        self._talking: threading.Thread | None = None

    def take(self, lock: str) -> None:
        """Blocks until it has what this statement locks. Raises psycopg2.Error."""
        options = f"-c lock_timeout={LOCK_WAIT_MS}"
        wait_s = round(CONNECT_WAIT_S)
        self._session = psycopg2.connect(
            self._server.url, connect_timeout=wait_s, application_name="stranger", options=options
        )
        with self._session.cursor() as cursor:
            cursor.execute(lock)

    def begin_long_statement(self) -> None:
        """Runs a statement, beside us, that does not end before it dies."""
        self._talking = threading.Thread(target=self._talk)
        self._talking.start()

    def die(self) -> None:
        """Its connection is gone, and Postgres has noticed: the lock is free. Blocks; harmless when it never lived."""
        if self._session is None:
            return
        pid = self._session.info.backend_pid
        with (
            contextlib.suppress(OSError, psycopg2.Error),
            socket.fromfd(self._session.fileno(), socket.AF_INET, socket.SOCK_STREAM) as connection,
        ):
            connection.shutdown(socket.SHUT_RDWR)
        if self._talking is not None:
            self._talking.join(PATIENCE_S)
        self._session.close()
        give_up_at_s = time.monotonic() + PATIENCE_S
        while pid in self._server.child_pids() and time.monotonic() < give_up_at_s:
            time.sleep(GONE_POLL_S)

    def _talk(self) -> None:
        assert self._session is not None
        with contextlib.suppress(psycopg2.Error), self._session.cursor() as cursor:
            cursor.execute(f"SELECT pg_sleep({PATIENCE_S})")


class Flood:
    """Sessions that do nothing but be there: each has its slot, and never says its password."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._taken: list[socket.socket] = []

    def take_all(self) -> int:
        """Takes what Postgres has to give; how many that were. Blocks. Raises OSError."""
        while (connection := self._session()) is not None:
            self._taken.append(connection)
        return len(self._taken)

    def leave(self) -> None:
        """Gives them back; harmless twice."""
        while self._taken:
            self._taken.pop().close()

    def _session(self) -> socket.socket | None:
        """One, in the fewest bytes; None when there is none left."""
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=CONNECT_WAIT_S)
        try:
            connection.sendall(struct.pack(">ii", 8 + len(PARAMETERS), PROTOCOL_3) + PARAMETERS)
            said = connection.recv(ANSWER_BYTES)
            if said.startswith(ASKS_FOR_PASSWORD):
                return connection
            if TOO_MANY_CONNECTIONS not in said:
                raise ConnectionRefusedError(f"not for want of sessions: {said!r}")
        except BaseException:
            connection.close()
            raise
        connection.close()
        return None
