"""A world whose Sentinel group can be parted, so that two masters take locks at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from tests.chaos.faults.kinds import Fault, FaultKind, alone_with, draw_lasting, in_thread
from tests.chaos.faults.kinds import World as Run
from tests.chaos.worlds.network import Network, Place, why_no_network
from tests.chaos.worlds.placed_servers import PlacedSentinelGroup
from tests.chaos.worlds.sentinel import wait_until_whole
from tests.chaos.worlds.special_ground import SpecialGround
from tests.chaos.worlds.world import World
from tests.servers.kinds import server_binary


class SplitGround(SpecialGround):
    """There is no `valkey`; the locks are on `group`, a Sentinel at each of three places, a data node at two.

    We reach all three, so that a client may stand on either side.
    """

    def __init__(self, folder: Path, *, postgres_settings: Mapping[str, str]) -> None:
        super().__init__(folder, postgres_settings=postgres_settings)
        self.network = Network(place_count=3)
        self.group: PlacedSentinelGroup

    @property
    def redis_url(self) -> str:
        """The three Sentinels."""
        return self.group.url

    def complete(self, stack: ExitStack) -> None:
        """The group instead of the one Valkey."""
        self.drop_valkey()
        stack.enter_context(self.network)
        self.group = PlacedSentinelGroup(server_binary("valkey"), self.folder, self.network.places)
        stack.enter_context(self.group)

    def part(self) -> Place:
        """The master's place is parted from the other two, not from us; returns it once they have a new master."""
        alone = self.group.parted = self.group.place_of_master()
        old = self.group.master()
        others = [place.host for place in self.network.places if place is not alone]
        alone.drop_arriving(others)
        alone.drop_leaving(others)
        self.group.wait_for_new_master(instead_of=old)
        return alone

    def join(self) -> None:
        """All three places meet again; returns once the old master follows the new one. Harmless twice."""
        for place in self.network.places:
            place.heal()
        self.group.parted = None
        wait_until_whole(self.group)


async def split_brain(run: Run, fault: Fault, target: object) -> None:
    """Two masters, each with clients of its own, until they meet again."""
    ground = run.ground
    assert isinstance(ground, SplitGround)
    async with alone_with(run, "redis"):
        try:
            await in_thread(ground.part)
            await asyncio.sleep(fault["lasts_s"])
        finally:
            await in_thread(ground.join)


WORLD = World(
    name="split_brain",
    does="Locks on a Sentinel group spread over three network namespaces.",
    open=SplitGround,
    kinds=(
        FaultKind(
            name="split_brain",
            scope="redis",
            does="The master's place is parted from the others, not from instances: a second one takes locks too.",
            run=split_brain,
            draw=draw_lasting(0.3, 1.2),
            ambient=True,
            forgets=True,
        ),
    ),
    needs=why_no_network,
    has_one_redis=False,
)
