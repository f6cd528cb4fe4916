"""Replies that are lost and connections that are killed: whoever was granted a lock has it, under one token, once."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
import redis_lock

from locks import Lease, Locker, LockStoreDown
from locks.events import Acquired, Extended, Lost, Unknown, WakeSource
from tests.conftest import ReportFigures
from tests.harness import PATIENCE_S, wait_until_async
from tests.integration.lock_faults import LONG_MS, SOON_S, Timed, keys_at, stand
from tests.integration.test_locker import Heard, Keys, locking
from tests.proxy import Cut, Proxy, Way
from tests.servers.redis_server import RedisServer

SILENT_S = 0.5  # when a connection whose reply was swallowed counts as silent

Lose = Callable[[Proxy], None]


def swallow_reply(proxy: Proxy) -> None:
    """The connection stays open and silent."""
    proxy.eat_reply_once(at=b"EVALSHA")


def cut_before_reply(proxy: Proxy) -> None:
    """The connection ends."""
    proxy.cut_once(Cut.AFTER_ANSWERED, at=b"EVALSHA")


def cut_before_request(proxy: Proxy) -> None:
    """The connection ends, and the server never hears of it."""
    proxy.cut_once(Cut.BEFORE_FORWARDING, at=b"EVALSHA")


both_ways = pytest.mark.parametrize("lose_reply", [swallow_reply, cut_before_reply])


@pytest.fixture
def name() -> str:
    """A lock's name that no other test uses."""
    return f"test:{uuid.uuid4().hex}"


@pytest.fixture
def keys(redis_server: RedisServer, name: str) -> Iterator[Keys]:
    with keys_at(redis_server.url, name) as keys:
        yield keys


@pytest.fixture
async def onlooker(redis_server: RedisServer) -> AsyncIterator[Locker]:
    """A locker on a connection of its own, which nothing happens to."""
    async with locking(redis_server.url) as locker:
        yield locker


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", redis_server.port) as proxy:
        yield proxy


@asynccontextmanager
async def locking_through(proxy: Proxy, heard: Heard | None = None, alive_ms: int = LONG_MS) -> AsyncIterator[Locker]:
    url = f"redis://127.0.0.1:{proxy.port}/0"
    async with locking(url, heard=heard, command_timeout_s=SILENT_S, alive_ms=alive_ms) as locker:
        # Commands that fail are asked again for as long as a slow machine needs.
        locker._lines.outage_wait_s = PATIENCE_S
        yield locker


# A reply that is lost


@both_ways
@pytest.mark.parametrize("count", [1, 5])
async def test_a_lost_reply_to_first_calls_gives_each_its_own_lease_under_its_one_token(
    onlooker: Locker, redis_server: RedisServer, proxy: Proxy, name: str, lose_reply: Lose, count: int
) -> None:
    async with locking_through(proxy) as locker:
        lose_reply(proxy)
        names = [f"{name}/{number}" for number in range(count)]

        acquiring = [asyncio.create_task(locker.acquire(each, lease_ttl_s=600)) for each in names]
        granted = [await first_grant(onlooker, each) for each in names]
        leases = await asyncio.wait_for(asyncio.gather(*acquiring), PATIENCE_S)

        assert [lease.fencing_token for lease in leases] == granted
        for lease in leases:
            with keys_at(redis_server.url, lease.name) as keys:
                await is_the_only_one(onlooker, keys, lease)


@both_ways
async def test_a_lost_reply_to_a_waiters_look_gives_it_its_lease_under_the_one_token(
    onlooker: Locker, proxy: Proxy, name: str, keys: Keys, lose_reply: Lose
) -> None:
    async with locking_through(proxy) as locker:
        keys.client.set(keys.lock, "another", px=LONG_MS)
        waiting = asyncio.create_task(locker.acquire(name, lease_ttl_s=600))
        await stand(keys, 1)
        lose_reply(proxy)

        keys.client.delete(keys.lock)

        granted = await first_grant(onlooker, name)
        lease = await asyncio.wait_for(waiting, PATIENCE_S)
        assert lease.fencing_token == granted
        await is_the_only_one(onlooker, keys, lease)


@both_ways
async def test_a_lost_reply_to_a_release_that_hands_over_gives_the_waiter_its_lease_under_the_one_token(
    onlooker: Locker, proxy: Proxy, name: str, keys: Keys, lose_reply: Lose
) -> None:
    async with locking_through(proxy) as locker:
        first = await locker.acquire(name, lease_ttl_s=600)
        waiting = [asyncio.create_task(locker.acquire(name, lease_ttl_s=600)) for _ in range(2)]
        await stand(keys, 1)
        lose_reply(proxy)

        releasing = asyncio.create_task(first.release())

        granted = await first_grant(onlooker, name, after=first.fencing_token)
        lease = await asyncio.wait_for(waiting[0], PATIENCE_S)
        with pytest.raises(LockStoreDown):
            await releasing
        assert lease.fencing_token == granted
        assert lease.fencing_token > first.fencing_token
        assert not waiting[1].done()
        assert await lease.release()
        await is_the_only_one(onlooker, keys, await asyncio.wait_for(waiting[1], SOON_S))


@pytest.mark.parametrize("lose", [swallow_reply, cut_before_reply, cut_before_request])
async def test_a_release_that_is_lost_leaves_nothing_held(proxy: Proxy, name: str, keys: Keys, lose: Lose) -> None:
    async with locking_through(proxy) as locker:
        lease = await locker.acquire(name, lease_ttl_s=600)
        lose(proxy)
        with pytest.raises(LockStoreDown):
            await lease.release()
        await keys.gone()


@pytest.mark.parametrize("waits", [True, False])
async def test_a_call_cancelled_before_its_lost_answer_is_given_back_on_the_next_connection(
    proxy: Proxy, name: str, keys: Keys, waits: bool
) -> None:
    async with locking_through(proxy) as locker:
        proxy.hold(Way.REPLIES)
        acquiring = asyncio.create_task(locker.acquire(name, lease_ttl_s=600, wait_s=None if waits else 0))
        await held(keys)
        acquiring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await acquiring
        proxy.go_away()
        proxy.let_through(Way.REPLIES)
        proxy.come_back()
        await keys.gone()


@both_ways
async def test_a_lost_reply_to_an_extend_leaves_the_lease_as_it_was(
    onlooker: Locker, proxy: Proxy, name: str, keys: Keys, lose_reply: Lose
) -> None:
    async with locking_through(proxy) as locker:
        lease = await locker.acquire(name, lease_ttl_s=100)
        token = lease.fencing_token
        lose_reply(proxy)
        with pytest.raises(LockStoreDown):
            await lease.extend(600)
        assert 0 < lease.remaining_s() < 100

        assert await locker.up_within(PATIENCE_S)
        await lease.extend(600)

        assert lease.remaining_s() > 500
        assert lease.fencing_token == token
        await is_the_only_one(onlooker, keys, lease)


@both_ways
async def test_a_lost_reply_to_a_renewal_is_unknown_and_asked_again(
    onlooker: Locker, proxy: Proxy, name: str, keys: Keys, lose_reply: Lose
) -> None:
    heard = Heard()
    async with locking_through(proxy, heard) as locker:
        lease = await locker.acquire(name, lease_ttl_s=6.0, keep_extended=True)
        lose_reply(proxy)
        await heard.count(Unknown, 1)
        await heard.count(Extended, 1)
        assert heard.all(Lost) == []
        await is_the_only_one(onlooker, keys, lease)


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


async def held(keys: Keys) -> None:
    """Waits until somebody holds it in Redis."""

    async def is_held() -> bool:
        return keys.holder() is not None

    await wait_until_async(is_held, what=f"a holder of {keys.name}")


async def first_grant(onlooker: Locker, name: str, *, after: int = 0) -> int:
    """Waits until one of ours holds it in Redis by a later token than `after`: that token."""
    token = None

    async def held() -> bool:
        nonlocal token
        view = await onlooker.inspect(name)
        token = view.fencing_token if view else None
        return token is not None and token > after

    await wait_until_async(held, what=f"a holder of {name}")
    assert token is not None
    return token


async def is_the_only_one(onlooker: Locker, keys: Keys, lease: Lease) -> None:
    """The lease is what Redis has under this name, and its release leaves neither a holder nor anybody in line."""
    view = await onlooker.inspect(lease.name)
    assert view is not None
    assert view.is_held
    assert view.fencing_token == lease.fencing_token
    assert await lease.release()
    await keys.gone()


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
