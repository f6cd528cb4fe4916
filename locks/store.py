"""The scripts on the wire. Each is one command, idempotent for its own lease id, and so may be asked again."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from importlib import resources
from typing import Any

import hiredis

from locks.clock import Clock
from locks.errors import LockStoreDown, LockStoreRefused, WrongLoop
from locks.keys import (
    KEY_COUNT,
    packed_acquire_keys,
    packed_asked_key,
    packed_keys,
    packed_lock_keys,
    packed_queue_keys,
    packed_signal_keys,
    slot_of,
)
from locks.node import Node
from locks.servers import Servers
from locks.wire import packed, retrieve

_ASKING = packed("ASKING")
# Answers of a server that will do what is asked a moment later, or of one that another has replaced.
_LATER = ("TRYAGAIN", "CLUSTERDOWN", "LOADING", "BUSY", "MASTERDOWN", "NOREPLICAS")
_REPLACED = ("READONLY",)
# Redis 6.2 puts its own words around what a script was told.
_in_script = re.compile(r"ERR Error running script .*?-([A-Z]+ .*)", re.DOTALL).fullmatch
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.1


class ExtendOutcome(StrEnum):
    """What became of a lease that was to be extended; the values are the script's words."""

    EXTENDED = "extended"
    TAKEN = "taken"
    FORCED = "forced"
    DELETED = "deleted"


class ForceOutcome(StrEnum):
    """What became of a lock that an operator wanted to free; the values are the script's words."""

    FORCED = "forced"
    CHANGED = "changed"
    FREE = "free"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """Times of the queue in milliseconds, and its number of handoffs. The same for all who share the locks."""

    alive_ms: int = 900  # a process that shows no sign of life for so long stands in no line any more
    claim_ms: int = 700  # the first lease of a handoff to another process, until that one has confirmed it
    # For how long nobody may take a free lock but the head of the queue; nobody at all, where the server has lost its
    # data and others may be on their way back. Longer than a link pauses between two tries to connect.
    grace_ms: int = 300
    yield_ms: int = 20  # how long the queue lets a python-redis-lock program that was woken go first
    handoffs: int = 4  # at least so many in a row, then python-redis-lock's waiters get a turn
    most_handoffs: int = 16  # and at most, where such programs have just had as many
    run_turns: int = 16  # so many waiters of one process in turn at the most, where they came before all others
    slack_ms: int = 5  # who came within it came at the same time: what a run may take of those who wait elsewhere
    run_ms: int = 50  # for how long turns of a run may begin
    sync_ms: int = 2000  # for how long a lock that a python-redis-lock program wanted has no longer runs
    signal_ms: int = 1000  # how long python-redis-lock's signal stays
    keep_ms: int = 10_000  # how long the fence outlives its lease: see docs/locks.md on clocks that are set back


@functools.cache
def _text_of(part: str) -> str:
    return (resources.files("locks") / "scripts" / part).read_text("utf-8")


class _Script:
    """One Lua file behind the limits and the shared prelude, sent by its hash."""

    def __init__(self, limits: QueueLimits, *parts: str) -> None:
        constants = "".join(
            f"local {field.name.upper()} = {getattr(limits, field.name)}\n" for field in fields(QueueLimits)
        )
        self.source = constants + "\n".join(_text_of(part) for part in parts)
        sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        self.name = f"$7\r\nEVALSHA\r\n$40\r\n{sha}\r\n"

    def head(self, argument_count: int, key_count: int = KEY_COUNT) -> str:
        """A command's beginning: what comes before its keys and so many arguments."""
        return f"*{3 + key_count + argument_count}\r\n{self.name}$1\r\n{key_count}\r\n"


class Scripts:
    """The protocol, written once for all commands of a process, as text that is ready for the wire.

    A command's builder is on the hot path: one f-string is a third of the cost of packing a list of arguments.
    `keys` is locks.keys.packed_keys(name); a lease id has 32 characters.
    """

    def __init__(self, limits: QueueLimits, *, holder: str) -> None:
        self.limits = limits
        self._holder = holder
        self._acquire_free = _Script(limits, "acquire_free.lua")
        self._release_alone = _Script(limits, "release_alone.lua")
        self._acquire = _Script(limits, "prelude.lua", "acquire.lua")
        self._release = _Script(limits, "prelude.lua", "release.lua")
        self._extend = _Script(limits, "prelude.lua", "extend.lua")
        self._force = _Script(limits, "prelude.lua", "force.lua")
        self._inspect = _Script(limits, "prelude.lua", "inspect.lua")
        self._adopt = _Script(limits, "prelude.lua", "adopt.lua")
        self._turn = _Script(limits, "prelude.lua", "turn.lua")
        self._finish = _Script(limits, "prelude.lua", "finish.lua")
        self._publish = _Script(limits, "publish.lua")
        self._lent_extend = _Script(limits, "prelude.lua", "lent.lua", "lent_extend.lua")
        self._lent_ask = _Script(limits, "prelude.lua", "lent.lua", "lent_ask.lua")
        self._lent_release = _Script(limits, "prelude.lua", "lent.lua", "lent_release.lua")
        self._lent_look = _Script(limits, "prelude.lua", "lent.lua", "lent_look.lua")
        every = (
            self._turn,
            self._finish,
            self._acquire_free,
            self._release_alone,
            self._acquire,
            self._release,
            self._extend,
            self._force,
            self._inspect,
            self._adopt,
            self._publish,
            self._lent_extend,
            self._lent_ask,
            self._lent_release,
            self._lent_look,
        )
        self.greeting = tuple(("SCRIPT", "LOAD", script.source) for script in every)
        self._sources = {script.name: script.source for script in every}
        self._release_head = self._release.head(4)
        self._extend_head = self._extend.head(4)
        self._finish_head = self._finish.head(3)

    def load_for(self, command: str) -> str:
        """What loads the script of a command: its name follows the count of its arguments."""
        begin = command.index("$7\r\nEVALSHA")
        return packed("SCRIPT", "LOAD", self._sources[command[begin : command.index("\r\n", begin + 20) + 2]])

    def acquire_item(
        self, node: Node, name: str, lease_id: str, *, lease_ms: int, for_whom: str
    ) -> tuple[str, str, str]:
        """The keys and arguments of one lock for acquire_free."""
        ms, kept_ms = str(lease_ms), str(lease_ms + self.limits.keep_ms)
        tail = f"\t{ms}\t{lease_id}\t{node.channel}\t{self._holder}\t{for_whom}"
        return (
            *packed_acquire_keys(name),
            f"$32\r\n{lease_id}\r\n${len(ms)}\r\n{ms}\r\n${len(kept_ms)}\r\n{kept_ms}\r\n${len(tail)}\r\n{tail}\r\n",
        )

    def acquire_free(self, items: Sequence[tuple[str, str, str]], *, seen_fence: int) -> str:
        """Takes those of the locks that nobody holds and nobody waits for."""
        count, fence = len(items), str(seen_fence)
        key_count = str(3 * count)
        return (
            f"*{4 + 7 * count}\r\n{self._acquire_free.name}${len(key_count)}\r\n{key_count}\r\n"
            f"{''.join([keys for keys, _, _ in items])}{''.join([grant for _, grant, _ in items])}"
            f"${len(fence)}\r\n{fence}\r\n{''.join([arguments for _, _, arguments in items])}"
        )

    def release_alone(self, items: Sequence[tuple[str, str]]) -> str:
        """Frees those of the locks that are held under their lease ids and that nobody waits for: (name, lease id).

        Only for ids that were asked for once: see Lease.asked_once.
        """
        count, names = len(items), [name for name, _ in items]
        key_count, lease_ids = str(3 * count), "\r\n$32\r\n".join([lease_id for _, lease_id in items])
        return (
            f"*{3 + 4 * count}\r\n{self._release_alone.name}${len(key_count)}\r\n{key_count}\r\n"
            f"{packed_lock_keys(names)}{packed_signal_keys(names)}{packed_queue_keys(names)}"
            f"$32\r\n{lease_ids}\r\n"
        )

    def acquire_or_queue(
        self,
        node: Node,
        keys: str,
        lease_id: str,
        *,
        lease_ms: int,
        seen_fence: int,
        age_us: int,
        later: str,
        waiter_count: int,
        stood: bool,
        for_whom: str,
    ) -> str:
        """Takes the lock, or takes a place in its queue; repeated, a sign of life. stood: it has had a place before."""
        who = self._who(node, for_whom)
        wish = _arguments(lease_id, lease_ms, who, seen_fence, age_us, waiter_count, later, int(stood))
        return self._acquire.head(8) + keys + wish

    def acquire_now(
        self, node: Node, keys: str, lease_id: str, *, lease_ms: int, seen_fence: int, for_whom: str
    ) -> str:
        """Takes the lock if it is free now, or if those who wait for it do not come; never queues."""
        who = self._who(node, for_whom)
        return self._acquire.head(4) + keys + _arguments(lease_id, lease_ms, who, seen_fence)

    def release(self, node: Node, keys: str, lease_id: str, *, grant_fence: int, fencing_token: int) -> str:
        """Gives the lock that is held under this grant back."""
        return self._release_head + keys + _arguments(lease_id, grant_fence, fencing_token, node.channel)

    def give_back(self, node: Node, keys: str, lease_id: str) -> str:
        """Gives back whatever was granted under this lease id, or the place in line that waits under it."""
        return self.release(node, keys, lease_id, grant_fence=0, fencing_token=0)

    def finish(self, keys: str, lease_id: str, *, grant_fence: int, fencing_token: int) -> str:
        """Frees the lock, and tells everybody who waits that no turn is needed."""
        return self._finish_head + keys + _arguments(lease_id, grant_fence, fencing_token)

    def release_in_line(
        self,
        node: Node,
        keys: str,
        lease_id: str,
        *,
        grant_fence: int,
        fencing_token: int,
        next_lease_id: str,
        lease_ms: int,
        age_us: int,
        later: str,
        waiter_count: int,
        for_whom: str,
    ) -> str:
        """Gives the lock back; this process' first waiter wants it next."""
        who = self._who(node, for_whom)
        wish = _arguments(age_us, later, waiter_count, lease_ms, next_lease_id, who)
        return self._release.head(10) + keys + _arguments(lease_id, grant_fence, fencing_token, node.channel) + wish

    def turn(
        self,
        node: Node,
        keys: str,
        lease_id: str,
        *,
        next_lease_id: str,
        lease_ms: int,
        last_fence: int,
        turns_left: int,
        for_whom: str,
    ) -> str:
        """Makes the next turn of a run the holder."""
        who = self._who(node, for_whom)
        return self._turn.head(6) + keys + _arguments(lease_id, next_lease_id, lease_ms, last_fence, turns_left, who)

    def extend(self, keys: str, lease_id: str, *, grant_fence: int, lease_ms: int, fencing_token: int) -> str:
        """Gives a lease that is still ours its time again."""
        return self._extend_head + keys + _arguments(lease_id, lease_ms, grant_fence, fencing_token)

    def adopt(
        self,
        node: Node,
        keys: str,
        lease_id: str,
        *,
        new_id: str,
        fencing_token: int,
        grant_fence: int,
        lease_ms: int,
        for_whom: str,
    ) -> str:
        """Takes over what another process has exported, under an id of ours."""
        who = self._who(node, for_whom)
        return self._adopt.head(6) + keys + _arguments(lease_id, new_id, lease_ms, who, fencing_token, grant_fence)

    def lent_extend(self, node: Node, name: str, lease_id: str, *, lease_ms: int) -> str:
        """Gives a lent lease more time, and tells its keeper."""
        keys = packed_keys(name) + packed_asked_key(name, lease_id)
        own_who = f"{node.channel}\t{self._holder}"
        return self._lent_extend.head(3, KEY_COUNT + 1) + keys + _arguments(lease_id, lease_ms, own_who)

    def lent_ask(
        self,
        node: Node,
        name: str,
        lease_id: str,
        *,
        lease_ms: int,
        for_whom: str,
        own_id: str = "",
        own_fence: int = 0,
        own_token: int = 0,
    ) -> str:
        """The lease under an id that its client chose, where it was lent; lends under it what is held under our own."""
        keys = packed_keys(name) + packed_asked_key(name, lease_id)
        own_who = f"{node.channel}\t{self._holder}"
        arguments = _arguments(lease_id, lease_ms, own_who, for_whom, own_id, own_fence, own_token)
        return self._lent_ask.head(7, KEY_COUNT + 1) + keys + arguments

    def lent_release(self, node: Node, name: str, lease_id: str, *, call_id: str, age_ms: int) -> str:
        """Gives the lock of a lent lease back, unless it was given time since this was asked for; tells its keeper."""
        keys = packed_keys(name) + packed_asked_key(name, lease_id)
        arguments = _arguments(lease_id, call_id, node.channel, age_ms)
        return self._lent_release.head(4, KEY_COUNT + 1) + keys + arguments

    def lent_look(self, node: Node, keys: str, lease_id: str) -> str:
        """How a lent lease stands."""
        return self._lent_look.head(2) + keys + _arguments(lease_id, node.channel)

    def _who(self, node: Node, for_whom: str) -> str:
        return f"{node.channel}\t{self._holder}\t{for_whom}"

    def force(self, keys: str, *, fencing_token: int, call_id: str) -> str:
        """Ends the lease with this fencing token, whoever holds it."""
        return self._force.head(2) + keys + _arguments(fencing_token, call_id)

    def inspect(self, keys: str) -> str:
        """Who holds and who waits."""
        return self._inspect.head(0) + keys

    def publish(self, keys: Sequence[str], arguments: Sequence[str | int]) -> str:
        """Tells what this instance has seen; see the script."""
        count = len(keys)
        head = f"*{3 + count + len(arguments)}\r\n{self._publish.name}${len(str(count))}\r\n{count}\r\n"
        return head + _arguments(*keys) + _arguments(*arguments)


def _arguments(*values: str | int) -> str:
    return packed(*values).partition("\r\n")[2]


class LockStore:
    """Asks the right server, again where that helps, and for a bounded time."""

    def __init__(self, servers: Servers, scripts: Scripts, *, command_timeout_s: float, clock: Clock) -> None:
        self._servers = servers
        self.node_of: Callable[[str], Node] = servers.node_of  # the server that has a lock; raises LockStoreDown
        self.scripts = scripts
        self.clock = clock
        self.loop: asyncio.AbstractEventLoop  # of the locker, once it is open; in a thread of this number
        self.thread_id: int | None = None
        self._patience_s = command_timeout_s

    def open(self) -> None:
        """From now on it belongs to the event loop that runs."""
        self.loop, self.thread_id = asyncio.get_running_loop(), threading.get_ident()

    def check_loop(self) -> None:
        """Raises WrongLoop outside the event loop that opened the locker.

        asyncio asks the system for the process' number each time that it is asked for its loop (0.25 us). So on the hot
        path only the thread is compared, in which no other loop runs while ours does.
        """
        if self.thread_id is None:
            return
        try:
            is_ours = asyncio.get_running_loop() is self.loop
        except RuntimeError:
            is_ours = False
        if not is_ours:
            raise WrongLoop(
                "a Locker is for the event loop that opened it, and was used from another one, or from none"
            )

    def down_for_s(self, name: str) -> float:
        """For how long the lock's server has been out of reach; 0.0 while it is not."""
        return self._servers.down_for_s(name)

    @property
    def messages_hold(self) -> bool:
        """Whether a lock that a message hands over is ours by that alone: see Servers.hears_only_its_own."""
        return self._servers.hears_only_its_own

    async def ask(self, name: str, command_to: Callable[[Node], str]) -> Any:
        """The reply to a command. Raises LockStoreDown, also where it may have been done and only the reply is lost."""
        self.check_loop()
        node = self.node_of(name)
        command = command_to(node)
        reply = await node.ask(command)
        if reply.__class__ is hiredis.ReplyError:
            return await self.settle(name, node, command, reply)
        return reply

    async def run(self, name: str, command_to: Callable[[Node], str]) -> Any:
        """The same, asked again when the connection was lost just now and comes back; for what does no harm twice."""
        give_up_at_s = self.clock.monotonic_s() + self._patience_s
        while True:
            try:
                return await self.ask(name, command_to)
            except LockStoreRefused:
                raise
            except LockStoreDown:
                node = self.node_of(name)
                if self.clock.monotonic_s() >= give_up_at_s or not await node.commands.up_within(self._patience_s):
                    raise

    async def settle(self, name: str, node: Node, command: str, error: Any) -> Any:
        """What comes of a command that was answered with an error: another server, another moment, or a refusal.

        Raises LockStoreDown when it takes too long, LockStoreRefused.
        """
        give_up_at_s = self.clock.monotonic_s() + self._patience_s
        reply: Any = error
        asking = False
        pause_s = _SHORTEST_PAUSE_S
        while isinstance(reply, hiredis.ReplyError):
            before = node
            in_script = _in_script(str(reply))
            word, _, rest = (in_script[1] if in_script else str(reply)).partition(" ")
            if word == "NOSCRIPT":
                self._load(node, command)
            elif word in ("MOVED", "ASK"):
                slot, _, place = rest.partition(" ")
                host, _, port = place.rpartition(":")
                host = host or node.commands.address.host
                asking = word == "ASK"
                node = self._servers.beside(host, int(port)) if asking else self._moved(name, slot, host, int(port))
                await node.commands.up_within(self._patience_s)
            elif word in _LATER or word in _REPLACED:
                if self.clock.monotonic_s() >= give_up_at_s:
                    raise LockStoreDown(f"Redis answers: {reply}")
                if word in _REPLACED:
                    node.commands.drop("Redis is a replica now")
                await asyncio.sleep(pause_s * self.clock.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                node, asking = self.node_of(name), False
                await node.commands.up_within(self._patience_s)
            else:
                raise LockStoreRefused(f"Redis refuses: {reply}")
            # Each server knows this process by another name, of the same length.
            command = command.replace(before.channel, node.channel)
            if asking:
                node.ask(_ASKING).add_done_callback(retrieve)
            reply = await node.ask(command)
            if self.clock.monotonic_s() >= give_up_at_s + self._patience_s:
                break
        if isinstance(reply, hiredis.ReplyError):
            raise LockStoreDown(f"Redis answers: {reply}")
        return reply

    def _moved(self, name: str, slot: str, host: str, port: int) -> Node:
        return self._servers.moved(int(slot) if slot.isdigit() else slot_of(name), host, port)

    def _load(self, node: Node, command: str) -> None:
        """The command's script alone: all of them would take longer than some servers go between two SCRIPT FLUSHes."""
        node.ask(self.scripts.load_for(command)).add_done_callback(retrieve)
