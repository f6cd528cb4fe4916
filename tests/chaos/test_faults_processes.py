"""Faults of instances, on processes that do nothing but live."""

from __future__ import annotations

import asyncio
import signal
import time

from tests.chaos.faults import KINDS
from tests.chaos.faults.processes import draw_later
from tests.chaos.small_world import LEASE_TTL_S, SmallWorld
from tests.harness import wait_until_async


async def test_one_that_dies_is_killed_and_begins_a_new_life(world: SmallWorld) -> None:
    target, other = world.instances[1], world.instances[2]
    before = target.pid
    await KINDS["die"].run(world, {}, target)
    assert (target.ends, other.ends) == ([-signal.SIGKILL], [])
    assert target.pid != before


async def test_one_that_dies_later_is_killed_a_moment_after_it_has_gone_on(world: SmallWorld) -> None:
    target = world.instances[1]
    assert KINDS["die_later"].lets_go
    begun_at_s = time.monotonic()
    await KINDS["die_later"].run(world, {"delay_ms": 5.0}, target)
    assert target.ends == [-signal.SIGKILL]
    assert time.monotonic() - begun_at_s > 0.005
    assert 0.0 <= draw_later(world.rng, LEASE_TTL_S)["delay_ms"] <= 5.0


async def test_one_that_freezes_stands_still_for_so_many_leases(world: SmallWorld) -> None:
    target = world.instances[1]
    for name in ("freeze", "freeze_ambient"):
        begun_at_s = time.monotonic()
        freezing = asyncio.ensure_future(KINDS[name].run(world, {"leases": 0.5}, target))
        await wait_until_async(lambda: asyncio.sleep(0, target.stands_still()))
        assert not world.instances[2].stands_still()
        await freezing
        assert time.monotonic() - begun_at_s > 0.5 * LEASE_TTL_S
        await wait_until_async(lambda: asyncio.sleep(0, not target.stands_still()))
    assert target.ends == []


async def test_a_delay_keeps_its_instance_and_does_nothing_to_it(world: SmallWorld) -> None:
    target = world.instances[1]
    begun_at_s = time.monotonic()
    await KINDS["delay"].run(world, {"delay_ms": 40.0}, target)
    assert time.monotonic() - begun_at_s > 0.04
    assert target.ends == []
    assert not KINDS["delay"].lets_go


async def test_a_rolling_restart_drains_one_after_the_other(world: SmallWorld) -> None:
    before = {number: instance.pid for number, instance in world.instances.items()}
    rolling = asyncio.ensure_future(KINDS["rolling_restart"].run(world, {}, world.instances[1]))
    await wait_until_async(lambda: asyncio.sleep(0, world.instances[1].ends))
    assert world.instances[2].ends == []
    await rolling
    for number, instance in world.instances.items():
        assert instance.ends == [0]
        assert instance.pid != before[number]
