"""One server, two connections: commands on the one, messages and invalidations on the other."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import hiredis

from locks.address import Address
from locks.clock import Clock
from locks.dialing import Names
from locks.errors import LockStoreDown
from locks.link import Link
from locks.wire import Argument, Closing, Receiver, packed, retrieve

INVALIDATED = b"__redis__:invalidate"
USE_CLUSTER_URL = "this Redis is a node of a Cluster: its URL starts with redis+cluster://"
# One script call for so many at the most: it keeps everybody else waiting for about half a millisecond.
MOST_AT_ONCE = 64
# So many are sent before the tick ends: the server works on them while we gather the next.
EAGER = 16
_TRACK_NEXT = packed("CLIENT", "CACHING", "YES")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEvents:
    """Whom a node tells what."""

    on_message: Callable[[bytes], None]  # a message to this process
    on_changed: Callable[[bytes | None], None]  # the lock key that was watched has changed; None: all of them
    on_up: Callable[[Node], None]
    on_messages_up: Callable[[Node], None]
    on_lost: Callable[[Node, str], None]


class Gathering:
    """What many callers want within one loop tick, and the command that asks for all of it at once."""

    __slots__ = ("command", "items", "receivers")

    def __init__(self, command: Callable[[Sequence[Any]], str]) -> None:
        self.command = command
        self.items: list[Any] = []
        self.receivers: list[Receiver] = []


class _Shared:
    """Gives each of a gathering's receivers its part of the answer; an error is everybody's."""

    __slots__ = ("_receivers",)

    def __init__(self, receivers: Sequence[Receiver]) -> None:
        self._receivers = receivers

    def done(self) -> bool:
        return False

    def set_result(self, reply: Any) -> None:
        replies = reply if reply.__class__ is list else itertools.repeat(reply)
        for receiver, part in zip(self._receivers, replies, strict=False):
            if not receiver.done():
                receiver.set_result(part)

    def set_exception(self, error: LockStoreDown) -> None:
        for receiver in self._receivers:
            if not receiver.done():
                receiver.set_exception(error)
                if isinstance(receiver, asyncio.Future):
                    receiver.exception()  # a caller that has stopped waiting must not leave a warning behind


class _Told:
    """Tells of a reply before the replies behind it are told of, as a Future does not."""

    __slots__ = ("_tell",)

    def __init__(self, tell: Callable[[Any], None]) -> None:
        self._tell = tell

    def done(self) -> bool:
        return False

    def set_result(self, reply: Any) -> None:
        self._tell(reply)

    def set_exception(self, error: LockStoreDown) -> None:
        pass


class Node:
    """Commands to one server, and what it has to say to this process. `channel` is this process' name there."""

    def __init__(
        self,
        address: Address,
        *,
        channel: str,
        command_timeout_s: float,
        clock: Clock,
        greeting: tuple[tuple[Argument, ...], ...],
        acquire_free: Callable[[Sequence[Any]], str],
        release_alone: Callable[[Sequence[Any]], str],
        events: NodeEvents,
        shares_commands: bool = True,
        locate: Callable[[], Awaitable[Address]] | None = None,
        has_moved: Callable[[Address], Awaitable[bool]] | None = None,
        names: Names,
        look_up_every_s: float,
        must_be_master: bool = False,
        must_not_be_clustered: bool = False,
    ) -> None:
        self.channel = channel
        self.acquires = Gathering(acquire_free)
        self.releases = Gathering(release_alone)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gathered = False
        self._most_at_once = MOST_AT_ONCE if shares_commands else 1
        self._events = events
        self._must_be_master, self._must_not_be_clustered = must_be_master, must_not_be_clustered
        who_are_you = ("ROLE",) if must_be_master else ("CLUSTER", "MYID") if must_not_be_clustered else ("PING",)
        self._greeting = (*greeting, who_are_you)
        self._listener_id: int | None = None
        self._tracks = False
        self.commands = Link(
            address,
            command_timeout_s=command_timeout_s,
            clock=clock,
            greeting=lambda: self._greeting,
            on_greeted=self._commands_greeted,
            on_up=self._commands_up,
            on_lost=lambda reason: events.on_lost(self, reason),
            locate=locate,
            has_moved=has_moved,
            names=names,
            look_up_every_s=look_up_every_s,
        )
        # The second connection goes where the first one is: a message is counted by the server that sends it.
        self.messages = Link(
            address,
            command_timeout_s=command_timeout_s,
            clock=clock,
            greeting=lambda: [("CLIENT", "ID"), ("SUBSCRIBE", channel), ("SUBSCRIBE", INVALIDATED)],
            on_greeted=self._messages_greeted,
            on_message=self._on_message,
            on_up=self._messages_up,
            on_lost=self._messages_lost,
            locate=self._where_commands_go,
            names=names,
            look_up_every_s=look_up_every_s,
        )

    def open(self) -> None:
        """Begins to connect."""
        self._loop = asyncio.get_running_loop()
        self.commands.open()
        self.messages.open()

    def end(self) -> Closing:
        """Ends both connections, as Link.end: neither may hear of a grant while the other is being closed."""
        self._send_gathered()
        endings = self.messages.end(), self.commands.end()

        async def closed() -> None:
            for ending in endings:
                await ending()

        return closed

    async def close(self) -> None:
        """The same, and waits until both are closed."""
        await self.end()()

    async def up_within(self, wait_s: float) -> bool:
        """Waits for both connections, or for those lost a moment ago; whether they are there."""
        return await self.commands.up_within(wait_s) and await self.messages.up_within(wait_s)

    def gather(self, gathering: Gathering, item: Any) -> asyncio.Future[Any]:
        """This item's part of the answer to all that is gathered in this tick. Raises LockStoreDown at once."""
        assert self._loop is not None
        future: asyncio.Future[Any] = self._loop.create_future()
        self.gather_for(future, gathering, item)
        return future

    def gather_for(self, receiver: Receiver, gathering: Gathering, item: Any) -> None:
        """The same for a receiver of one's own."""
        if not self.commands.is_up:
            raise LockStoreDown(self.commands.last_error)
        assert self._loop is not None
        gathering.items.append(item)
        gathering.receivers.append(receiver)
        if len(gathering.items) >= EAGER:
            self._send_gathered()
            self.commands.flush()
        elif not self._gathered:
            self._gathered = True
            self._loop.call_soon(self._send_gathered)

    def ask(self, command: str) -> asyncio.Future[Any]:
        """The reply to a packed command, behind everything that was gathered before. Raises LockStoreDown at once."""
        if self._gathered:
            self._send_gathered()
        return self.commands.ask(command)

    def send(self, command: str, receiver: Receiver) -> None:
        """The same for a receiver of one's own."""
        if self._gathered:
            self._send_gathered()
        self.commands.send(command, receiver)

    def watch(self, lock_key: str, receiver: Receiver) -> bool:
        """Reads the lock's holder, and hears of its next change by on_changed; False where the server can't tell."""
        if not self._tracks:
            return False
        try:
            self.ask(_TRACK_NEXT).add_done_callback(retrieve)
            self.send(packed("GET", lock_key), receiver)
        except LockStoreDown:
            return False
        return True

    def _send_gathered(self) -> None:
        self._gathered = False
        most = self._most_at_once
        for gathering in (self.releases, self.acquires):
            items, receivers = gathering.items, gathering.receivers
            if not items:
                continue
            gathering.items, gathering.receivers = [], []
            for at in range(0, len(items), most):
                shared = _Shared(receivers[at : at + most])
                try:
                    self.commands.send(gathering.command(items[at : at + most]), shared)
                except LockStoreDown as error:
                    shared.set_exception(error)

    async def _where_commands_go(self) -> Address:
        await self.commands.up_within(self.commands.down_for_s + 1.0)
        return self.commands.address

    def _commands_greeted(self, replies: list[Any]) -> None:
        *loaded, who = replies
        if self._must_not_be_clustered:
            if not isinstance(who, hiredis.ReplyError):
                raise LockStoreDown(f"{self.commands.address!r}: {USE_CLUSTER_URL}")
        else:
            loaded.append(who)
        for reply in loaded:
            if isinstance(reply, hiredis.ReplyError):
                raise LockStoreDown(f"Redis at {self.commands.address!r} refuses: {reply}")
        if self._must_be_master and who[0] != b"master":
            raise LockStoreDown(f"Redis at {self.commands.address!r} is not the master")

    def _commands_up(self) -> None:
        self._tracks = False
        if self.messages.is_up and self.messages.address != self.commands.address:
            self.messages.drop("the lock store has moved")
        else:
            self._begin_to_track()
        self._events.on_up(self)

    def _messages_greeted(self, replies: list[Any]) -> None:
        number, subscribed, _ = replies
        if isinstance(subscribed, hiredis.ReplyError):
            raise LockStoreDown(f"Redis at {self.messages.address!r} refuses: {subscribed}")
        self._listener_id = None if isinstance(number, hiredis.ReplyError) else number

    def _messages_up(self) -> None:
        self._tracks = False
        if self.commands.is_up and self.messages.address != self.commands.address:
            self.messages.drop("the lock store has moved")
            return
        self._begin_to_track()
        self._events.on_messages_up(self)

    def _messages_lost(self, reason: str) -> None:
        self._tracks = False
        self._listener_id = None

    def _begin_to_track(self) -> None:
        """Whichever of the two connections is there last: an invalidation goes to the other one by its number."""
        if self._listener_id is None or not self.commands.is_up:
            return
        command = packed("CLIENT", "TRACKING", "ON", "REDIRECT", self._listener_id, "OPTIN")
        self.commands.send(command, _Told(self._tracking_begins))

    def _tracking_begins(self, reply: Any) -> None:
        self._tracks = not isinstance(reply, hiredis.ReplyError)

    def _on_message(self, channel: bytes, payload: Any) -> None:
        if channel != INVALIDATED:
            self._events.on_message(payload)
        elif payload is None:
            self._events.on_changed(None)
        else:
            for key in payload:
                self._events.on_changed(key)
