"""One connection that comes back by itself, and through which many callers talk.

Coalescing is what makes this fast (measured: ten times a pool of request-reply connections).
A command on the wire is never cancelled: whoever stops waiting for it only stops listening to its reply.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import hiredis

from locks.address import Address
from locks.clock import Clock
from locks.dialing import Names, first_reached, is_ip
from locks.errors import LockStoreDown
from locks.wire import Argument, Closing, OnMessage, Receiver, Wire, packed

FIRST_BACKOFF_S = 0.02
LONGEST_BACKOFF_S = 0.25  # so that whoever stood in line is back within QueueLimits.grace_ms
# How old a name's addresses may be while a server that it had leads on: two servers may have one lock for so long.
LOOK_UP_EVERY_S = 5.0

Greeting = Sequence[tuple[Argument, ...]]


class Link:
    """A connection that comes back by itself; between two connections every call fails at once with LockStoreDown.

    `greeting`: what is said first on each connection; `on_greeted` gets the replies, and may raise LockStoreDown.
    `locate`: finds the server anew before each connection, where it may have moved. While there is a connection, a name
    is looked up again every look_up_every_s, and `has_moved` is asked, where there is one: a connection to a server
    that is no longer the right one is dropped. What cannot be found out drops nothing.
    """

    def __init__(
        self,
        address: Address,
        *,
        command_timeout_s: float,
        clock: Clock,
        greeting: Callable[[], Greeting] = lambda: (),
        on_greeted: Callable[[list[Any]], None] | None = None,
        on_message: OnMessage | None = None,
        on_up: Callable[[], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
        locate: Callable[[], Awaitable[Address]] | None = None,
        has_moved: Callable[[Address], Awaitable[bool]] | None = None,
        names: Names | None = None,
        look_up_every_s: float = LOOK_UP_EVERY_S,
    ) -> None:
        self.address = address
        self._given = address
        self._command_timeout_s = command_timeout_s
        self._clock = clock
        self._greeting = greeting
        self._on_greeted = on_greeted
        self._on_message = on_message
        self._on_up = on_up
        self._on_lost = on_lost
        self._locate = locate
        self._has_moved = has_moved
        self._names = names or Names()
        self._look_up_every_s = look_up_every_s
        self._by_name = False  # whether what we are connected to was found by looking a name up
        self._wire: Wire | None = None
        self.is_up = False  # whether commands can be sent now
        self._task: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self.last_error = "not connected yet"
        self._down_since_s = 0.0

    def open(self) -> None:
        """Begins to connect, and keeps at it until close()."""
        self._down_since_s = asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._keep_connected(), name="lock-link")

    def end(self) -> Closing:
        """Sends what is waiting to be sent, and hears nothing more; whoever still waits gets LockStoreDown.

        What is returned waits until it is closed.
        """
        self._on_lost = None  # this end is no loss
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        wire_closed = self._wire.end("closed") if self._wire is not None else None

        async def closed() -> None:
            if task is not None:
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            if wire_closed is not None:
                await wire_closed()

        return closed

    async def close(self) -> None:
        """The same, and waits until it is closed."""
        await self.end()()

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
        loop = asyncio.get_running_loop()
        backoff_s = FIRST_BACKOFF_S
        while True:
            begun_at_s = loop.time()
            try:
                await self._use(await self._connect())
                # Else a server that takes every connection and is not the right one is asked without a pause.
                if loop.time() - begun_at_s > LONGEST_BACKOFF_S:
                    backoff_s = FIRST_BACKOFF_S
                    continue
            except LockStoreDown as error:
                self.last_error = str(error)
            await asyncio.sleep(backoff_s * self._clock.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, LONGEST_BACKOFF_S)

    async def _use(self, wire: Wire) -> None:
        """Until it ends."""
        self._wire = wire
        self.is_up = True
        self._up.set()
        if self._on_up is not None:
            self._on_up()
        looking = asyncio.create_task(self._keep_looking(wire), name="lock-look-again")
        try:
            await asyncio.shield(wire.ended)  # close() cancels this task, and must not cancel the wire's own end
        finally:
            looking.cancel()

    async def _keep_looking(self, wire: Wire) -> None:
        if self._has_moved is None and not self._by_name:
            return
        while True:
            await asyncio.sleep(self._look_up_every_s)
            with contextlib.suppress(LockStoreDown):
                if await self._leads_elsewhere():
                    wire.abort(f"{self.address.host} leads to another server now")

    async def _leads_elsewhere(self) -> bool:
        here = self.address
        if self._has_moved is not None and await self._has_moved(here):
            return True
        return self._by_name and here.ip not in await self._names.addresses_of(here.host)

    def _gone(self, wire: Wire, reason: str) -> None:
        if self._wire is not wire:
            return
        self.last_error = reason
        self._wire = None
        self.is_up = False
        self._up.clear()
        self._down_since_s = asyncio.get_running_loop().time()
        if self._on_lost is not None:
            self._on_lost(reason)

    async def _connect(self) -> Wire:
        """A connection that has been greeted; each of a name's addresses has its own time for it."""
        address = self.address = await self._locate() if self._locate is not None else self._given
        self._by_name = address.ip is None and not is_ip(address.host)
        credentials, tls = await _as_they_are_now(address)
        ips = (address.ip,) if address.ip else await self._names.addresses_of(address.host)
        within_s = max(self._command_timeout_s * 2, 1.0)
        won: list[Wire] = []

        async def attempt(ip: str) -> None:
            wire = await self._dialed(address, ip, tls)
            try:
                replies = await self._greeted(wire, address, credentials)
                if won:
                    raise LockStoreDown("another address was faster")
                if self._on_greeted is not None:
                    self._on_greeted(replies)
            except BaseException:
                wire.abort("greeting failed")
                raise
            self.address = replace(address, ip=ip)
            won.append(wire)

        try:
            await first_reached(ips, lambda ip: _in_time(attempt, replace(address, ip=ip), within_s))
            wire = won[0]
            if self._locate is not None and await self._has_moved_meanwhile():
                wire.abort("it has moved meanwhile")
        except BaseException:
            for wire in won:
                wire.abort("not wanted any more")
            raise
        if wire.ended.done():
            raise LockStoreDown("the connection was lost at once")
        return wire

    async def _has_moved_meanwhile(self) -> bool:
        """A server that stood still answers at last, and perhaps another is the right one since it was located."""
        try:
            return self._has_moved is not None and await self._has_moved(self.address)
        except LockStoreDown:
            return False  # what cannot be found out drops nothing

    async def _dialed(self, address: Address, ip: str, tls: ssl.SSLContext | None) -> Wire:
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_connection(
            lambda: Wire(loop, self._command_timeout_s, self._on_message, self._gone),
            ip,
            address.port,
            ssl=tls,
            server_hostname=address.host if tls else None,
        )
        return wire

    async def _greeted(self, wire: Wire, address: Address, credentials: tuple[str, ...]) -> list[Any]:
        """The replies to our own greeting, once the server knows who we are."""
        first: list[tuple[Argument, ...]] = []
        if credentials:
            first.append(("AUTH", *credentials))
        if address.database:
            first.append(("SELECT", address.database))
        # A server closes the connection of a stranger who sends as much as our scripts are, so it is asked first.
        await self._say(wire, address, first or [("PING",)])
        rest = self._greeting() or [("PING",)]
        if self._on_greeted is None:
            return await self._say(wire, address, rest)
        return await asyncio.gather(*[wire.ask(packed(*command)) for command in rest])

    @staticmethod
    async def _say(wire: Wire, address: Address, commands: Greeting) -> list[Any]:
        """The replies, none of which is an error. Raises LockStoreDown."""
        replies = await asyncio.gather(*[wire.ask(packed(*command)) for command in commands])
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                raise LockStoreDown(f"Redis at {address.host}:{address.port} refuses: {reply}")
        return replies


async def ask_once(address: Address, *command: Argument, command_timeout_s: float, clock: Clock, names: Names) -> Any:
    """One command's reply, which may be an error, on a connection of its own. Raises LockStoreDown."""
    replies: list[Any] = []
    link = Link(
        address,
        command_timeout_s=command_timeout_s,
        clock=clock,
        greeting=lambda: [command],
        on_greeted=replies.extend,
        names=names,
    )
    wire = await link._connect()
    wire.abort("asked")
    return replies[0]


async def _in_time(attempt: Callable[[str], Awaitable[None]], address: Address, within_s: float) -> None:
    """The attempt, within a deadline of its own. Raises LockStoreDown, whatever the reason."""
    try:
        async with asyncio.timeout(within_s):
            assert address.ip is not None
            await attempt(address.ip)
    except TimeoutError as error:
        raise LockStoreDown(f"no answer from Redis at {address.where}") from error
    except (OSError, ValueError) as error:  # ValueError: a name that TLS cannot check
        raise LockStoreDown(str(error) or type(error).__name__) from error


async def _as_they_are_now(address: Address) -> tuple[tuple[str, ...], ssl.SSLContext | None]:
    """Credentials and TLS; read in a thread, since a disk may be slow, and so may who gives a token."""
    if not address.must_be_read:
        return address.read()
    try:
        return await asyncio.to_thread(address.read)
    except ValueError as error:
        raise LockStoreDown(str(error)) from error
