"""Faults of one instance's connections, by real proxies to a real Valkey and a real Postgres."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from tests.chaos.faults import KINDS, FaultMissed, network
from tests.chaos.small_world import SmallInstance, SmallWorld, ask, in_thread
from tests.harness import wait_until

SERVERS = ("redis", "database")
LASTS_S = 0.2


class Peer:
    """An instance's connection to one of its servers."""

    def __init__(self, instance: SmallInstance, server: str) -> None:
        if server == "redis":
            client = instance.redis_client()
            self.close: Callable[[], None] = client.close
            self._count: Callable[[], Any] = lambda: client.ask("INCR", "peer")
        else:
            session = instance.session()
            self.close = session.close
            self._count = lambda: ask(session, "SELECT 1")

    def is_answered(self) -> bool:
        """Whether its request is; blocks as long as that takes. Raises OSError, psycopg2.Error."""
        return bool(self._count())

    def is_lost(self) -> bool:
        """Whether the connection is gone."""
        try:
            self.is_answered()
        except (OSError, psycopg2.Error):
            return True
        return False


@pytest.fixture
async def fire(world: SmallWorld) -> Callable[..., Any]:
    """Fires a fault at the first instance; its beginning is done when this returns."""

    async def fire(name: str, **parameters: Any) -> asyncio.Future[None]:
        running = asyncio.ensure_future(KINDS[name].run(world, parameters, world.instances[1]))
        await asyncio.sleep(0)
        return running

    return fire


@pytest.fixture(params=SERVERS)
async def server(request: pytest.FixtureRequest) -> str:
    """Each of an instance's servers."""
    return str(request.param)


async def peers(world: SmallWorld, server: str) -> tuple[Peer, Peer]:
    """The first instance's, and the second's, both answered once."""
    pair = [await in_thread(Peer, world.instances[number], server) for number in (1, 2)]
    for peer in pair:
        assert await in_thread(peer.is_answered)
    return pair[0], pair[1]


async def test_a_delay_is_there_each_way(world: SmallWorld, fire: Callable[..., Any], server: str) -> None:
    theirs, anothers = await peers(world, server)
    delayed = await fire(f"link_delay_{server}", delay_ms=100.0, lasts_s=LASTS_S)
    begun_at_s = time.monotonic()
    assert await in_thread(theirs.is_answered)
    assert time.monotonic() - begun_at_s > 0.2
    assert await in_thread(anothers.is_answered)
    await delayed
    theirs.close()
    anothers.close()


async def test_a_cut_loses_one_instances_connections(world: SmallWorld, fire: Callable[..., Any], server: str) -> None:
    theirs, anothers = await peers(world, server)
    await (await fire(f"link_cut_{server}"))
    assert await in_thread(theirs.is_lost)
    assert not await in_thread(anothers.is_lost)
    theirs.close()
    anothers.close()


async def test_a_cut_of_nothing_is_missed(fire: Callable[..., Any], server: str) -> None:
    with pytest.raises(FaultMissed, match="no connection"):
        await (await fire(f"link_cut_{server}"))


@pytest.mark.parametrize("name", ["link_hold", "one_way_hold_requests", "one_way_hold_replies"])
async def test_silence_ends_with_the_fault(world: SmallWorld, fire: Callable[..., Any], server: str, name: str) -> None:
    theirs, anothers = await peers(world, server)
    begun_at_s = time.monotonic()
    held = await fire(f"{name}_{server}", lasts_s=LASTS_S)
    assert await in_thread(anothers.is_answered)
    answered = asyncio.ensure_future(in_thread(theirs.is_answered))
    if server == "redis":  # which way it is can be told by what the server has done
        expected = 3 if name == "one_way_hold_replies" else 2
        await in_thread(wait_until, lambda: int(world.ground.valkey.ask("GET", "peer")) >= expected)
        assert (answered.done(), held.done()) == (False, False)
    assert await answered
    assert time.monotonic() - begun_at_s > LASTS_S
    await held
    theirs.close()
    anothers.close()


async def test_while_it_refuses_there_is_no_connection_to_be_had(
    world: SmallWorld, fire: Callable[..., Any], server: str
) -> None:
    theirs, anothers = await peers(world, server)
    refused = await fire(f"link_refuse_{server}", lasts_s=LASTS_S)
    assert await in_thread(theirs.is_lost)
    with pytest.raises((ConnectionRefusedError, psycopg2.OperationalError)):
        await in_thread(Peer, world.instances[1], server)
    assert not await in_thread(anothers.is_lost)
    await refused
    again = await in_thread(Peer, world.instances[1], server)
    assert await in_thread(again.is_answered)
    for peer in (theirs, anothers, again):
        peer.close()


@pytest.mark.parametrize(("name", "is_there"), [("lose_commit_reply", True), ("lose_commit_request", False)])
async def test_a_lost_commit_is_done_or_not_and_never_answered(
    world: SmallWorld, fire: Callable[..., Any], name: str, is_there: bool
) -> None:
    assert KINDS[name].lets_go
    session = await in_thread(world.instances[1].session)
    changing = "UPDATE appointment_info SET lock_fence = 77 WHERE id = %s"
    await in_thread(ask, session, "BEGIN")
    await in_thread(ask, session, changing, world.appointment_id)
    lost = await fire(name)
    with pytest.raises(psycopg2.OperationalError):
        await in_thread(ask, session, "COMMIT")
    await lost
    session.close()
    with closing(await in_thread(world.instances[2].session)) as other:
        # The row's lock is free when the lost session has ended.
        seen = "SELECT lock_fence FROM appointment_info WHERE id = %s FOR UPDATE"
        assert (await in_thread(ask, other, seen, world.appointment_id) == [(77,)]) == is_there


async def test_a_lost_reply_of_redis_is_of_a_command_that_is_done(world: SmallWorld, fire: Callable[..., Any]) -> None:
    client = await in_thread(world.instances[1].redis_client)
    assert await in_thread(client.ask, "SET", "counter", 1) == "OK"
    lost = await fire("lose_redis_reply")
    with pytest.raises(OSError, match="reset"):
        await in_thread(client.ask, "INCR", "counter")
    await lost
    client.close()
    assert world.ground.valkey.ask("GET", "counter") == "2"


@pytest.mark.parametrize("name", ["lose_commit_reply", "lose_commit_request", "lose_redis_reply"])
async def test_a_trap_that_nobody_meets_is_missed_and_gone(
    world: SmallWorld, fire: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(network, "TRAP_WAIT_S", 0.05)
    with pytest.raises(FaultMissed, match="came within"):
        await (await fire(name))
    await in_thread(world.check_whole)
