"""A world whose Valkey stands in a network namespace of its own, behind a cable that loses what it is to lose.

Unlike a proxy that holds bytes back, a network that drops packets lets nobody know: connections stay open, nothing is
acknowledged, and what was sent arrives late or never.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

from tests.chaos.faults.kinds import Fault, FaultKind, alone_with, draw_lasting, in_thread
from tests.chaos.faults.kinds import World as Run
from tests.chaos.worlds.network import Network, Place, why_no_network
from tests.chaos.worlds.placed_servers import PlacedServer
from tests.chaos.worlds.special_ground import SpecialGround
from tests.chaos.worlds.world import World
from tests.servers.kinds import server_binary

REQUESTS, REPLIES = "requests", "replies"


class NamespaceGround(SpecialGround):
    """There is no `valkey` on loopback; the locks are on `server`, at `place`. Postgres stands here."""

    def __init__(self, folder: Path, *, postgres_settings: Mapping[str, str]) -> None:
        super().__init__(folder, postgres_settings=postgres_settings)
        self.network = Network(place_count=1)
        self.server: PlacedServer

    @property
    def place(self) -> Place:
        """Where the server is."""
        return self.network.places[0]

    @property
    def redis_url(self) -> str:
        """The server's, over the cable."""
        return self.server.url

    def complete(self, stack: ExitStack) -> None:
        """A server at its place instead of the one here."""
        self.drop_valkey()
        stack.enter_context(self.network)
        self.server = PlacedServer(server_binary("valkey"), self.folder, self.place)
        stack.callback(self.server.kill)
        self.server.start()

    def drop(self, way: str) -> None:
        """What goes this way, REQUESTS or REPLIES, is lost until place.heal()."""
        drop = {REQUESTS: self.place.drop_arriving, REPLIES: self.place.drop_leaving}[way]
        drop([self.network.ours])


async def net_drop(run: Run, fault: Fault, target: object) -> None:
    """Nothing passes."""
    await _lose(run, fault, REQUESTS, REPLIES)


async def net_drop_one_way(run: Run, fault: Fault, target: object) -> None:
    """Requests do not arrive, or answers do not."""
    await _lose(run, fault, fault["way"])


async def _lose(run: Run, fault: Fault, *ways: str) -> None:
    ground = run.ground
    assert isinstance(ground, NamespaceGround)
    async with alone_with(run, "redis"):
        try:
            for way in ways:
                await in_thread(ground.drop, way)
            await asyncio.sleep(fault["lasts_s"])
        finally:
            await in_thread(ground.place.heal)


def draw_one_way(rng: Random, lease_ttl_s: float) -> dict[str, Any]:
    """Which way, and for how long."""
    return {"way": rng.choice((REQUESTS, REPLIES)), "lasts_s": round(rng.uniform(0.1, 1.5), 3)}


WORLD = World(
    name="namespaces",
    does="Locks on a Valkey in a network namespace of its own.",
    open=NamespaceGround,
    kinds=(
        FaultKind(
            name="net_drop",
            scope="redis",
            does="Every packet between instances and Valkey is dropped, for up to 1.5 s.",
            run=net_drop,
            draw=draw_lasting(0.1, 1.5),
            ambient=True,
        ),
        FaultKind(
            name="net_drop_one_way",
            scope="redis",
            does="Packets to Valkey are dropped and its own arrive, or the other way round, for up to 1.5 s.",
            run=net_drop_one_way,
            draw=draw_one_way,
            ambient=True,
        ),
    ),
    needs=why_no_network,
    has_one_redis=False,
)
