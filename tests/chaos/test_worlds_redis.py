"""Worlds of lock stores: over failovers, moving slots and lost packets leases go on, and their tokens rise."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from locks import LockStoreDown
from tests.chaos.worlds.namespaces import REPLIES, REQUESTS
from tests.chaos.worlds.rehearsal import Holds, Leases, OpenWorld, locker_at
from tests.conftest import ReportFigures

pytest_plugins = ["tests.chaos.worlds.fixtures"]

SOME = 10  # leases that show that it goes on
LONG_S = 60.0


@pytest.mark.parametrize(
    ("world", "faults"),
    [
        ("sentinel", [("sentinel_kill_master", {}), ("sentinel_freeze_master", {}), ("sentinel_failover", {})]),
        ("cluster", [("cluster_kill_master", {}), ("cluster_failover", {}), ("cluster_move_slot", {})]),
        ("namespaces", [("net_drop", {}), *(("net_drop_one_way", {"way": way}) for way in (REQUESTS, REPLIES))]),
        ("split_brain", [("split_brain", {"lasts_s": 0.3})]),
        ("clock", [("redis_clock_forward", {}), ("redis_clock_back", {})]),
    ],
)
async def test_leases_go_on_and_their_tokens_rise(
    open_world: OpenWorld, report_figures: ReportFigures, world: str, faults: list[tuple[str, dict[str, Any]]]
) -> None:
    async with open_world(world) as rehearsal:
        leases = Leases(rehearsal.ground.redis_url)
        for kind, given in faults:
            async with leases.taken():
                await leases.more(SOME)
                took_s = await rehearsal.fire(kind, **given)
                await leases.more(SOME)
            report_figures(f"{kind}, until healed", [took_s * 1000])
        assert leases.tokens == sorted(set(leases.tokens))


async def test_no_two_are_inside_when_a_cluster_fails_over_in_order(open_world: OpenWorld) -> None:
    """The new master hands over by PUBLISH, counts no receivers at itself, and drops the waiter; but the Cluster's bus
    carries the message to the old master, where that waiter listens, and its body begins under a claim that is gone."""
    async with open_world("cluster") as rehearsal:
        holds = Holds(rehearsal.ground.redis_url)
        async with holds.taken():
            for _ in range(10):
                await holds.more(SOME)
                await rehearsal.fire("cluster_failover")
        assert holds.most_inside == 1
        assert holds.tokens == sorted(set(holds.tokens))


async def test_a_network_that_drops_packets_costs_a_lease_and_refuses_none_after_it(open_world: OpenWorld) -> None:
    async with open_world("namespaces") as rehearsal, locker_at(rehearsal.ground.redis_url) as locker:
        for ways in ((REQUESTS,), (REPLIES,), (REQUESTS, REPLIES)):
            lease = await locker.acquire("appointment:1", lease_ttl_s=LONG_S)
            for way in ways:
                rehearsal.ground.drop(way)
            with pytest.raises(LockStoreDown):
                await locker.acquire("appointment:2")
            rehearsal.ground.place.heal()
            assert await locker.up_within(LONG_S)
            again = await locker.acquire("appointment:2", wait_s=LONG_S)
            assert again.fencing_token > lease.fencing_token
            assert await again.release()
            assert await lease.release()


async def test_two_parted_masters_give_one_lock_to_two_holders_whose_tokens_differ(open_world: OpenWorld) -> None:
    async with open_world("split_brain") as rehearsal:
        ground, group = rehearsal.ground, rehearsal.ground.group
        old_master = group.master()
        try:
            alone = await asyncio.to_thread(ground.part)
            async with locker_at(group.url_at(alone)) as left, locker_at(group.url_beside(alone)) as right:
                first = await left.acquire("appointment:1", lease_ttl_s=LONG_S)
                second = await right.acquire("appointment:1", lease_ttl_s=LONG_S, wait_s=0)
                assert second.fencing_token > first.fencing_token
        finally:
            await asyncio.to_thread(ground.join)
        assert old_master.ask("ROLE")[0] == "slave"
        async with locker_at(ground.redis_url) as locker:
            assert await (await locker.acquire("appointment:2", wait_s=LONG_S)).release()
