"""Faults of the lock store, on a real Valkey."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.chaos.faults import KINDS, FaultMissed
from tests.chaos.small_world import LEASE_TTL_S, SmallWorld, in_thread, is_refused, stands_still
from tests.harness import wait_until, wait_until_async
from tests.servers.wire import ErrorReply, Wire


@pytest.fixture
async def fire(world: SmallWorld) -> Callable[..., Any]:
    """Fires a fault at the first instance."""

    def fire(name: str, **parameters: Any) -> Any:
        return asyncio.ensure_future(KINDS[name].run(world, parameters, world.instances[1]))

    return fire


def server_pid(world: SmallWorld) -> int:
    """Valkey's; 0 when it is away."""
    process = world.ground.valkey.process
    return process.pid if process else 0


def is_lost(client: Wire) -> bool:
    """Whether the connection is gone."""
    try:
        return bool(client.ask("PING") != "PONG")
    except OSError:
        return True


async def test_a_flush_empties_a_server_that_goes_on(world: SmallWorld, fire: Callable[..., Any]) -> None:
    world.ground.valkey.ask("SET", "key", "value")
    before = server_pid(world)
    await fire("flush")
    assert world.ground.valkey.ask("DBSIZE") == 0
    assert server_pid(world) == before


async def test_a_restart_is_empty_and_on_the_same_port(world: SmallWorld, fire: Callable[..., Any]) -> None:
    world.ground.valkey.ask("SET", "key", "value")
    before = server_pid(world)
    await fire("redis_restart")
    client = await in_thread(world.instances[1].redis_client)
    assert await in_thread(client.ask, "DBSIZE") == 0
    client.close()
    assert server_pid(world) != before


async def test_while_it_is_down_nobody_is_on_its_port(world: SmallWorld, fire: Callable[..., Any]) -> None:
    world.ground.valkey.ask("SET", "key", "value")
    down = fire("redis_down", lasts_s=0.3)
    port = world.ground.valkey.port
    await in_thread(wait_until, lambda: is_refused(port))
    await down
    assert world.ground.valkey.ask("DBSIZE") == 0


async def test_while_it_is_stopped_connections_are_open_and_silent(world: SmallWorld, fire: Callable[..., Any]) -> None:
    client = await in_thread(world.instances[1].redis_client)
    assert await in_thread(client.ask, "PING") == "PONG"
    begun_at_s = time.monotonic()
    stopped = fire("redis_stop", leases=0.5)
    await wait_until_async(lambda: asyncio.sleep(0, stands_still(server_pid(world))))
    assert await in_thread(client.ask, "PING") == "PONG"
    assert time.monotonic() - begun_at_s > 0.5 * LEASE_TTL_S
    await stopped
    client.close()


async def test_a_client_kill_cuts_one_instance_only(world: SmallWorld, fire: Callable[..., Any]) -> None:
    theirs, anothers = [await in_thread(world.instances[number].redis_client) for number in (1, 2)]
    assert await in_thread(lambda: [client.ask("PING") for client in (theirs, anothers)]) == ["PONG", "PONG"]
    await fire("client_kill")
    assert await in_thread(is_lost, theirs)
    assert not await in_thread(is_lost, anothers)
    for client in (theirs, anothers):
        client.close()


async def test_a_client_kill_without_clients_is_missed(fire: Callable[..., Any]) -> None:
    with pytest.raises(FaultMissed, match="no connection"):
        await fire("client_kill")


@pytest.mark.parametrize("mode", ["ALL", "WRITE"])
async def test_a_pause_holds_up_commands(world: SmallWorld, fire: Callable[..., Any], mode: str) -> None:
    client = await in_thread(world.instances[1].redis_client)
    assert await in_thread(client.ask, "PING") == "PONG"
    begun_at_s = time.monotonic()
    paused = fire("client_pause", mode=mode, lasts_s=0.3)
    await wait_until_async(lambda: in_thread(_is_held_up, world.ground.valkey.port))
    if mode == "WRITE":
        assert await in_thread(client.ask, "GET", "nothing") is None
        assert not paused.done()
    assert await in_thread(client.ask, "SET", "key", "value") == "OK"
    assert time.monotonic() - begun_at_s > 0.3
    await paused
    client.close()


def _is_held_up(port: int) -> bool:
    with Wire(port) as client:
        client.say("SET", "key", "value")
        try:
            client.hear(answer_wait_s=0.02)
        except OSError:
            return True
    return False


async def test_a_full_store_answers_and_takes_nothing_more(world: SmallWorld, fire: Callable[..., Any]) -> None:
    valkey = world.ground.valkey
    before = valkey.ask("CONFIG", "GET", "maxmemory*")
    full = fire("maxmemory", lasts_s=0.2)
    await in_thread(wait_until, lambda: valkey.ask("CONFIG", "GET", "maxmemory")[1] == "1")
    with pytest.raises(ErrorReply, match="OOM"):
        await in_thread(valkey.ask, "SET", "key", "value")
    assert await in_thread(valkey.ask, "GET", "nothing") is None
    await full
    assert valkey.ask("CONFIG", "GET", "maxmemory*") == before
    assert valkey.ask("SET", "key", "value") == "OK"


async def test_a_script_flush_makes_it_forget_scripts(world: SmallWorld, fire: Callable[..., Any]) -> None:
    valkey = world.ground.valkey
    name = valkey.ask("SCRIPT", "LOAD", "return 7")
    assert valkey.ask("EVALSHA", name, 0) == 7
    await fire("script_flush")
    with pytest.raises(ErrorReply, match="NOSCRIPT"):
        valkey.ask("EVALSHA", name, 0)


async def test_a_server_has_one_fault_at_a_time(world: SmallWorld, fire: Callable[..., Any]) -> None:
    stopped = fire("redis_stop", leases=1.0)
    await wait_until_async(lambda: asyncio.sleep(0, stands_still(server_pid(world))))
    with pytest.raises(FaultMissed, match="another fault has redis"):
        await fire("flush")
    await stopped
    await fire("flush")
