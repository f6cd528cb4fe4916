"""An event loop that can die as a killed process does: its connections end without a farewell, and it makes no more."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class MortalLoop(asyncio.SelectorEventLoop):
    """To be used by its own thread. After its death it still runs, so that what is left in it can be cleared away."""

    is_dead = False

    def local_ports(self, peer_port: int) -> list[int]:
        """Our ends of the connections to that port of a server."""
        return [local for _, local, peer in self._connections() if peer == peer_port]

    def die(self) -> None:
        """Every connection is reset, as the kernel does it for a killed process with something still unread."""
        self.is_dead = True
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd, _, _ in list(self._connections()):
            with socket.socket(fileno=os.dup(fd)) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            os.dup2(nothing, fd)  # closes the connection, and keeps its number from being given to anybody else
        os.close(nothing)

    async def create_connection(self, *arguments: Any, **options: Any) -> Any:
        if self.is_dead:
            raise ConnectionRefusedError("this process is dead")
        return await super().create_connection(*arguments, **options)

    def run_in_executor(self, *arguments: Any) -> Any:  # type: ignore[override]
        if self.is_dead:
            raise asyncio.CancelledError
        return super().run_in_executor(*arguments)

    def _connections(self) -> Iterator[tuple[int, int, int]]:
        selector: Any = self._selector  # type: ignore[attr-defined]
        for fd in list(selector.get_map()):
            with socket.socket(fileno=os.dup(fd)) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6):
                    try:
                        yield fd, connection.getsockname()[1], connection.getpeername()[1]
                    except OSError:
                        continue  # it is closed already
