"""What a server refused to take back is owed to it, and given back once it takes commands again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from locks import Lease, Locker, LockStoreDown
from locks.clock import SYSTEM
from locks.events import Released
from locks.loan import Loan
from locks.returns import LONGEST_PAUSE_S, MOST_OWED, SLACK_S
from locks.wire import Wire
from tests.harness import wait_until_async
from tests.integration.lock_faults import SOON_S, keys_at, locking_through
from tests.integration.refusing import EVERY, MISCONF, NOPERM, NOREPLICAS, READONLY, Refusal
from tests.integration.test_locker import Heard, locking
from tests.proxy import Cut, Proxy
from tests.servers.fixtures import StartRedis
from tests.servers.redis_server import RedisServer

LEASE_TTL_S = 600.0
SILENT_S = 0.3  # refusals that may pass are waited out for so long
RELEASES = 100


@dataclass(slots=True)
class Taken:
    """What is held when the server begins to refuse."""

    locker: Locker
    name: str
    leases: list[Lease]
    loan: Loan | None = None

    @property
    def names(self) -> list[str]:
        return [self.name] if self.loan else [lease.name for lease in self.leases]


async def one(locker: Locker, name: str) -> Taken:
    return Taken(locker, name, [await locker.acquire(name, lease_ttl_s=LEASE_TTL_S)])


async def among_others(locker: Locker, name: str) -> Taken:
    """As one, but released by release_alone.lua, as what is not longer than the grant is kept."""
    return await one(locker, name)


async def several(locker: Locker, name: str) -> Taken:
    names = [f"{name}/{number}" for number in range(RELEASES)]
    return Taken(locker, name, await locker.acquire_many(names, lease_ttl_s=LEASE_TTL_S))


async def lent(locker: Locker, name: str) -> Taken:
    return Taken(locker, name, [], await locker.lending.lend(name, lease_ttl_s=LEASE_TTL_S, wait_s=0, request_id="r-1"))


async def release(taken: Taken) -> None:
    outcomes = await asyncio.gather(*[lease.release() for lease in taken.leases], return_exceptions=True)
    assert all(isinstance(outcome, LockStoreDown) for outcome in outcomes)


async def finish(taken: Taken) -> None:
    for lease in taken.leases:
        lease.finish()


async def drop(taken: Taken) -> None:
    for lease in taken.leases:
        taken.locker.drop(lease)


async def release_cancelled(taken: Taken) -> None:
    releasing = asyncio.create_task(taken.leases[0].release())
    await asyncio.sleep(0)
    releasing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await releasing


async def hang_up(taken: Taken) -> None:
    assert taken.loan is not None
    taken.locker.lending.give_back(taken.loan)


async def release_lent(taken: Taken) -> None:
    assert taken.loan is not None
    with pytest.raises(LockStoreDown):
        await taken.locker.lending.release(taken.name, taken.loan.lease_id)


Take = Callable[[Locker, str], Awaitable[Taken]]
GiveBack = Callable[[Taken], Awaitable[None]]
WAYS: list[tuple[Take, GiveBack]] = [
    (one, release),
    (among_others, release),
    (one, finish),
    (among_others, finish),
    (one, drop),
    (one, release_cancelled),
    (several, release),
    (several, finish),
    (lent, hang_up),
    (lent, release_lent),
]


async def refused(locker: Locker, count: int) -> None:
    """Waits until so many are owed."""

    async def enough() -> bool:
        return len(locker._lines.returns) >= count

    await wait_until_async(enough, what=f"{count} that are owed")


async def all_gone(server: RedisServer, names: list[str]) -> None:
    with keys_at(server.url, names[0]) as keys:

        async def gone() -> bool:
            return int(keys.client.exists(*[f"lock:{{{name}}}" for name in names])) == 0

        await wait_until_async(gone, patience_s=SOON_S, what="locks that are given back")


@pytest.mark.parametrize(("take", "give_back"), WAYS, ids=lambda way: way.__name__)
async def test_what_was_refused_is_given_back_once_the_server_takes_it(
    start_redis: StartRedis, name: str, take: Take, give_back: GiveBack
) -> None:
    server, heard = start_redis(settings=MISCONF.settings), Heard()
    keep_ms = 10_000 if take is one else round(LEASE_TTL_S * 1000)
    async with locking(server.url, heard=heard, command_timeout_s=SILENT_S, keep_ms=keep_ms) as locker:
        taken = await take(locker, name)
        MISCONF.begin(server)
        await give_back(taken)
        await refused(locker, len(taken.names))
        with keys_at(server.url, taken.names[0]) as keys:
            assert keys.holder() is not None, "it was released, and not refused"
        MISCONF.end(server)
        await all_gone(server, taken.names)

        async def settled() -> bool:
            return len(locker._lines.returns) == 0 and len(heard.all(Released)) == len(taken.names)

        await wait_until_async(settled, patience_s=SOON_S, what="books that are closed")


@pytest.mark.parametrize("refusal", EVERY, ids=lambda refusal: refusal.word)
async def test_every_kind_of_refusal_only_delays_a_release(
    start_redis: StartRedis, name: str, refusal: Refusal
) -> None:
    server = start_redis(settings=refusal.settings)
    async with locking(server.url, command_timeout_s=SILENT_S) as locker:
        lease = await locker.acquire(name, lease_ttl_s=LEASE_TTL_S)
        refusal.begin(server)
        with pytest.raises(LockStoreDown):
            await lease.release()
        await refused(locker, 1)
        refusal.end(server)
        await all_gone(server, [name])


async def test_a_hold_and_a_cancelled_body_are_given_back_once_the_server_takes_it(
    start_redis: StartRedis, name: str
) -> None:
    server = start_redis(settings=MISCONF.settings)
    names = [name, f"{name}/cancelled", f"{name}/many", f"{name}/more"]
    async with locking(server.url, command_timeout_s=SILENT_S) as locker:
        entered, leaving = asyncio.Semaphore(0), asyncio.Event()

        async def body(hold: contextlib.AbstractAsyncContextManager[object]) -> None:
            async with hold:
                entered.release()
                await leaving.wait()

        bodies = [
            asyncio.create_task(body(locker.hold(names[0], lease_ttl_s=LEASE_TTL_S))),
            asyncio.create_task(body(locker.hold(names[1], lease_ttl_s=LEASE_TTL_S))),
            asyncio.create_task(body(locker.hold_many(names[2:], lease_ttl_s=LEASE_TTL_S))),
        ]
        for _ in bodies:
            await entered.acquire()
        MISCONF.begin(server)
        bodies[1].cancel()
        leaving.set()
        await asyncio.wait(bodies)
        await refused(locker, len(names))
        MISCONF.end(server)
        await all_gone(server, names)


async def test_a_wait_that_was_given_up_while_refused_leaves_no_place_in_line(
    start_redis: StartRedis, name: str
) -> None:
    server = start_redis(settings=MISCONF.settings)
    with keys_at(server.url, name) as keys:
        async with locking(server.url, command_timeout_s=SILENT_S, alive_ms=60_000) as locker:
            keys.client.set(keys.lock, "another", px=600_000)
            waiting = asyncio.create_task(locker.acquire(name, lease_ttl_s=LEASE_TTL_S))
            await keys.queue_of(1)
            MISCONF.begin(server)
            waiting.cancel()
            await asyncio.wait([waiting])
            await refused(locker, 1)
            MISCONF.end(server)
            await keys.queue_of(0)


async def test_who_waits_elsewhere_gets_what_was_refused_to_be_released(start_redis: StartRedis, name: str) -> None:
    server = start_redis(settings=NOREPLICAS.settings)
    async with (
        locking(server.url, command_timeout_s=SILENT_S) as locker,
        locking(server.url, alive_ms=60_000) as elsewhere,
    ):
        lease = await locker.acquire(name, lease_ttl_s=LEASE_TTL_S)
        with keys_at(server.url, name) as keys:
            waiting = asyncio.create_task(elsewhere.acquire(name))
            await keys.queue_of(1)
        NOREPLICAS.begin(server)
        with pytest.raises(LockStoreDown):
            await lease.release()
        NOREPLICAS.end(server)
        assert (await asyncio.wait_for(waiting, SOON_S)).fencing_token > lease.fencing_token


async def test_scripts_that_are_gone_together_with_the_connection_do_not_forget_a_give_back(
    redis_server: RedisServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failed.append(context))
    ends: list[Wire] = []  # whose next answer is their last
    receive = Wire.buffer_updated

    def receive_and_end(wire: Wire, nbytes: int) -> None:
        receive(wire, nbytes)
        if wire in ends and b"NOSCRIPT" in bytes(wire.get_buffer(-1)[:nbytes]):
            ends.remove(wire)
            wire.abort("lost with its last answer")

    monkeypatch.setattr(Wire, "buffer_updated", receive_and_end)
    with keys_at(redis_server.url, name) as keys:
        async with locking(redis_server.url) as locker:
            lease_id = "ab" * 16
            keys.client.set(keys.lock, lease_id, px=600_000)
            keys.client.script_flush()
            wire = locker.store.node_of(name).commands._wire
            assert wire is not None
            ends.append(wire)
            locker._lines.give_back(name, lease_id)
            await keys.gone()
            assert ends == [], "no answer came"
    assert failed == []


async def test_what_is_owed_is_forgotten_when_its_lease_is_over_and_asked_for_at_a_bounded_rate(
    start_redis: StartRedis, name: str
) -> None:
    server = start_redis()
    async with locking(server.url, command_timeout_s=SILENT_S) as locker:
        leases = [await locker.acquire(f"{name}/{number}", lease_ttl_s=2) for number in range(RELEASES)]
        NOPERM.begin(server)
        await release(Taken(locker, name, leases))
        await refused(locker, RELEASES)
        began_at_s, before = SYSTEM.monotonic_s(), refusals(server)

        async def none() -> bool:
            return len(locker._lines.returns) == 0

        await wait_until_async(none, patience_s=SOON_S, what="leases that are over")
        # Rounds of 64, and between two of them a pause that grows to a second.
        assert refusals(server) - before < 64 * (10 + 2 * (SYSTEM.monotonic_s() - began_at_s))
        NOPERM.end(server)


async def test_what_is_held_here_is_not_released_where_its_id_is_owed(start_redis: StartRedis, name: str) -> None:
    server = start_redis(settings=NOREPLICAS.settings)
    with keys_at(server.url, name) as keys:
        async with locking(server.url, command_timeout_s=SILENT_S) as locker:
            returns = locker._lines.returns
            lease = await locker.acquire(name, lease_ttl_s=LEASE_TTL_S)
            returns._pause_s = LEASE_TTL_S  # so that it is sent again when this test says so
            NOREPLICAS.begin(server)
            returns.give_back(name, lease.lease_id)
            await refused(locker, 1)
            NOREPLICAS.end(server)
            returns._send_owed()
            assert len(returns) == 0
            await lease.extend(LEASE_TTL_S)
            assert keys.holder() == lease.lease_id


async def test_one_id_that_its_client_chose_for_several_locks_is_owed_for_each(
    start_redis: StartRedis, name: str
) -> None:
    server, lease_id = start_redis(settings=NOREPLICAS.settings), "ab" * 16
    names = [name, f"{name}/2"]
    async with locking(server.url, command_timeout_s=SILENT_S) as locker:
        for each in names:
            await locker.lending.lend_as(each, lease_id, lease_ttl_s=LEASE_TTL_S, wait_s=0, request_id="")
        NOREPLICAS.begin(server)
        for each in names:
            with pytest.raises(LockStoreDown):
                await locker.lending.release(each, lease_id)
        await refused(locker, len(names))
        NOREPLICAS.end(server)
        await all_gone(server, names)


async def test_a_lent_lease_is_owed_for_longer_than_its_keeper_knows_of(start_redis: StartRedis, name: str) -> None:
    server = start_redis()
    async with locking(server.url, command_timeout_s=SILENT_S) as deaf, locking(server.url) as other:
        loan = await deaf.lending.lend(name, lease_ttl_s=0.5, wait_s=0, request_id="")
        await deaf._servers.node_of(name).messages.close()
        await other.lending.extend(name, loan.lease_id, lease_ttl_s=LEASE_TTL_S)
        NOPERM.begin(server)
        with pytest.raises(LockStoreDown):
            await deaf.lending.release(name, loan.lease_id)
        await refused(deaf, 1)
        await asyncio.sleep(0.5 + SLACK_S + 2 * LONGEST_PAUSE_S)
        NOPERM.end(server)
        await all_gone(server, [name])


async def test_as_many_as_there_is_room_for_are_owed(redis_server: RedisServer, name: str) -> None:
    async with locking(redis_server.url, command_timeout_s=SILENT_S) as locker:
        redis_server.kill()

        async def away() -> bool:
            return not locker.is_up

        await wait_until_async(away, what="a server that is away")
        for number in range(MOST_OWED + 10):
            locker._lines.give_back(name, f"{number:032x}", 1.0)
        assert len(locker._lines.returns) == MOST_OWED


async def test_a_server_that_is_a_replica_is_not_connected_to_all_the_time(start_redis: StartRedis, name: str) -> None:
    server = start_redis()
    async with locking(server.url, command_timeout_s=SILENT_S) as locker:
        leases = [await locker.acquire(f"{name}/{number}", lease_ttl_s=LEASE_TTL_S) for number in range(8)]
        READONLY.begin(server)
        before = int(server.info("stats")["total_connections_received"])
        await release(Taken(locker, name, leases))
        await asyncio.sleep(2.0)
        connected = int(server.info("stats")["total_connections_received"]) - before
        READONLY.end(server)
        await all_gone(server, [lease.name for lease in leases])
        assert connected < 200


def refusals(server: RedisServer) -> int:
    """How many script calls it has refused."""
    stats = server.info("commandstats").get("cmdstat_evalsha", "")
    counts = dict(part.split("=") for part in stats.split(",") if "=" in part)
    return int(counts.get("rejected_calls", 0)) + int(counts.get("failed_calls", 0))


async def test_what_a_release_has_granted_to_a_caller_who_leaves_before_he_hears_of_it_is_given_back(
    redis_server: RedisServer, name: str
) -> None:
    with Proxy("127.0.0.1", redis_server.port) as proxy:
        async with locking_through(proxy) as locker:
            lease = await locker.acquire(name, lease_ttl_s=600)
            waiter = asyncio.create_task(locker.acquire(name, lease_ttl_s=600, wait_s=600))
            await asyncio.sleep(0)
            proxy.cut_once(Cut.AFTER_ANSWERED, at=b"EVALSHA", then_away=True)
            with pytest.raises(LockStoreDown):
                await lease.release()
            waiter.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiter
            proxy.come_back()
            async with locking(redis_server.url) as other:

                async def is_free() -> bool:
                    return await other.inspect(name) is None

                await wait_until_async(is_free, what="a lock that is nobody's")
