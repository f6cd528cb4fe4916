"""Connections that are killed, and keys in foreign hands: who holds keeps it, and who waits is woken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
import redis_lock

from locks import Locker
from locks.events import Acquired, Extended, Lost, WakeSource
from locks.link import LONGEST_BACKOFF_S
from tests.conftest import ReportFigures
from tests.harness import PATIENCE_S, wait_until_async
from tests.integration.lock_faults import LONG_MS, SOON_S, Timed, locking_through, stand
from tests.integration.test_locker import Heard, Keys, locking
from tests.proxy import Cut, Proxy
from tests.servers.redis_server import RedisServer


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", redis_server.port) as proxy:
        yield proxy


# Connections that are killed

COMMANDS, MESSAGES = ("normal",), ("pubsub",)
which_ones = pytest.mark.parametrize(
    "kinds", [COMMANDS, MESSAGES, COMMANDS + MESSAGES], ids=["commands", "messages", "both"]
)


@which_ones
async def test_killed_connections_cost_a_waiter_none_of_its_wake_ups(
    redis_server: RedisServer, name: str, keys: Keys, kinds: tuple[str, ...]
) -> None:
    """A handoff and a change of the key wake it as before; its heartbeat of 20 s does not come into it."""
    heard = Heard()
    async with (
        locking(redis_server.url, alive_ms=LONG_MS) as holding,
        locking(redis_server.url, heard=heard, alive_ms=LONG_MS) as locker,
    ):
        lease = await holding.acquire(name, lease_ttl_s=600)
        waiting = [asyncio.create_task(locker.acquire(name, lease_ttl_s=600)) for _ in range(2)]
        await stand(keys, 1)
        await killed(keys, kinds, (holding, locker))

        assert await lease.release()

        lease = await asyncio.wait_for(waiting[0], SOON_S)
        assert heard.all(Acquired)[-1].wake_source is WakeSource.HANDOFF
        await stand(keys, 1)
        await killed(keys, kinds, (holding, locker))
        keys.client.delete(keys.lock)
        lease = await asyncio.wait_for(waiting[1], SOON_S)
        assert heard.all(Acquired)[-1].wake_source is WakeSource.TRACKING
        assert await lease.release()


async def test_changes_are_heard_of_again_however_soon_one_connection_was_lost_after_the_other(
    redis_server: RedisServer, name: str, keys: Keys
) -> None:
    """The one for messages is back before the one for commands then, or behind it, or just meanwhile."""
    heard = Heard()
    async with locking(redis_server.url, heard=heard, alive_ms=LONG_MS) as locker:
        keys.client.set(keys.lock, "another", px=600_000)
        waiting = asyncio.create_task(locker.acquire(name, lease_ttl_s=600))
        await stand(keys, 1)
        (node,) = locker._servers.nodes()

        async def tracks() -> bool:
            return node.commands.is_up and node.messages.is_up and node._tracks

        for ticks in range(12):
            await asyncio.sleep(1.5 * LONGEST_BACKOFF_S)  # what has lasted for so long is connected again at once
            node.messages.drop("a test drops it")
            for _ in range(ticks):
                await asyncio.sleep(0)
            node.commands.drop("a test drops it")
            await wait_until_async(tracks, what=f"news of changes, after {ticks} ticks")
        keys.client.delete(keys.lock)
        assert await (await asyncio.wait_for(waiting, SOON_S)).release()
    assert heard.all(Acquired)[-1].wake_source is WakeSource.TRACKING


@which_ones
async def test_killed_connections_cost_a_holder_nothing(
    redis_server: RedisServer, name: str, keys: Keys, kinds: tuple[str, ...]
) -> None:
    heard = Heard()
    async with locking(redis_server.url, heard=heard) as locker:
        async with locker.hold(name, lease_ttl_s=3.0) as lease:
            for _ in range(3):
                await killed(keys, kinds, (locker,))
            await heard.count(Extended, len(heard.all(Extended)) + 2)
            assert keys.holder() == lease.lease_id
            assert lease.loss_reason is None
        await keys.gone()
    assert heard.all(Lost) == []


async def test_a_handoff_while_the_message_connection_is_away_is_found_by_the_next_heartbeat(
    redis_server: RedisServer, proxy: Proxy, name: str, keys: Keys, report_figures: ReportFigures
) -> None:
    heard, found_after_ms = Timed(), []
    async with (
        locking(redis_server.url) as holding,
        locking_through(proxy, heard, alive_ms=900) as locker,
    ):
        for _ in range(5):
            lease = await holding.acquire(name, lease_ttl_s=600)
            waiting = asyncio.create_task(locker.acquire(name, lease_ttl_s=600))
            await stand(keys, 1)
            proxy.cut_once(Cut.BEFORE_FORWARDING, at=b"SUBSCRIBE", then_away=True)
            kill(keys, MESSAGES, but=holding)
            assert await asyncio.to_thread(proxy.cut_happened.wait, PATIENCE_S)
            released_at_s = time.monotonic()
            assert await lease.release()

            lease = await asyncio.wait_for(waiting, SOON_S)

            found_after_ms.append((heard.last_at_s(Acquired) - released_at_s) * 1000)
            proxy.come_back()
            assert await locker.up_within(PATIENCE_S)
            assert await lease.release()
    report_figures("handoff while the message connection is away, until it is found", found_after_ms)


# The lock's key in foreign hands


@pytest.mark.parametrize("end", ["release", "reset", "DEL", "FLUSHALL"])
async def test_the_end_of_a_foreign_hold_wakes_the_first_in_line_by_tracking(
    redis_server: RedisServer, name: str, keys: Keys, end: str
) -> None:
    heard = Heard()
    theirs = redis_lock.Lock(keys.client, f"{{{name}}}", expire=600)
    async with locking(redis_server.url, heard=heard, alive_ms=LONG_MS) as locker:
        for _ in range(3):
            assert theirs.acquire(blocking=False)
            waiting = asyncio.create_task(locker.acquire(name, lease_ttl_s=600))
            await stand(keys, 1)

            match end:
                case "release":
                    theirs.release()
                case "reset":
                    theirs.reset()
                case "DEL":
                    keys.client.delete(keys.lock)
                case _:
                    keys.client.flushall()

            lease = await asyncio.wait_for(waiting, SOON_S)
            assert await lease.release()

    assert [event.wake_source for event in heard.all(Acquired)] == [WakeSource.TRACKING] * 3


async def test_a_lock_set_by_a_foreign_hand_is_waited_for_and_its_end_wakes_by_tracking(
    redis_server: RedisServer, name: str, keys: Keys
) -> None:
    heard, looks = Heard(), 0
    async with locking(redis_server.url, alive_ms=LONG_MS) as holding:
        lease = await holding.acquire(name, lease_ttl_s=600)
        async with locking(redis_server.url, heard=heard, alive_ms=LONG_MS) as locker:
            waiting = asyncio.create_task(locker.acquire(name, lease_ttl_s=600))
            await stand(keys, 1)
            for number in range(3):
                looks = scripts_run(redis_server)
                keys.client.set(keys.lock, f"another {number}", px=600_000)
                await looked(redis_server, looks)
            assert not waiting.done()

            keys.client.delete(keys.lock)

            assert await (await asyncio.wait_for(waiting, SOON_S)).release()
        assert await lease.release() is False
    assert [event.wake_source for event in heard.all(Acquired)] == [WakeSource.TRACKING]


# Helpers


def kill(keys: Keys, kinds: tuple[str, ...], *, but: Locker | None = None) -> None:
    """Kills every connection of these kinds, except our own and those that `but` listens on."""
    spared = set()
    if but is not None:
        (node,) = but._servers.nodes()
        spared = {str(node._listener_id)}
    for kind in kinds:
        for each in keys.client.client_list(_type=kind):
            if each["id"] not in spared and each["id"] != str(keys.client.client_id()):
                keys.client.client_kill_filter(_id=each["id"])


async def killed(keys: Keys, kinds: tuple[str, ...], lockers: tuple[Locker, ...]) -> None:
    """Kills every connection of these kinds, and waits until they are back and watch again what they watched."""
    count = len(lockers) * len(kinds)

    async def back() -> bool:
        return len({each["id"] for each in keys.client.client_list()} - before) >= count

    async def watching() -> bool:
        lines = [line for locker in lockers for line in locker._lines.by_name.values()]
        return all(line._watched and line.asked is None for line in lines)

    await wait_until_async(watching, what="the first in line to watch the key")
    before = {each["id"] for each in keys.client.client_list()}
    kill(keys, kinds)
    await wait_until_async(back, what=f"{count} new connections")
    for locker in lockers:
        assert await locker.up_within(PATIENCE_S)
    await wait_until_async(watching, what="the first in line to watch the key")


def scripts_run(server: RedisServer) -> int:
    """How many script calls the server has had."""
    return int(server.info("commandstats").get("cmdstat_evalsha", "calls=0").split(",")[0].partition("=")[2])


async def looked(server: RedisServer, before: int) -> None:
    """Waits for one more."""

    async def once_more() -> bool:
        return scripts_run(server) > before

    await wait_until_async(once_more, what="another look")
