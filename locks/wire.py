"""One TCP connection: the commands of one loop tick leave in one write, and replies come back in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import hiredis

from locks.errors import LockStoreDown

Argument = str | bytes | int
OnMessage = Callable[[bytes, Any], None]
Closing = Callable[[], Coroutine[Any, Any, None]]
WATCHES_PER_TIMEOUT = 4
IDLE_WATCHES_PER_PING = 8
READ_AT_ONCE_BYTES = 65_536


class Receiver(Protocol):
    """Who gets a reply: a Future, or anything that is told as one is."""

    def done(self) -> bool: ...

    def set_result(self, reply: Any, /) -> None: ...

    def set_exception(self, error: LockStoreDown, /) -> None: ...


def packed(*command: Argument) -> str:
    """A command as Redis' protocol wants it."""
    parts = [f"*{len(command)}\r\n"]
    for argument in command:
        text = argument.decode() if isinstance(argument, bytes) else str(argument)
        parts.append(f"${len(text.encode())}\r\n{text}\r\n")
    return "".join(parts)


class Wire(asyncio.BufferedProtocol):
    """One connection's life. `on_end` hears of its end before anybody whose command failed with it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        command_timeout_s: float,
        on_message: OnMessage | None,
        on_end: Callable[[Wire, str], None],
    ) -> None:
        self.ended: asyncio.Future[None] = loop.create_future()
        self._gone: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._on_end = on_end
        self._watch_s = command_timeout_s / WATCHES_PER_TIMEOUT
        self._on_message = on_message
        self._reader = hiredis.Reader()
        self._room = memoryview(bytearray(READ_AT_ONCE_BYTES))
        self._outgoing: list[str] = []
        self._pending: deque[Receiver] = deque()
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._answered = 0
        self._answered_before = 0
        self._silent_watches = 0
        self._ended_by = "not connected yet"

    def ask(self, command: str) -> asyncio.Future[Any]:
        """Sends a packed command with this tick's others; the future gives its reply, or raises LockStoreDown."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self.send(command, future)
        return future

    def send(self, command: str, receiver: Receiver) -> None:
        """The same for a receiver of one's own; those of one tick arrive next to each other, in this order."""
        if self._transport is None:
            receiver.set_exception(LockStoreDown(self._ended_by))
            return
        if not self._outgoing:
            self._loop.call_soon(self.flush)
        if not self._pending:
            self._silent_watches = 0  # silence counts from the first unanswered command
        self._outgoing.append(command)
        self._pending.append(receiver)

    def flush(self) -> None:
        """Writes what has gathered."""
        if self._outgoing and self._transport is not None:
            self._transport.write("".join(self._outgoing).encode())
        self._outgoing.clear()

    def end(self, reason: str) -> Closing:
        """Sends what has gathered, and hears no more; whoever still waits for a reply gets LockStoreDown.

        What is returned waits until all is sent and the socket is closed, which takes TLS a round trip; else it aborts.
        """
        self.flush()
        transport = self._transport

        async def closed() -> None:
            if transport is None:
                return
            await asyncio.wait([self._gone], timeout=self._watch_s * WATCHES_PER_TIMEOUT)
            if not self._gone.done():
                transport.abort()

        if transport is not None:
            transport.close()
        self._end(reason)
        return closed

    def abort(self, reason: str) -> None:
        """Ends it without sending what has gathered."""
        if self._transport is not None:
            self._transport.abort()
        self._end(reason)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        # What we write has gathered already: uvloop should not keep it until its own tick ends.
        self._transport.set_write_buffer_limits(high=0)  # type: ignore[union-attr]
        self._watch = self._loop.call_later(self._watch_s, self._look)

    def get_buffer(self, sizehint: int) -> memoryview:
        # Always the same: asyncio would ask the system for memory of 256 KiB at each read, and give it back. A view, as
        # asyncio's TLS reads one record behind another into a slice of it.
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        reader, pending, on_message = self._reader, self._pending, self._on_message
        reader.feed(self._room, 0, nbytes)  # type: ignore[arg-type]  # any buffer will do
        try:
            while (reply := reader.gets()) is not False:
                if on_message is not None and _is_message(reply):
                    on_message(reply[1], reply[2])
                    continue
                if not pending:  # as where it has too many clients: it says so before it is asked anything
                    self.abort(f"Redis says unasked: {reply}")
                    return
                self._answered += 1
                receiver = pending.popleft()
                if not receiver.done():
                    receiver.set_result(reply)
        except hiredis.ProtocolError as error:
            self.abort(f"not a Redis server: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self._gone.set_result(None)
        self._end(f"connection lost: {error}" if error else "connection closed by Redis")

    def _look(self) -> None:
        # Counts looks, not seconds: a process that was itself frozen must not blame Redis for the time it missed.
        self._watch = self._loop.call_later(self._watch_s, self._look)
        if self._answered != self._answered_before:
            self._answered_before = self._answered
            self._silent_watches = 0
            return
        self._silent_watches += 1
        if self._pending:
            if self._silent_watches > WATCHES_PER_TIMEOUT:
                self.abort(f"no answer within {self._watch_s * WATCHES_PER_TIMEOUT:g} s")
        elif self._silent_watches >= IDLE_WATCHES_PER_PING:
            self._silent_watches = 0
            self.ask(packed("PING")).add_done_callback(retrieve)

    def _end(self, reason: str) -> None:
        if self.ended.done():
            return
        self.ended.set_result(None)
        self._ended_by = reason
        self._transport = None
        self._on_message = None  # TLS may read on while it is being closed
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._on_end(self, reason)
        pending = list(self._pending)
        self._pending.clear()
        self._outgoing.clear()
        for receiver in pending:
            if not receiver.done():
                receiver.set_exception(LockStoreDown(reason))
                if isinstance(receiver, asyncio.Future):
                    receiver.exception()  # a caller that has stopped waiting must not leave a warning behind


def retrieve(future: asyncio.Future[Any]) -> None:
    """A done-callback for what nobody waits for."""
    if not future.cancelled():
        future.exception()


def _is_message(reply: Any) -> bool:
    return isinstance(reply, list) and len(reply) == 3 and reply[0] == b"message"
