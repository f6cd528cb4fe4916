"""Faults of instances: killed, stopped, held up, restarted."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

from tests.chaos.faults.kinds import Fault, FaultKind, InstanceHandle, World, to_its_end

MOST_OF_A_LEASE = 0.8
LONGEST_LATER_MS = 5.0
WAITER_WAIT_S = 0.08  # for a takeover there has to be somebody who takes over


async def die(world: World, fault: Fault, target: InstanceHandle) -> None:
    """Killed, as soon as somebody waits for what it holds; the next life serves."""
    await target.somebody_waits(within_s=WAITER_WAIT_S)
    await to_its_end(target.kill())


async def die_later(world: World, fault: Fault, target: InstanceHandle) -> None:
    """Killed a moment after the point."""
    await asyncio.sleep(fault["delay_ms"] / 1000)
    await to_its_end(target.kill())


async def freeze(world: World, fault: Fault, target: InstanceHandle) -> None:
    """Stopped, its connections open, and thawed."""
    target.freeze()
    try:
        await asyncio.sleep(fault["leases"] * world.lease_ttl_s)
    finally:
        target.thaw()


async def delay(world: World, fault: Fault, target: InstanceHandle) -> None:
    """The target stands still at its point as long as this runs."""
    await asyncio.sleep(fault["delay_ms"] / 1000)


async def rolling_restart(world: World, fault: Fault, target: InstanceHandle | None) -> None:
    """One instance after the other."""
    for instance in world.instances.values():
        await to_its_end(instance.drain())


def draw_later(rng: Random, lease_ttl_s: float) -> dict[str, Any]:
    """A moment."""
    return {"delay_ms": round(rng.uniform(0.0, LONGEST_LATER_MS), 2)}


def draw_freeze(rng: Random, lease_ttl_s: float) -> dict[str, Any]:
    """Shorter than a lease, or longer."""
    leases = round(rng.uniform(0.3, 1.6), 2)
    return {"leases": leases, "lasts_s": round(leases * lease_ttl_s, 3)}


def draw_delay(rng: Random, lease_ttl_s: float) -> dict[str, Any]:
    """Always shorter than a lease."""
    return {"delay_ms": round(rng.uniform(20.0, MOST_OF_A_LEASE * lease_ttl_s * 1000), 1)}


KINDS = (
    FaultKind(
        name="die",
        scope="instance:<i>",
        does="SIGKILL to the instance at the point; a new process takes its place.",
        run=die,
        targeted=True,
    ),
    FaultKind(
        name="die_later",
        scope="instance:<i>",
        does="SIGKILL to the instance 0 to 5 ms after it went on from the point.",
        run=die_later,
        draw=draw_later,
        targeted=True,
        lets_go=True,
    ),
    FaultKind(
        name="freeze",
        scope="instance:<i>",
        does="SIGSTOP to the instance at the point for 0.3 to 1.6 leases, its connections open.",
        run=freeze,
        draw=draw_freeze,
        targeted=True,
    ),
    FaultKind(
        name="delay",
        scope="instance:<i>",
        does="The instance's event loop stands still at the point for less than a lease.",
        run=delay,
        draw=draw_delay,
        targeted=True,
    ),
    FaultKind(
        name="freeze_ambient",
        scope="instance:<i>",
        does="SIGSTOP to an instance for 0.3 to 1.6 leases, wherever it is.",
        run=freeze,
        draw=draw_freeze,
        ambient=True,
    ),
    FaultKind(
        name="rolling_restart",
        scope="instances",
        does="SIGTERM to each instance, one after the other has come back, as a deployment does.",
        run=rolling_restart,
        ambient=True,
    ),
)
