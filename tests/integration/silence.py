"""Addresses that take a connection, or not even that, and never say a word."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

Silence = Literal["accepts", "full"]

ENOUGH_TO_FILL = 8


@contextmanager
def silent_port(how: Silence = "accepts", *, host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """`accepts`: connections are made and nothing is answered; `full`: not even the connection is made."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server((host, port), backlog=0 if how == "full" else 100))
        address = listening.getsockname()
        if how == "full":
            for _ in range(ENOUGH_TO_FILL):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(address)
        yield address[1]
