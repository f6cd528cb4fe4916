"""Whether a lock store does what locks need: a lock of this process' own is taken there and given back."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import hiredis

from locks.errors import LockStoreDown
from locks.keys import packed_keys
from locks.node import Node
from locks.servers import Servers
from locks.store import LockStore
from locks.wire import packed

PREFIX = "chargeonce:health/"
MOST_PREFIXED = 100  # what of an instance's name becomes part of the lock's
LEASE_MS = 100
# Names that are tried for each server of a Cluster until one of its slots is found.
TRIES_A_SERVER = 64

_policy_in = re.compile(rb"maxmemory_policy:(\S+)").search


class Trial:
    """Takes and gives back a lock on each server, unseen by listeners: no lease of it is held or shown here."""

    def __init__(
        self,
        store: LockStore,
        servers: Servers,
        *,
        instance_id: str,
        command_timeout_s: float,
        new_lease_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._servers = servers
        self._patience_s = command_timeout_s
        self._name = PREFIX + re.sub(r"[^A-Za-z0-9:_./-]", "-", instance_id)[:MOST_PREFIXED]
        self._new_lease_id = new_lease_id

    async def take_and_give_back(self) -> None:
        """Raises LockStoreDown with what a server has said, or not said.

        A lock that another has (its instance has the same name) was refused by a script that ran: that is an answer.
        """
        for node, name in self._names().items():
            await self._try_out(node, name)

    async def evicting_policy(self) -> str | None:
        """By which policy a server may remove locks when its memory is full; None where none does, or none tells."""
        for node in list(self._servers.nodes()):
            policy = await _policy_of(node)
            if policy is not None and policy != "noeviction":
                return policy
        return None

    async def _try_out(self, node: Node, name: str) -> None:
        if not await node.up_within(self._patience_s):
            if node.commands.is_up:
                raise LockStoreDown(f"no messages: {node.messages.last_error}")
            raise LockStoreDown(node.commands.last_error)
        ask, scripts, keys, lease_id = self._store.ask, self._store.scripts, packed_keys(name), self._new_lease_id()
        taken = await ask(
            name,
            lambda node: scripts.acquire_now(node, keys, lease_id, lease_ms=LEASE_MS, seen_fence=0, for_whom="health"),
        )
        if isinstance(taken, int):
            await ask(name, lambda node: scripts.give_back(node, keys, lease_id))
        # Scripts tell others what to do. Nobody here knows of this lease id, so nothing comes of the message.
        await ask(name, lambda node: packed("PUBLISH", node.channel, f"look {lease_id}"))

    def _names(self) -> Mapping[Node, str]:
        """A lock for each server: in a Cluster names are tried."""
        nodes, names = list(self._servers.nodes()), dict[Node, str]()
        for number in range(TRIES_A_SERVER * max(1, len(nodes))):
            name = f"{self._name}/{number}"
            names.setdefault(self._store.node_of(name), name)
            if len(names) >= len(nodes):
                break
        return names


async def _policy_of(node: Node) -> str | None:
    """As INFO tells, or CONFIG where only that is permitted. Raises LockStoreDown."""
    told: Any = await node.commands.call("INFO", "memory")
    if isinstance(told, bytes) and (found := _policy_in(told)):
        return found[1].decode()
    told = await node.commands.call("CONFIG", "GET", "maxmemory-policy")
    if isinstance(told, hiredis.ReplyError) or len(told) != 2:
        return None
    return str(told[1].decode())
