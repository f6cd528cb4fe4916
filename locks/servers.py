"""Which server has which lock: one for all of them, or the Cluster's masters by slot."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from typing import Any, Protocol, TypeVar

import hiredis

from locks.address import Address, Cluster, Place, Sentinels
from locks.dialing import Names, is_ip
from locks.errors import LockStoreDown, LockStoreRefused
from locks.keys import SLOT_COUNT, slot_of
from locks.link import ask_once
from locks.node import USE_CLUSTER_URL, Node

LOOK_AGAIN_S = 0.25
# How long the next one's answer is waited for, where more than one is wanted.
AGREE_WITHIN_S = 0.1
# As many names as have the same length: a command is sent to another server with another name in it.
MOST_CHANNELS = 0x10000

NewNode = Callable[..., Node]
Found = TypeVar("Found")


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

    def down_for_s(self, name: str) -> float:
        """For how long the lock's server has been out of reach; 0.0 while it is not."""

    @property
    def hears_only_its_own(self) -> bool:
        """Whether a message reaches those alone whom the server that sent it has counted.

        A Cluster spreads messages over its bus: at a failover one can arrive by another node although its sender
        counted nobody, and has taken back what it said.
        """

    @property
    def last_error(self) -> str:
        """Why there was no connection when there was none."""

    async def open(self) -> None:
        """Begins to connect."""

    async def up_within(self, wait_s: float) -> bool:
        """Waits for the connections to all of them, or for those lost a moment ago; whether they are there."""

    async def close(self) -> None:
        """Closes all connections."""


def servers_at(place: Place, new_node: NewNode, *, command_timeout_s: float, look_up_every_s: float) -> Servers:
    """The servers of a lock store. What is found by a name, or by asking, is found again every look_up_every_s."""
    names = Names()
    new_node = functools.partial(new_node, names=names, look_up_every_s=look_up_every_s)
    match place:
        case Address():
            return OneServer(new_node(place, channel=_channels()(), must_not_be_clustered=True))
        case Sentinels():
            master = _Master(place, names, timeout_s=command_timeout_s)
            return OneServer(
                new_node(
                    place.data,
                    channel=_channels()(),
                    locate=master.locate,
                    has_moved=master.has_moved,
                    must_be_master=True,
                )
            )
        case Cluster():
            return ClusterServers(
                place, new_node, names, command_timeout_s=command_timeout_s, look_up_every_s=look_up_every_s
            )


def _channels() -> Callable[[], str]:
    """Names for this process; each server knows it by another, since a Cluster spreads messages to all its nodes."""
    process, numbers = secrets.token_hex(8), itertools.count()
    return lambda: f"lock-wake:{process}:{next(numbers) % MOST_CHANNELS:04x}"


class OneServer:
    """All locks on one server, which may be another one after a failover."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def node_of(self, name: str) -> Node:
        """The server."""
        return self._node

    def nodes(self) -> Iterable[Node]:
        """The server."""
        return (self._node,)

    def moved(self, slot: int, host: str, port: int) -> Node:
        """The server: one that says MOVED to a client that knows no Cluster is not what its URL says."""
        raise LockStoreRefused(USE_CLUSTER_URL)

    def beside(self, host: str, port: int) -> Node:
        """As moved."""
        return self.moved(0, host, port)

    def down_for_s(self, name: str) -> float:
        """Of the server."""
        return self._node.commands.down_for_s

    @property
    def hears_only_its_own(self) -> bool:
        """As Servers.hears_only_its_own."""
        return True

    @property
    def last_error(self) -> str:
        """Of the server."""
        return self._node.commands.last_error

    async def open(self) -> None:
        """Begins to connect."""
        self._node.open()

    async def up_within(self, wait_s: float) -> bool:
        """Waits for both connections."""
        return await self._node.up_within(wait_s)

    async def close(self) -> None:
        """Closes its connections."""
        await self._node.close()


class _Master:
    """Whom the Sentinels name."""

    def __init__(self, place: Sentinels, names: Names, *, timeout_s: float) -> None:
        self._place = place
        self._names = names
        self._timeout_s = timeout_s

    async def locate(self) -> Address:
        """Where most of those who answer soon see the master: one that is cut off may name an old one for long."""
        ((place, _),) = (await self._named()).most_common(1)
        return self._place.data.at(*place)

    async def has_moved(self, connected: Address) -> bool:
        """Whether more than half of all Sentinels name another master, which may be so while the old one lives."""
        ((place, count),) = (await self._named()).most_common(1)
        return place != (connected.host, connected.port) and count * 2 > len(self._place.sentinels)

    async def _named(self) -> Counter[tuple[str, int]]:
        """Each host and port that is named, by how many. Raises LockStoreDown where none is."""
        named: Counter[tuple[str, int]] = Counter()
        async with contextlib.aclosing(_answers(self._asked(each) for each in self._place.sentinels)) as answers:
            async for place in answers:
                named[place] += 1
                if named[place] * 2 > len(self._place.sentinels):
                    break
        return named

    async def _asked(self, sentinel: Address) -> tuple[str, int]:
        service = self._place.service
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
        reply = await ask_once(sentinel, *question, command_timeout_s=self._timeout_s, names=self._names)
        if not isinstance(reply, list):
            raise LockStoreDown(f"Sentinel at {sentinel.host}:{sentinel.port} knows no {service!r}: {reply}")
        host, port = reply
        return host.decode(), int(port)


class ClusterServers:
    """The masters of a Cluster, two connections each; which has which slot is asked again whenever one says so."""

    def __init__(
        self,
        place: Cluster,
        new_node: NewNode,
        names: Names,
        *,
        command_timeout_s: float,
        look_up_every_s: float,
    ) -> None:
        self._place = place
        self._new_node = new_node
        self._names = names
        self._timeout_s = command_timeout_s
        self._look_up_every_s = look_up_every_s
        self._channel = _channels()
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
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        nodes = [*self._nodes.values(), *self._retired.values()]
        for task in list(self._retired):
            task.cancel()
        await asyncio.gather(*[node.close() for node in nodes])

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
                slots = _masters(*await _first_answer(self._told_at(address) for address in self._place.nodes))
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
            return await _first_answer(_told_by(node) for node in self._nodes.values() if node.commands.is_up)
        return await _first_answer(self._told_at(address) for address in self._place.nodes)

    async def _told_at(self, address: Address) -> tuple[Address, list[Any]]:
        reply = await ask_once(address, "CLUSTER", "SLOTS", command_timeout_s=self._timeout_s, names=self._names)
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


async def _first_answer(questions: Iterable[Coroutine[Any, Any, Found]]) -> Found:
    """Whoever answers first. Raises LockStoreDown with what all of them said."""
    async with contextlib.aclosing(_answers(questions)) as answers:
        return await anext(answers)


async def _answers(questions: Iterable[Coroutine[Any, Any, Found]]) -> AsyncGenerator[Found, None]:
    """The first answer and those that come within AGREE_WITHIN_S of one before them: who is frozen delays nobody.

    All are asked at once. Raises LockStoreDown with what all of them said where nobody answers.
    """
    asked = {asyncio.create_task(question) for question in questions}
    waiting, errors, wait_s = asked, list[str](), None
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                return
            for task in done:
                try:
                    yield task.result()
                    wait_s = AGREE_WITHIN_S
                except LockStoreDown as error:
                    errors.append(str(error))
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    if wait_s is None:
        raise LockStoreDown("; ".join(dict.fromkeys(errors)) or "nobody to ask")
