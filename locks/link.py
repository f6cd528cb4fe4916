"""One connection that comes back by itself, and through which many callers talk.

Coalescing is what makes this fast (measured: ten times a pool of request-reply connections).
A command on the wire is never cancelled: whoever stops waiting for it only stops listening to its reply.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import hiredis

from locks.address import Address
from locks.errors import LockStoreDown
from locks.wire import Argument, OnMessage, Receiver, Wire, packed

FIRST_BACKOFF_S = 0.02
LONGEST_BACKOFF_S = 0.25  # so that whoever stood in line is back within QueueLimits.grace_ms

Greeting = Sequence[tuple[Argument, ...]]


class Link:
    """A connection that comes back by itself; between two connections every call fails at once with LockStoreDown.

    `greeting`: what is said first on each connection; `on_greeted` gets the replies, and may raise LockStoreDown.
    `locate`: finds the server anew before each connection, where it may have moved.
    """

    def __init__(
        self,
        address: Address,
        *,
        command_timeout_s: float,
        greeting: Callable[[], Greeting] = lambda: (),
        on_greeted: Callable[[list[Any]], None] | None = None,
        on_message: OnMessage | None = None,
        on_up: Callable[[], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
        locate: Callable[[], Awaitable[Address]] | None = None,
    ) -> None:
        self.address = address
        self._command_timeout_s = command_timeout_s
        self._greeting = greeting
        self._on_greeted = on_greeted
        self._on_message = on_message
        self._on_up = on_up
        self._on_lost = on_lost
        self._locate = locate
        self._wire: Wire | None = None
        self._task: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self.last_error = "not connected yet"
        self._down_since_s = 0.0

    def open(self) -> None:
        """Begins to connect, and keeps at it until close()."""
        self._down_since_s = asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._keep_connected(), name="lock-link")

    async def close(self) -> None:
        """Sends what is waiting to be sent, then closes; whoever still waits gets LockStoreDown."""
        self._on_lost = None  # this end is no loss
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._wire is not None:
            self._wire.flush()
            await self._wire.close_within(self._command_timeout_s, "closed")

    @property
    def is_up(self) -> bool:
        """Whether commands can be sent now."""
        return self._wire is not None

    @property
    def down_for_s(self) -> float:
        """Seconds since the connection was lost, or since the first one was begun; 0.0 while there is one."""
        if self._wire is not None:
            return 0.0
        return asyncio.get_running_loop().time() - self._down_since_s

    def call(self, *command: Argument) -> asyncio.Future[Any]:
        """Sends one command with this tick's others. The future gives the reply, or raises LockStoreDown.

        An error reply is a value here (hiredis.ReplyError), not an exception. Raises LockStoreDown at once while down.
        """
        return self.ask(packed(*command))

    def ask(self, command: str) -> asyncio.Future[Any]:
        """The same for a command that is packed already."""
        if self._wire is None:
            raise LockStoreDown(self.last_error)
        return self._wire.ask(command)

    def send(self, command: str, receiver: Receiver) -> None:
        """The same for a receiver of one's own, which is told at once when its reply is there."""
        if self._wire is None:
            raise LockStoreDown(self.last_error)
        self._wire.send(command, receiver)

    def flush(self) -> None:
        """Writes what has gathered now, and not at the end of the tick."""
        if self._wire is not None:
            self._wire.flush()

    def drop(self, reason: str) -> None:
        """Gives this connection up and makes another: the server at its end is not, or is no longer, the right one."""
        if self._wire is not None:
            self._wire.abort(reason)

    async def up_within(self, wait_s: float) -> bool:
        """Waits for a connection lost a moment ago; says no at once when it has been gone for longer than `wait_s`."""
        if self.is_up:
            return True
        left_s = wait_s - self.down_for_s
        if left_s <= 0:
            return False
        try:
            await asyncio.wait_for(self._up.wait(), left_s)
        except TimeoutError:
            return False
        return True

    async def _keep_connected(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                wire = await self._connect()
            except (OSError, LockStoreDown, TimeoutError) as error:
                self.last_error = _reason(error, self.address)
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
                backoff_s = min(backoff_s * 2, LONGEST_BACKOFF_S)
                continue
            backoff_s = FIRST_BACKOFF_S
            self._wire = wire
            self._up.set()
            if self._on_up is not None:
                self._on_up()
            await asyncio.shield(wire.ended)  # close() cancels this task, and must not cancel the wire's own end

    def _gone(self, wire: Wire, reason: str) -> None:
        if self._wire is not wire:
            return
        self.last_error = reason
        self._wire = None
        self._up.clear()
        self._down_since_s = asyncio.get_running_loop().time()
        if self._on_lost is not None:
            self._on_lost(reason)

    async def _connect(self) -> Wire:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(max(self._command_timeout_s * 2, 1.0)):
            if self._locate is not None:
                self.address = await self._locate()
            address = self.address
            _, wire = await loop.create_connection(
                lambda: Wire(loop, self._command_timeout_s, self._on_message, self._gone),
                address.host,
                address.port,
                ssl=address.tls,
            )
            try:
                await self._greet(wire)
            except BaseException:
                wire.abort("greeting failed")
                raise
            if wire.ended.done():
                raise LockStoreDown("the connection was lost at once")
        return wire

    async def _greet(self, wire: Wire) -> None:
        first: list[tuple[Argument, ...]] = []
        if self.address.credentials:
            first.append(("AUTH", *self.address.credentials))
        if self.address.database:
            first.append(("SELECT", self.address.database))
        rest = self._greeting() or [("PING",)]
        replies = await asyncio.gather(*[wire.ask(packed(*command)) for command in (*first, *rest)])
        for reply in replies[: len(first)] if self._on_greeted else replies:
            if isinstance(reply, hiredis.ReplyError):
                raise LockStoreDown(f"Redis at {self.address.host}:{self.address.port} refuses: {reply}")
        if self._on_greeted is not None:
            self._on_greeted(replies[len(first) :])


async def ask_once(address: Address, *command: Argument, command_timeout_s: float) -> Any:
    """One command's reply, which may be an error, on a connection of its own. Raises LockStoreDown."""
    replies: list[Any] = []
    link = Link(address, command_timeout_s=command_timeout_s, greeting=lambda: [command], on_greeted=replies.extend)
    try:
        async with asyncio.timeout(command_timeout_s):
            wire = await link._connect()
    except (OSError, TimeoutError) as error:
        raise LockStoreDown(_reason(error, address)) from error
    wire.abort("asked")
    return replies[0]


def _reason(error: BaseException, address: Address) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer from Redis at {address.host}:{address.port}"
    return str(error) or type(error).__name__
