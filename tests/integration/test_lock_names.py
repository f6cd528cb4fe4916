"""Servers that are given by names: with several addresses, some of them dead, and with addresses that change."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from locks import LeaseLost, LockBusy, Locker, LockStoreDown
from locks.compat import SafeLock, client
from locks.events import StoreLost
from locks.keys import keys_of
from locks.link import LOOK_UP_EVERY_S
from tests.harness import PATIENCE_S, wait_until_async
from tests.integration.test_locker import Heard
from tests.servers.cluster import Cluster, alone_settings, give_all_slots
from tests.servers.fixtures import StartRedis
from tests.servers.kinds import server_binary
from tests.servers.names import LOOPS, Resolver, black_hole, mute_server, nobody
from tests.servers.redis_server import RedisServer
from tests.servers.wire import Wire

HERE, BESIDE, DEAD = "127.0.0.1", "127.0.0.2", "127.0.0.3"
SOON_S = 0.1  # an interval of look-ups for tests
NAME = "appointment:42"


@pytest.fixture
def resolver() -> Resolver:
    return Resolver()


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest, resolver: Resolver) -> Callable[[Awaitable[None]], None]:
    """Runs a coroutine on an event loop of each kind whose names are the resolver's."""

    def run(work: Any) -> None:
        with asyncio.Runner(loop_factory=resolver.loop_factory(request.param)) as runner:
            runner.run(work)

    return run


def looking(url: str, heard: Heard | None = None, **options: Any) -> Locker:
    """A locker that looks its names up often."""
    return Locker(url, instance_id="test", look_up_every_s=SOON_S, listener=heard or Heard(), **options)


async def looked_up(resolver: Resolver, times: int = 5) -> None:
    """Returns once names were looked up so often from now on."""
    before = resolver.asked

    async def often_enough() -> bool:
        return resolver.asked >= before + times

    await wait_until_async(often_enough, what="look-ups")


# Several addresses


@pytest.mark.parametrize("dead", [black_hole, mute_server, nobody])
@pytest.mark.parametrize("kind", ["one server", "sentinel", "cluster"])
def test_a_dead_address_of_a_name_keeps_nobody_from_the_others(
    dead: Any, kind: str, run: Any, resolver: Resolver, start_redis: StartRedis
) -> None:
    settings = alone_settings() if kind == "cluster" else []
    server = asked = start_redis(settings=settings)
    url = "redis://{}/0"
    if kind == "sentinel":
        watching = [f"sentinel monitor mymaster {HERE} {server.port} 1"]
        asked, url = start_redis(settings=watching, arguments=["--sentinel"]), "redis+sentinel://{}/mymaster"
    if kind == "cluster":
        give_all_slots(server)
        url = "redis+cluster://{}"
    resolver.addresses["store"] = [DEAD, HERE]

    async def hold() -> None:
        store = Locker.connect(url.format(f"store:{asked.port}"), instance_id="test")
        async with store as locker, locker.hold(NAME):
            assert await is_locked(server)

    with dead(DEAD, asked.port):
        run(hold())


def test_what_all_addresses_of_a_name_said_is_told(run: Any, resolver: Resolver, redis_server: RedisServer) -> None:
    resolver.addresses["store"] = [BESIDE, DEAD]

    async def connect() -> None:
        async with Locker.connect(f"redis://store:{redis_server.port}", instance_id="test"):
            pass

    with mute_server(BESIDE, redis_server.port), pytest.raises(LockStoreDown) as caught:
        run(connect())
    assert "refused" in str(caught.value).lower() or "no answer" in str(caught.value)


def test_a_name_that_is_not_known_is_told(run: Any) -> None:
    async def connect() -> None:
        async with Locker.connect("redis://no-such-store", instance_id="test"):
            pass

    with pytest.raises(LockStoreDown, match=r"the name no-such-store cannot be looked up: .*Temporary failure"):
        run(connect())


def test_safe_lock_reaches_the_second_address_of_a_name(
    resolver: Resolver, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver.addresses["store"] = [DEAD, HERE]
    monkeypatch.setattr(socket, "getaddrinfo", resolver.found)
    url = f"redis://store:{redis_server.port}"
    # redis-py has a deadline an address, which is the socket timeout; where it has none, SafeLock gives it one.
    for given in (client(url, socket_timeout_s=0.5), redis.Redis.from_url(url, socket_timeout=None)):
        with black_hole(DEAD, redis_server.port), given, SafeLock(given, NAME):
            pass


# Addresses that change


@pytest.fixture
def two_servers(start_redis: StartRedis) -> tuple[RedisServer, RedisServer]:
    """Two servers that know nothing of each other, on one port of two addresses."""
    here = start_redis(host=HERE)
    return here, start_redis(host=BESIDE, port=here.port)


def test_a_name_that_leads_elsewhere_is_followed_although_the_old_server_lives(
    run: Any, resolver: Resolver, two_servers: tuple[RedisServer, RedisServer]
) -> None:
    old, new = two_servers
    resolver.addresses["store"] = [HERE]
    url = f"redis://store:{old.port}"

    async def move() -> None:
        async with looking(url) as one:
            holding = asyncio.create_task(held_until_lost(one))
            await wait_until_async(lambda: is_locked(old), what="a lease on the old server")
            resolver.addresses["store"] = [BESIDE]
            await wait_until_async(lambda: on_both(one, new), what="both connections on the new server")
            async with looking(url) as other, other.hold(NAME, lease_ttl_s=60):
                await asyncio.wait_for(holding, PATIENCE_S)
                with pytest.raises(LockBusy):
                    await one.acquire(NAME, wait_s=0)
            assert clients(old) == 0

    run(move())


async def held_until_lost(locker: Locker) -> None:
    """Holds the lock until that is found out to be so no longer."""
    with pytest.raises(LeaseLost):
        async with locker.hold(NAME, lease_ttl_s=3):
            await asyncio.sleep(PATIENCE_S)


async def is_locked(server: RedisServer) -> bool:
    return bool(server.ask("EXISTS", keys_of(NAME).lock))


async def on_both(locker: Locker, server: RedisServer) -> bool:
    links = [link for node in locker._servers.nodes() for link in (node.commands, node.messages)]
    return all(link.is_up and (link.address.ip, link.address.port) == (server.host, server.port) for link in links)


def clients(server: RedisServer) -> int:
    """How many others than us are connected."""
    return len(server.ask("CLIENT", "LIST").splitlines()) - 1


def test_a_server_that_stays_among_a_names_addresses_stays(
    run: Any, resolver: Resolver, two_servers: tuple[RedisServer, RedisServer]
) -> None:
    old, new = two_servers
    resolver.addresses["store"] = [HERE]
    heard = Heard()

    async def stay() -> None:
        async with looking(f"redis://store:{old.port}", heard) as locker, locker.hold(NAME, lease_ttl_s=60):
            resolver.addresses["store"] = [BESIDE, HERE]
            await looked_up(resolver)
            assert heard.all(StoreLost) == []
            assert (clients(old), clients(new)) == (2, 0)

    run(stay())


def test_both_connections_go_to_the_same_address(
    run: Any, resolver: Resolver, two_servers: tuple[RedisServer, RedisServer]
) -> None:
    old, new = two_servers
    resolver.addresses["store"] = [HERE, BESIDE]

    async def connect() -> None:
        async with looking(f"redis://store:{old.port}") as locker:
            resolver.addresses["store"].reverse()
            locker._servers.node_of(NAME).messages.drop("dropped by the test")
            await wait_until_async(lambda: on_both(locker, old), what="both connections on the first server")
            assert clients(new) == 0

    run(connect())


def test_a_name_that_cannot_be_looked_up_costs_no_connection(
    run: Any, resolver: Resolver, redis_server: RedisServer
) -> None:
    resolver.addresses["store"] = [HERE]
    heard = Heard()

    async def stay() -> None:
        async with looking(f"redis://store:{redis_server.port}", heard) as locker, locker.hold(NAME, lease_ttl_s=60):
            resolver.broken = True
            await looked_up(resolver)
            assert heard.all(StoreLost) == []

    run(stay())


def test_a_look_up_that_hangs_is_begun_once_and_keeps_nobody(
    run: Any, resolver: Resolver, start_redis: StartRedis
) -> None:
    master = start_redis()
    sentinel = start_redis(settings=[f"sentinel monitor mymaster {HERE} {master.port} 1"], arguments=["--sentinel"])
    resolver.addresses["good"] = [HERE]
    resolver.stuck["stuck"] = 0

    async def look() -> None:
        async with looking(f"redis+sentinel://stuck:{sentinel.port},good:{sentinel.port}/mymaster") as locker:
            await looked_up(resolver)  # of the good one, beside which the other is asked for too
            async with locker.hold(NAME):
                assert await is_locked(master)

    run(asyncio.wait_for(look(), PATIENCE_S))
    assert resolver.stuck["stuck"] == 1


def test_an_address_that_is_no_name_is_not_looked_up(run: Any, resolver: Resolver, redis_server: RedisServer) -> None:
    async def connect() -> None:
        async with looking(redis_server.url) as locker:
            await asyncio.sleep(3 * SOON_S)
            assert locker.is_up

    run(connect())
    assert resolver.asked == 0


def test_by_default_names_are_looked_up_every_five_seconds(resolver: Resolver, redis_server: RedisServer) -> None:
    resolver.addresses["store"] = [HERE]

    async def look() -> None:
        async with Locker.connect(f"redis://store:{redis_server.port}", instance_id="test"):
            before, began_at_s = resolver.asked, time.monotonic()
            await looked_up(resolver, 1)
            assert resolver.asked == before + 1
            assert time.monotonic() - began_at_s > LOOK_UP_EVERY_S / 2

    with asyncio.Runner(loop_factory=resolver.loop_factory("asyncio")) as runner:
        runner.run(look())
    assert LOOK_UP_EVERY_S == 5.0


# Sentinels and Clusters


async def test_a_master_that_most_sentinels_name_is_followed_although_the_old_one_lives(
    start_redis: StartRedis,
) -> None:
    old, new = start_redis(), start_redis()
    watching = [f"sentinel monitor mymaster {HERE} {old.port} 2"]
    sentinels = [start_redis(settings=watching, arguments=["--sentinel"]) for _ in range(3)]
    hosts = ",".join(f"{HERE}:{sentinel.port}" for sentinel in sentinels)
    heard = Heard()

    def points_elsewhere(sentinel: RedisServer) -> None:
        sentinel.ask("SENTINEL", "REMOVE", "mymaster")
        sentinel.ask("SENTINEL", "MONITOR", "mymaster", HERE, new.port, 2)

    async with looking(f"redis+sentinel://{hosts}/mymaster", heard) as locker:
        points_elsewhere(sentinels[0])
        with sentinels[0].connect() as wire:
            asked = connections_made(wire)

            async def often_asked() -> bool:
                return connections_made(wire) >= asked + 10

            await wait_until_async(often_asked, what="questions to a Sentinel")
        assert heard.all(StoreLost) == [], "one Sentinel of three has moved us"

        points_elsewhere(sentinels[1])
        await wait_until_async(lambda: on_both(locker, new), what="both connections on the new master")


def connections_made(wire: Wire) -> int:
    """How many this server has taken so far."""
    found = re.search(r"total_connections_received:([0-9]+)", wire.ask("INFO", "stats"))
    assert found
    return int(found[1])


def test_a_name_that_leads_to_another_cluster_is_followed_although_the_old_one_lives(
    run: Any, resolver: Resolver, tmp_path: Path
) -> None:
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
    valkey = server_binary("valkey")
    with Cluster(valkey, tmp_path / "old") as old, Cluster(valkey, tmp_path / "new") as new:
        # One URL, which leads to the one or the other by the addresses of its two names.
        url = f"redis+cluster://old:{old.nodes[0].port},new:{new.nodes[0].port}"
        resolver.addresses.update(old=[HERE], new=[DEAD])

        async def move() -> None:
            async with looking(url) as locker:
                async with locker.hold(NAME):
                    assert await is_locked(old.node_of(keys_of(NAME).lock))
                resolver.addresses.update(old=[DEAD], new=[HERE])

                async def all_on_the_new() -> bool:
                    ports = {node.commands.address.port for node in locker._servers.nodes()}
                    return locker.is_up and ports == {node.port for node in new.nodes}

                await wait_until_async(all_on_the_new, what="connections to the new Cluster")
                async with locker.hold(NAME):
                    assert await is_locked(new.node_of(keys_of(NAME).lock))

        run(move())
