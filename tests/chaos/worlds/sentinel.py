"""A world whose locks are on a master with one replica, and three Sentinels that put the one in the other's place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from tests.chaos.faults.kinds import Fault, FaultKind, alone_with, in_thread
from tests.chaos.faults.kinds import Run as Runs
from tests.chaos.faults.kinds import World as Run
from tests.chaos.worlds.special_ground import SpecialGround
from tests.chaos.worlds.world import World, why_nothing
from tests.harness import wait_until
from tests.servers.kinds import server_binary
from tests.servers.sentinel import SentinelGroup


class SentinelGround(SpecialGround):
    """There is no `valkey`; the locks are on `group`."""

    def __init__(self, folder: Path, *, postgres_settings: Mapping[str, str]) -> None:
        super().__init__(folder, postgres_settings=postgres_settings)
        self.group = SentinelGroup(server_binary("valkey"), folder)

    @property
    def redis_url(self) -> str:
        """The three Sentinels."""
        return self.group.url

    def complete(self, stack: ExitStack) -> None:
        """The group instead of the one Valkey."""
        self.drop_valkey()
        stack.enter_context(self.group)


def kill_master(group: SentinelGroup) -> None:
    """The master is killed with what its replica has not got yet; it comes back as the new one's replica."""
    old = group.kill_master()
    try:
        group.wait_for_new_master(instead_of=old)
    finally:
        old.start()
    wait_until_whole(group)


def freeze_master(group: SentinelGroup) -> None:
    """The master stands still until another one is in its place, and believes for a moment that it still is."""
    old = group.freeze_master()
    try:
        group.wait_for_new_master(instead_of=old)
    finally:
        old.thaw()
    wait_until_whole(group)


def fail_over(group: SentinelGroup) -> None:
    """An operator has the replica made the master while the old one lives."""
    group.fail_over()
    wait_until_whole(group)


def wait_until_whole(group: SentinelGroup) -> None:
    """Returns once the next failover can succeed: each Sentinel knows the others, and a replica that is fit for it."""
    group.wait_for_replicas()
    wait_until(group._all_known, what="Sentinels that know of a new replica")


def _of_group(harm: Callable[[SentinelGroup], None]) -> Runs:
    async def run(run: Run, fault: Fault, target: object) -> None:
        ground = run.ground
        assert isinstance(ground, SentinelGround)
        async with alone_with(run, "redis"):
            await in_thread(harm, ground.group)

    return run


WORLD = World(
    name="sentinel",
    does="Locks on a master with a replica, under three Sentinels.",
    open=SentinelGround,
    kinds=(
        FaultKind(
            name="sentinel_kill_master",
            scope="redis",
            does="SIGKILL to the master; Sentinel promotes the replica, and the old master comes back as a replica.",
            run=_of_group(kill_master),
            ambient=True,
            forgets=True,
        ),
        FaultKind(
            name="sentinel_freeze_master",
            scope="redis",
            does="SIGSTOP to the master until Sentinel has promoted the replica; then it thaws and believes it is one.",
            run=_of_group(freeze_master),
            ambient=True,
            forgets=True,
        ),
        FaultKind(
            name="sentinel_failover",
            scope="redis",
            does="SENTINEL FAILOVER: the replica is promoted while the master lives.",
            run=_of_group(fail_over),
            ambient=True,
            forgets=True,
        ),
    ),
    needs=why_nothing,
    has_one_redis=False,
)
