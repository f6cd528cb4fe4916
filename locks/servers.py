"""Which server has which lock: one for all of them, or the Cluster's masters by slot."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import hiredis
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import RedisError

from locks.address import Address, Cluster, Place, Sentinels
from locks.errors import LockStoreDown
from locks.keys import SLOT_COUNT, slot_of
from locks.link import Link
from locks.node import Node

LOOK_AGAIN_S = 0.25

NewNode = Callable[..., Node]


class Servers(Protocol):
    """Where commands for a lock go."""

    def node_of(self, name: str) -> Node:
        """The server that has the lock's keys, as far as is known. Raises LockStoreDown when none is known."""

    def nodes(self) -> Iterable[Node]:
        """All of them."""

    def moved(self, slot: int, host: str, port: int) -> Node:
        """A server has said that another one has this slot."""

    def beside(self, host: str, port: int) -> Node:
        """The server that a slot is just moving to."""

    async def open(self) -> None:
        """Begins to connect."""

    async def close(self) -> None:
        """Closes all connections."""


def servers_at(place: Place, new_node: NewNode, *, command_timeout_s: float) -> Servers:
    """The servers of a lock store."""
    match place:
        case Address():
            return OneServer(new_node(place, channel=_channels()()))
        case Sentinels():
            locate = _MasterLookup(place, timeout_s=command_timeout_s)
            return OneServer(new_node(place.data, channel=_channels()(), locate=locate, must_be_master=True), locate)
        case Cluster():
            return ClusterServers(place, new_node, command_timeout_s=command_timeout_s)


def _channels() -> Callable[[], str]:
    """Names for this process; each server knows it by another, since a Cluster spreads messages to all its nodes."""
    process, numbers = secrets.token_hex(8), itertools.count()
    return lambda: f"lock-wake:{process}:{next(numbers)}"


class OneServer:
    """All locks on one server, which may be another one after a failover."""

    def __init__(self, node: Node, lookup: _MasterLookup | None = None) -> None:
        self._node = node
        self._lookup = lookup

    def node_of(self, name: str) -> Node:
        """The server."""
        return self._node

    def nodes(self) -> Iterable[Node]:
        """The server."""
        return (self._node,)

    def moved(self, slot: int, host: str, port: int) -> Node:
        """The server: one that says MOVED to a client that knows no Cluster is not what its URL says."""
        raise LockStoreDown("this Redis is a node of a Cluster: its URL starts with redis+cluster://")

    def beside(self, host: str, port: int) -> Node:
        """As moved."""
        return self.moved(0, host, port)

    async def open(self) -> None:
        """Begins to connect."""
        self._node.open()

    async def close(self) -> None:
        """Closes its connections."""
        await self._node.close()


class _MasterLookup:
    """Asks the Sentinels for the master's address; called before each connection."""

    def __init__(self, place: Sentinels, *, timeout_s: float) -> None:
        self._place = place
        self._timeout_s = timeout_s

    async def __call__(self) -> Address:
        place = self._place
        names = ("password",) if len(place.credentials) == 1 else ("username", "password")
        options: dict[str, Any] = dict(zip(names, place.credentials, strict=False))
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            list(place.hosts),
            sentinel_kwargs={"socket_timeout": self._timeout_s, "socket_connect_timeout": self._timeout_s, **options},
        )
        try:
            host, port = await sentinel.discover_master(place.service)
        except RedisError as error:
            raise LockStoreDown(f"no Sentinel knows the master of {place.service!r}: {error}") from error
        finally:
            for client in sentinel.sentinels:
                with contextlib.suppress(RedisError, OSError):
                    await client.aclose()
        return place.data.at(host, port)


class ClusterServers:
    """The masters of a Cluster, two connections each; which has which slot is asked again whenever one says so."""

    def __init__(self, place: Cluster, new_node: NewNode, *, command_timeout_s: float) -> None:
        self._place = place
        self._new_node = new_node
        self._timeout_s = command_timeout_s
        self._channel = _channels()
        self._nodes: dict[tuple[str, int], Node] = {}
        self._by_slot: list[Node | None] = [None] * SLOT_COUNT
        self._task: asyncio.Task[None] | None = None
        self._look = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()

    def node_of(self, name: str) -> Node:
        """The master that has the lock's slot. Raises LockStoreDown while none is known."""
        node = self._by_slot[slot_of(name)]
        if node is None:
            self._look.set()
            raise LockStoreDown("the Cluster's slots are not known yet")
        if not node.commands.is_up:
            self._look.set()
        return node

    def nodes(self) -> Iterable[Node]:
        """All masters that are known."""
        return self._nodes.values()

    def moved(self, slot: int, host: str, port: int) -> Node:
        """The slot is there from now on; the others are asked for."""
        node = self._by_slot[slot] = self._at(host, port)
        self._look.set()
        return node

    def beside(self, host: str, port: int) -> Node:
        """The server a slot is moving to."""
        return self._at(host, port)

    async def open(self) -> None:
        """Asks for the slots, once here, and then whenever something has changed."""
        with contextlib.suppress(LockStoreDown):
            await self._ask_for_slots()
        self._task = asyncio.create_task(self._keep_known(), name="lock-cluster")

    async def close(self) -> None:
        """Closes all connections."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for node in self._nodes.values():
            await node.close()
        await asyncio.gather(*self._closing)

    async def _keep_known(self) -> None:
        while True:
            await self._look.wait()
            self._look.clear()
            with contextlib.suppress(LockStoreDown):
                await self._ask_for_slots()
            await asyncio.sleep(LOOK_AGAIN_S)  # not more often, however many callers find that something has moved
            if None in self._by_slot or not all(node.commands.is_up for node in self._nodes.values()):
                self._look.set()

    async def _ask_for_slots(self) -> None:
        reply = await self._slots()
        known: set[tuple[str, int]] = set()
        for first, last, (host, port, *_), *_replicas in reply:
            place = (host.decode(), port)
            known.add(place)
            node = self._at(*place)
            self._by_slot[first : last + 1] = [node] * (last + 1 - first)
        for place in set(self._nodes) - known:
            task = asyncio.create_task(self._nodes.pop(place).close(), name="lock-node-close")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _slots(self) -> list[Any]:
        """CLUSTER SLOTS from whoever answers first: the nodes that are known, then those of the URL."""
        for node in list(self._nodes.values()):
            if node.commands.is_up:
                with contextlib.suppress(LockStoreDown):
                    return _checked(await node.commands.call("CLUSTER", "SLOTS"))
        error = "no node of the Cluster answers"
        for address in self._place.nodes:
            link = Link(address, command_timeout_s=self._timeout_s)
            link.open()
            try:
                if await link.up_within(max(1.0, 2 * self._timeout_s)):
                    return _checked(await link.call("CLUSTER", "SLOTS"))
                error = link.last_error
            except LockStoreDown as failure:
                error = str(failure)
            finally:
                await link.close()
        raise LockStoreDown(error)

    def _at(self, host: str, port: int) -> Node:
        node = self._nodes.get((host, port))
        if node is None:
            address = self._place.nodes[0].at(host, port)
            node = self._nodes[host, port] = self._new_node(address, channel=self._channel(), shares_commands=False)
            node.open()
        return node


def _checked(reply: Any) -> list[Any]:
    if isinstance(reply, hiredis.ReplyError):
        raise LockStoreDown(f"no Cluster: {reply}")
    found: list[Any] = reply
    if not found:
        raise LockStoreDown("the Cluster has no slots yet")
    return found
