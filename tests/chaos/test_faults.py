"""All kinds of faults: what they say of themselves, and that each heals, also when it is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import json
from random import Random

import pytest

from tests.chaos.every_kind import EVERY_KIND
from tests.chaos.faults import KINDS, FaultMissed
from tests.chaos.faults.processes import draw_delay
from tests.chaos.small_world import LEASE_TTL_S, SmallWorld, in_thread

SCOPES = ("instance:<i>", "instances", "redis", "postgres", "link:<i>:redis", "link:<i>:database")
TARGETED = {
    "die",
    "die_later",
    "freeze",
    "delay",
    "flush",
    "redis_restart",
    "client_kill",
    "terminate_backend",
    "lose_commit_reply",
    "lose_commit_request",
    "lose_redis_reply",
}
FORGETFUL = {
    "flush",
    "redis_restart",
    "redis_down",
    "sentinel_kill_master",
    "sentinel_freeze_master",
    "sentinel_failover",
    "cluster_kill_master",
    "cluster_failover",
    "split_brain",
    "redis_clock_forward",
    "redis_clock_back",
}
BEGUN_S = 0.05


def test_there_are_the_kinds_that_are_fired_at_points_and_as_many_by_time() -> None:
    assert {kind.name for kind in KINDS.values() if kind.targeted} == TARGETED
    assert sum(kind.ambient for kind in KINDS.values()) >= 25


def test_only_what_loses_the_stores_data_or_moves_its_clock_forgets() -> None:
    assert {kind.name for kind in EVERY_KIND.values() if kind.forgets} == FORGETFUL


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_says_what_it_does_and_harms(name: str) -> None:
    kind = KINDS[name]
    assert kind.name == name
    assert kind.targeted or kind.ambient
    assert kind.scope in SCOPES
    assert kind.does.endswith(".")


@pytest.mark.parametrize("name", KINDS)
def test_what_is_drawn_follows_from_the_seed_and_may_stand_in_a_file(name: str) -> None:
    drawn = [KINDS[name].draw(Random(seed), LEASE_TTL_S) for seed in range(200)]
    assert drawn == [KINDS[name].draw(Random(seed), LEASE_TTL_S) for seed in range(200)]
    assert json.loads(json.dumps(drawn)) == drawn
    assert all(0.08 <= parameters.get("lasts_s", 0.1) <= 1.3 for parameters in drawn)


def test_a_delay_is_always_shorter_than_a_lease() -> None:
    assert all(draw_delay(Random(seed), LEASE_TTL_S)["delay_ms"] < LEASE_TTL_S * 1000 for seed in range(1000))


@pytest.mark.parametrize("name", [kind.name for kind in KINDS.values() if kind.ambient])
async def test_a_fault_by_time_is_healed_when_it_is_cancelled(world: SmallWorld, name: str) -> None:
    kind = KINDS[name]
    fault = {"kind": name, "instance": 1, **kind.draw(Random(1), LEASE_TTL_S)}
    task = asyncio.ensure_future(kind.run(world, fault, world.instances[1]))
    await asyncio.wait({task}, timeout=BEGUN_S)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, FaultMissed):
        await task
    await in_thread(world.check_whole)
