"""Faults of the lock store: emptied, killed, stopped, paused, full, its clients cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from tests.chaos.faults.kinds import (
    Fault,
    FaultKind,
    FaultMissed,
    InstanceHandle,
    World,
    alone_with,
    draw_lasting,
    in_thread,
    to_its_end,
)
from tests.servers.redis_server import RedisServer
from tests.servers.wire import ErrorReply


@asynccontextmanager
async def _alone(world: World) -> AsyncIterator[RedisServer]:
    """The server, no other fault's meanwhile. Raises FaultMissed, also for a server that does not answer."""
    async with alone_with(world, "redis"):
        try:
            yield world.ground.valkey
        except (OSError, ErrorReply) as error:
            raise FaultMissed(f"Redis did not take it: {error}") from error


async def flush(world: World, fault: Fault, target: InstanceHandle | None) -> None:
    """Emptied."""
    async with _alone(world) as server:
        await in_thread(server.flush)


async def restart(world: World, fault: Fault, target: InstanceHandle | None) -> None:
    """Killed, and up again, empty."""
    async with _alone(world) as server:
        await in_thread(server.restart)


async def down(world: World, fault: Fault, target: InstanceHandle | None) -> None:
    """Killed, and up again, empty, after a while."""
    async with _alone(world) as server:
        try:
            await in_thread(server.kill)
            await asyncio.sleep(fault["lasts_s"])
        finally:
            await in_thread(server.start)


async def stop(world: World, fault: Fault, target: InstanceHandle | None) -> None:
    """Stopped, its connections open, and thawed."""
    async with _alone(world) as server:
        try:
            await in_thread(server.freeze)
            await asyncio.sleep(fault["leases"] * world.lease_ttl_s)
        finally:
            server.thaw()


async def client_kill(world: World, fault: Fault, target: InstanceHandle) -> None:
    """The target's connections are closed by the server."""
    async with _alone(world) as server:
        killed = await in_thread(_kill_clients, server, target.redis.upstream_ports())
    if not killed:
        raise FaultMissed("the instance has no connection to Redis")


def _kill_clients(server: RedisServer, ports: list[int]) -> int:
    with server.connect() as wire:
        return sum(int(wire.ask("CLIENT", "KILL", "ADDR", f"127.0.0.1:{port}")) for port in ports)


async def client_pause(world: World, fault: Fault, target: InstanceHandle | None) -> None:
    """Commands wait, all or those that write; it ends by itself, since its end would wait too."""
    async with _alone(world) as server:
        pause = in_thread(server.ask, "CLIENT", "PAUSE", round(fault["lasts_s"] * 1000), fault["mode"])
        await to_its_end(_then_wait(pause, fault["lasts_s"]))


async def _then_wait(begun: Any, wait_s: float) -> None:
    await begun
    await asyncio.sleep(wait_s)


async def maxmemory(world: World, fault: Fault, target: InstanceHandle | None) -> None:
    """What would take memory is refused."""
    async with _alone(world) as server:
        before = await in_thread(server.ask, "CONFIG", "GET", "maxmemory*")
        try:
            full = ("maxmemory-policy", "noeviction", "maxmemory", 1)
            await in_thread(server.ask, "CONFIG", "SET", *full)
            await asyncio.sleep(fault["lasts_s"])
        finally:
            settings = dict(zip(before[::2], before[1::2], strict=True))
            was = [word for name in ("maxmemory", "maxmemory-policy") for word in (name, settings[name])]
            await in_thread(server.ask, "CONFIG", "SET", *was)


async def script_flush(world: World, fault: Fault, target: InstanceHandle | None) -> None:
    """Its scripts are forgotten."""
    async with _alone(world) as server:
        await in_thread(server.ask, "SCRIPT", "FLUSH")


def draw_stop(rng: Random, lease_ttl_s: float) -> dict[str, Any]:
    """Shorter than a lease, or longer."""
    leases = round(rng.uniform(0.3, 1.6), 2)
    return {"leases": leases, "lasts_s": round(leases * lease_ttl_s, 3)}


def draw_pause(rng: Random, lease_ttl_s: float) -> dict[str, Any]:
    """Which commands, and how long."""
    return {"mode": rng.choice(("ALL", "WRITE")), "lasts_s": round(rng.uniform(0.1, 1.0), 3)}


KINDS = (
    FaultKind(
        name="flush",
        scope="redis",
        does="FLUSHALL: every lock, queue and token is gone while its holder believes in it.",
        run=flush,
        targeted=True,
        ambient=True,
        forgets=True,
    ),
    FaultKind(
        name="redis_restart",
        scope="redis",
        does="SIGKILL to Redis and an empty start on the same port.",
        run=restart,
        targeted=True,
        ambient=True,
        forgets=True,
    ),
    FaultKind(
        name="redis_down",
        scope="redis",
        does="SIGKILL to Redis, nobody on its port for up to a second, then an empty start.",
        run=down,
        draw=draw_lasting(0.3, 1.0),
        ambient=True,
        forgets=True,
    ),
    FaultKind(
        name="redis_stop",
        scope="redis",
        does="SIGSTOP to Redis for 0.3 to 1.6 leases: its connections are open, and nothing answers.",
        run=stop,
        draw=draw_stop,
        ambient=True,
    ),
    FaultKind(
        name="client_kill",
        scope="link:<i>:redis",
        does="CLIENT KILL of every connection of one instance to Redis.",
        run=client_kill,
        targeted=True,
        ambient=True,
    ),
    FaultKind(
        name="client_pause",
        scope="redis",
        does="CLIENT PAUSE: commands, all or the writing ones, wait for up to a second.",
        run=client_pause,
        draw=draw_pause,
        ambient=True,
    ),
    FaultKind(
        name="maxmemory",
        scope="redis",
        does="maxmemory 1 with noeviction: Redis answers, and refuses what would take memory.",
        run=maxmemory,
        draw=draw_lasting(0.2, 1.0),
        ambient=True,
    ),
    FaultKind(
        name="script_flush",
        scope="redis",
        does="SCRIPT FLUSH: Redis knows none of the scripts by their names any more.",
        run=script_flush,
        ambient=True,
    ),
)
