"""The Redis protocol in its plainest form: one command, one reply, nothing retried, nothing translated."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from typing import Any, Self

import hiredis

ANSWER_WAIT_S = 5.0


class ErrorReply(Exception):
    """The server answered with an error; the message is its words."""


class Wire:
    """One connection. Raises OSError when the server is away or does not answer in time."""

    def __init__(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        credentials: Sequence[str] = (),
        tls: ssl.SSLContext | None = None,
        answer_wait_s: float = ANSWER_WAIT_S,
    ) -> None:
        plain = socket.create_connection((host, port), timeout=answer_wait_s)
        try:
            self._socket = plain if tls is None else tls.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise
        self._answer_wait_s = answer_wait_s
        self._reader = hiredis.Reader(encoding="utf-8", errors="replace")
        try:
            if credentials:
                self.ask("AUTH", *credentials)
        except BaseException:
            self.close()
            raise

    def ask(self, *words: str | int | bytes) -> Any:
        """The reply, its strings as str. Raises ErrorReply."""
        self.say(*words)
        return self.hear()

    def say(self, *words: str | int | bytes) -> None:
        """Sends a command whose reply is left for hear()."""
        packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub says a tuple of one
        self._socket.sendall(packed)

    def hear(self, *, answer_wait_s: float | None = None) -> Any:
        """The next reply or message, waiting answer_wait_s, else as long as always. Raises ErrorReply, OSError."""
        self._socket.settimeout(self._answer_wait_s if answer_wait_s is None else answer_wait_s)
        while (reply := self._reader.gets()) is False:
            received = self._socket.recv(65536)
            if not received:
                raise ConnectionResetError("the server closed the connection")
            self._reader.feed(received)
        if isinstance(reply, hiredis.ReplyError):
            raise ErrorReply(str(reply))
        return reply

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
