"""The masters of a Cluster, and which of them has which slot."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import hiredis

from locks.address import Address, Cluster
from locks.asking import first_answer
from locks.clock import Clock
from locks.dialing import Names, is_ip
from locks.errors import LockStoreDown
from locks.keys import SLOT_COUNT, slot_of
from locks.link import ask_once
from locks.node import Node

LOOK_AGAIN_S = 0.25


class ClusterServers:
    """The masters of a Cluster, two connections each; which has which slot is asked again whenever one says so."""

    def __init__(
        self,
        place: Cluster,
        new_node: Callable[..., Node],
        names: Names,
        *,
        channels: Callable[[], str],
        command_timeout_s: float,
        look_up_every_s: float,
        clock: Clock,
    ) -> None:
        self._place = place
        self._new_node = new_node
        self._names = names
        self._timeout_s = command_timeout_s
        self._look_up_every_s = look_up_every_s
        self._clock = clock
        self._channel = channels
        self._nodes: dict[tuple[str, int], Node] = {}
        self._by_slot: list[Node | None] = [None] * SLOT_COUNT
        self._tasks: list[asyncio.Task[None]] = []
        self._look = asyncio.Event()
        self._known = asyncio.Event()
        self._opened_at_s = 0.0
        self._error = "not asked yet"
        self._retired: dict[asyncio.Task[None], Node] = {}

    def node_of(self, name: str) -> Node:
        """The master that has the lock's slot. Raises LockStoreDown while none is known."""
        node = self._by_slot[slot_of(name)]
        if node is None:
            self._look.set()
            raise LockStoreDown(f"the Cluster's slots are not known yet: {self._error}")
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

    def down_for_s(self, name: str) -> float:
        """Of the slot's master; of all of them while none is known."""
        node = self._by_slot[slot_of(name)]
        return node.commands.down_for_s if node is not None else self._unknown_for_s()

    @property
    def hears_only_its_own(self) -> bool:
        """As Servers.hears_only_its_own."""
        return False

    @property
    def last_error(self) -> str:
        """Of the first master that is out of reach, or why the slots could not be asked for."""
        down = [node.commands.last_error for node in self._nodes.values() if not node.commands.is_up]
        return down[0] if down else self._error

    async def open(self) -> None:
        """Asks for the slots, once here, and then whenever something has changed."""
        self._opened_at_s = asyncio.get_running_loop().time()
        try:
            await self._ask_for_slots()
        except LockStoreDown:
            self._look.set()
        self._tasks.append(asyncio.create_task(self._keep_known(), name="lock-cluster"))
        if not all(is_ip(address.host) for address in self._place.nodes):
            self._tasks.append(asyncio.create_task(self._keep_looking_up(), name="lock-cluster-look-up"))

    async def up_within(self, wait_s: float) -> bool:
        """Waits for the slots, and for the connections to all masters."""
        if not self._known.is_set():
            try:
                await asyncio.wait_for(self._known.wait(), max(0.0, wait_s - self._unknown_for_s()))
            except TimeoutError:
                return False
        return all(await asyncio.gather(*[node.up_within(wait_s) for node in self._nodes.values()]))

    async def close(self) -> None:
        """Closes all connections."""
        endings = [node.end() for node in (*self._nodes.values(), *self._retired.values())]
        for task in (*self._tasks, *self._retired):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*[ending() for ending in endings])

    def _unknown_for_s(self) -> float:
        return asyncio.get_running_loop().time() - self._opened_at_s

    async def _keep_known(self) -> None:
        while True:
            await self._look.wait()
            self._look.clear()
            with contextlib.suppress(LockStoreDown):
                await self._ask_for_slots()
            await asyncio.sleep(LOOK_AGAIN_S)  # not more often, however many callers find that something has moved
            if None in self._by_slot or not all(node.commands.is_up for node in self._nodes.values()):
                self._look.set()

    async def _keep_looking_up(self) -> None:
        """Goes over to another Cluster when the URL's names lead to one that shares no master with ours."""
        while True:
            await asyncio.sleep(self._look_up_every_s)
            with contextlib.suppress(LockStoreDown):
                slots = _masters(*await first_answer(self._told_at(address) for address in self._place.nodes))
                if self._nodes.keys().isdisjoint(place for _, _, place in slots):
                    self._learn(slots)

    async def _ask_for_slots(self) -> None:
        try:
            self._learn(_masters(*await self._slots()))
        except LockStoreDown as error:
            self._error = str(error)
            raise

    def _learn(self, slots: list[tuple[int, int, tuple[str, int]]]) -> None:
        for first, last, place in slots:
            self._by_slot[first : last + 1] = [self._at(*place)] * (last + 1 - first)
        for place in set(self._nodes) - {place for _, _, place in slots}:
            node = self._nodes.pop(place)
            task = asyncio.create_task(self._retire(node), name="lock-node-close")
            self._retired[task] = node
            task.add_done_callback(self._retired.pop)
        self._known.set()

    async def _slots(self) -> tuple[Address, list[Any]]:
        """CLUSTER SLOTS from whoever answers first: the nodes that are known, else those of the URL."""
        with contextlib.suppress(LockStoreDown):
            return await first_answer(_told_by(node) for node in self._nodes.values() if node.commands.is_up)
        return await first_answer(self._told_at(address) for address in self._place.nodes)

    async def _told_at(self, address: Address) -> tuple[Address, list[Any]]:
        question = ("CLUSTER", "SLOTS")
        reply = await ask_once(
            address, *question, command_timeout_s=self._timeout_s, clock=self._clock, names=self._names
        )
        return address, _checked(reply, address)

    def _at(self, host: str, port: int) -> Node:
        node = self._nodes.get((host, port))
        if node is None:
            address = self._place.nodes[0].at(host, port)
            node = self._nodes[host, port] = self._new_node(address, channel=self._channel(), shares_commands=False)
            node.open()
        return node

    async def _retire(self, node: Node) -> None:
        """Closes it once what is on its way there has been answered."""
        await asyncio.sleep(self._timeout_s)
        await node.close()


async def _told_by(node: Node) -> tuple[Address, list[Any]]:
    address = node.commands.address
    return address, _checked(await node.commands.call("CLUSTER", "SLOTS"), address)


def _masters(asked: Address, reply: list[Any]) -> list[tuple[int, int, tuple[str, int]]]:
    """The first and the last slot of each range, and where its master is."""
    # A node that does not know its own name: it is where it was asked.
    return [
        (first, last, (asked.host if host in (None, b"", b"?") else host.decode(), port))
        for first, last, (host, port, *_), *_replicas in reply
    ]


def _checked(reply: Any, address: Address) -> list[Any]:
    where = f"Redis at {address.host}:{address.port}"
    if isinstance(reply, hiredis.ReplyError):
        raise LockStoreDown(f"{where} is no node of a Cluster, or does not let us ask: {reply}")
    found: list[Any] = reply
    if not found:
        raise LockStoreDown(f"{where} knows of no slots yet")
    return found
