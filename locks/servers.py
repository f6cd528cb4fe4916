"""Which server has which lock: one for all of them, or the Cluster's masters by slot."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Protocol

from locks.address import Address, Cluster, Place, Sentinels
from locks.clock import Clock
from locks.cluster import ClusterServers
from locks.dialing import Names
from locks.errors import LockStoreRefused
from locks.node import USE_CLUSTER_URL, Node
from locks.sentinel import Master

# As many names as have the same length: a command is sent to another server with another name in it.
MOST_CHANNELS = 0x10000

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


def servers_at(
    place: Place, new_node: NewNode, *, command_timeout_s: float, look_up_every_s: float, clock: Clock
) -> Servers:
    """The servers of a lock store. What is found by a name, or by asking, is found again every look_up_every_s."""
    names, channels = Names(), _channels(clock)
    new_node = functools.partial(new_node, names=names, look_up_every_s=look_up_every_s)
    match place:
        case Address():
            return OneServer(new_node(place, channel=channels(), must_not_be_clustered=True))
        case Sentinels():
            master = Master(place, names, timeout_s=command_timeout_s, clock=clock)
            return OneServer(
                new_node(
                    place.data,
                    channel=channels(),
                    locate=master.locate,
                    has_moved=master.has_moved,
                    must_be_master=True,
                )
            )
        case Cluster():
            return ClusterServers(
                place,
                new_node,
                names,
                channels=channels,
                command_timeout_s=command_timeout_s,
                look_up_every_s=look_up_every_s,
                clock=clock,
            )


def _channels(clock: Clock) -> Callable[[], str]:
    """Names for this process; each server knows it by another, since a Cluster spreads messages to all its nodes."""
    process, numbers = clock.random_bytes(8).hex(), itertools.count()
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
