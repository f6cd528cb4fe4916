"""A world whose locks are on a Cluster: three masters, a replica each, and slots that move between them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.chaos.faults.kinds import Fault, FaultKind, alone_with, draw_lasting, in_thread
from tests.chaos.faults.kinds import World as Run
from tests.chaos.worlds.special_ground import SpecialGround
from tests.chaos.worlds.world import World, why_nothing
from tests.servers.cluster import SLOT_COUNT, Cluster
from tests.servers.kinds import server_binary


class ClusterGround(SpecialGround):
    """There is no `valkey`; the locks are on `cluster`."""

    def __init__(self, folder: Path, *, postgres_settings: Mapping[str, str]) -> None:
        super().__init__(folder, postgres_settings=postgres_settings)
        self.cluster = Cluster(server_binary("valkey"), folder, replica_count=1)

    @property
    def redis_url(self) -> str:
        """Two of its nodes, which tell of the others."""
        return self.cluster.url

    def complete(self, stack: ExitStack) -> None:
        """The Cluster instead of the one Valkey."""
        self.drop_valkey()
        stack.enter_context(self.cluster)


def kill_master(cluster: Cluster, slot: int) -> None:
    """The slot's master is killed with what its replica has not got yet; it comes back as the new one's replica."""
    old = cluster.kill_master_of(slot)
    try:
        cluster.wait_for_takeover(slot, instead_of=old)
    finally:
        old.start()
    cluster.wait_until_agreed()


def fail_over(cluster: Cluster, slot: int) -> None:
    """The slot's master hands over to its replica."""
    old = cluster.master_of(slot)
    cluster.replicas_of(slot)[0].ask("CLUSTER", "FAILOVER")
    cluster.wait_for_takeover(slot, instead_of=old)


def move_slot(cluster: Cluster, slot: int, lasts_s: float) -> None:
    """The slot moves to another master: for half the time its keys are still here, then there, and nobody is told."""
    move = cluster.begin_move(slot, to=cluster.other_master(cluster.master_of(slot)))
    try:
        time.sleep(lasts_s / 2)
        move.move_keys()
        time.sleep(lasts_s / 2)
    finally:
        move.move_keys()
        move.finish()


async def cluster_kill_master(run: Run, fault: Fault, target: object) -> None:
    """The master of a hot lock."""
    await _harm(run, kill_master)


async def cluster_failover(run: Run, fault: Fault, target: object) -> None:
    """Of the master of a hot lock."""
    await _harm(run, fail_over)


async def cluster_move_slot(run: Run, fault: Fault, target: object) -> None:
    """The slot of a hot lock."""
    await _harm(run, move_slot, fault["lasts_s"])


async def _harm(run: Run, harm: Any, *arguments: Any) -> None:
    ground = run.ground
    assert isinstance(ground, ClusterGround)
    hot = run.hot_appointments()
    async with alone_with(run, "redis"):
        if hot:
            slot = await in_thread(ground.cluster.slot_of, f"{{appointment:{run.rng.choice(hot)}}}")
        else:
            slot = run.rng.randrange(SLOT_COUNT)
        await in_thread(harm, ground.cluster, slot, *arguments)


WORLD = World(
    name="cluster",
    does="Locks on a Cluster of three masters with a replica each.",
    open=ClusterGround,
    kinds=(
        FaultKind(
            name="cluster_kill_master",
            scope="redis",
            does="SIGKILL to the master of a hot lock; its replica takes over, and it comes back as a replica.",
            run=cluster_kill_master,
            ambient=True,
            forgets=True,
        ),
        FaultKind(
            name="cluster_failover",
            scope="redis",
            does="CLUSTER FAILOVER: the replica of a hot lock's master takes over while that lives.",
            run=cluster_failover,
            ambient=True,
            forgets=True,
        ),
        FaultKind(
            name="cluster_move_slot",
            scope="redis",
            does="The slot of a hot lock moves to another master: ASK, TRYAGAIN, then MOVED.",
            run=cluster_move_slot,
            draw=draw_lasting(0.1, 1.0),
            ambient=True,
        ),
    ),
    needs=why_nothing,
    has_one_redis=False,
)
