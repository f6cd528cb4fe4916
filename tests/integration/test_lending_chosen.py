"""A client that chose its lease id asks for it again, through any process: it is one lease, and never a second one."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager

import pytest

from locks import LockBusy, Locker, LockStoreDown, LossReason
from locks.events import Lost, Released
from locks.lending import LeaseOver
from locks.loan import Loan
from tests.harness import PATIENCE_S, wait_until_async
from tests.integration.lock_faults import locking_through
from tests.integration.test_lending import held_by_books
from tests.integration.test_locker import Heard, Keys, locking
from tests.proxy import Cut, Proxy
from tests.servers.redis_server import RedisServer

KEEP_S = 10  # for how long a lease is remembered after its end


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def heard() -> Heard:
    """Of either process."""
    return Heard()


@pytest.fixture
async def one(redis_server: RedisServer, heard: Heard) -> AsyncIterator[Locker]:
    async with locking(redis_server.url, heard=heard) as locker:
        yield locker


@pytest.fixture
async def other(redis_server: RedisServer, heard: Heard) -> AsyncIterator[Locker]:
    async with locking(redis_server.url, heard=heard) as locker:
        yield locker


@pytest.fixture
def lease_id() -> str:
    return secrets.token_hex(16)


async def lend(locker: Locker, name: str, lease_id: str, *, lease_ttl_s: float = 60.0, wait_s: float = 0.0) -> Loan:
    return await locker.lending.lend_as(name, lease_id, lease_ttl_s=lease_ttl_s, wait_s=wait_s, request_id="r-1")


async def extend(locker: Locker, name: str, lease_id: str, *, lease_ttl_s: float = 60.0) -> Loan:
    return await locker.lending.extend(name, lease_id, lease_ttl_s=lease_ttl_s)


def forgetful(url: str, heard: Heard) -> AbstractAsyncContextManager[Locker]:
    """A locker by which an id is free again soon after its lease."""
    return locking(url, heard=heard, command_timeout_s=0.5, keep_ms=200, alive_ms=300)


Again = Callable[..., Awaitable[Loan]]


async def lend_anew(locker: Locker, name: str, lease_id: str) -> Loan:
    """A new lease under an id whose lease is over, once that one is forgotten."""
    loans: list[Loan] = []

    async def granted() -> bool:
        try:
            loans.append(await lend(locker, name, lease_id))
        except LeaseOver:
            return False
        return True

    await wait_until_async(granted, what="an id that is free again")
    assert loans[0].is_new
    return loans[0]


async def nothing_owed(locker: Locker, name: str) -> None:
    """Waits until Redis has answered what the process owed it."""

    async def settled() -> bool:
        if not locker.is_up or len(locker._lines.returns):
            return False
        await locker.inspect(name)  # whose answer comes behind that of what was sent before
        return len(locker._lines.returns) == 0

    await wait_until_async(settled, what="nothing that is owed")


def asked_key(name: str, lease_id: str) -> str:
    return f"lock-asked:{{{name}}}:{lease_id}"


async def test_asked_again_through_any_process_it_is_the_same_lease_with_its_whole_time(
    one: Locker, other: Locker, heard: Heard, name: str, keys: Keys, lease_id: str
) -> None:
    first = await lend(one, name, lease_id, lease_ttl_s=5.0)
    again = [await lend(locker, name, lease_id, lease_ttl_s=60.0) for locker in (one, other)]

    assert (first.lease_id, first.is_new) == (lease_id, True)
    assert [(each.fencing_token, each.is_new) for each in again] == [(first.fencing_token, False)] * 2
    assert 50 < int(keys.client.pttl(keys.lock)) / 1000 <= 60
    assert int(keys.client.pttl(keys.lock)) / 1000 >= again[-1].ends_in_s() - 0.002
    assert held_by_books(heard) == 1
    extended = await other.lending.extend(name, lease_id, lease_ttl_s=30)
    assert extended.fencing_token == first.fencing_token
    await other.lending.release(name, lease_id)

    async def even() -> bool:
        return held_by_books(heard) == 0

    await wait_until_async(even)
    assert lease_id not in f"{heard.events} {one.lending.all}"


@pytest.mark.parametrize("cut", [Cut.BEFORE_FORWARDING, Cut.AFTER_ANSWERED])
@pytest.mark.parametrize("later_s", [0.0, 0.001, 0.002])
async def test_whatever_answer_of_redis_is_lost_it_is_granted_once(
    proxy: Proxy, heard: Heard, name: str, keys: Keys, lease_id: str, cut: Cut, later_s: float
) -> None:
    """The look, the grant and the lending are a script each; the cut meets one of them."""
    async with locking_through(proxy, heard) as locker:
        lending = asyncio.create_task(lend(locker, name, lease_id))
        await asyncio.sleep(later_s)
        proxy.cut_once(cut, at=b"EVALSHA")

        loan = await lending

        again = await lend(locker, name, lease_id)
        assert (again.fencing_token, again.is_new) == (loan.fencing_token, False)
        assert keys.holder() == lease_id
        await locker.lending.release(name, lease_id)
        await keys.gone()


async def test_two_who_wait_here_for_one_lease_have_one_place_and_the_one_lease(
    one: Locker, other: Locker, name: str, keys: Keys, lease_id: str
) -> None:
    held = await other.acquire(name)
    waits = [asyncio.create_task(lend(one, name, lease_id, wait_s=60)) for _ in range(2)]
    await keys.queue_of(1)
    for _ in range(3):
        with pytest.raises(LockBusy):
            await lend(one, name, lease_id, wait_s=0.05)
    assert one.waiter_count == 1
    await held.release()

    first, second = await asyncio.wait_for(asyncio.gather(*waits), PATIENCE_S)
    assert first.fencing_token == second.fencing_token
    assert (first.is_new, second.is_new) == (True, False)
    await one.lending.release(name, lease_id)
    await keys.gone()


async def test_who_waits_for_the_lease_in_two_processes_gets_one_lease_in_both(
    one: Locker, other: Locker, name: str, keys: Keys, lease_id: str
) -> None:
    held = await one.acquire(name)
    waits = [asyncio.create_task(lend(locker, name, lease_id, wait_s=60)) for locker in (other, one)]
    await keys.queue_of(2)
    await held.release()

    loans = await asyncio.wait_for(asyncio.gather(*waits), PATIENCE_S)
    assert loans[0].fencing_token == loans[1].fencing_token
    assert sorted(loan.is_new for loan in loans) == [False, True]
    assert keys.holder() == lease_id
    await other.lending.release(name, lease_id)
    await keys.gone()
    assert (one.waiter_count, other.waiter_count) == (0, 0)


async def test_who_has_not_heard_that_the_lease_was_lent_finds_it_when_its_wait_is_over(
    one: Locker, other: Locker, name: str, keys: Keys, lease_id: str
) -> None:
    held = await other.acquire(name)
    waiting = asyncio.create_task(lend(one, name, lease_id, wait_s=60))
    await keys.queue_of(1)
    deaf = asyncio.create_task(lend(other, name, lease_id, wait_s=1.0))
    await keys.queue_of(2)
    await other._servers.node_of(name).messages.close()
    await held.release()

    assert (await asyncio.wait_for(deaf, PATIENCE_S)).fencing_token == (await waiting).fencing_token


async def test_a_client_that_waits_no_longer_leaves_its_place_unless_it_waits_here_twice(
    one: Locker, other: Locker, name: str, keys: Keys, lease_id: str
) -> None:
    held = await other.acquire(name)
    waits = [asyncio.create_task(lend(one, name, lease_id, wait_s=60)) for _ in range(2)]
    await keys.queue_of(1)
    waits[0].cancel()
    await asyncio.wait(waits[:1])
    assert one.waiter_count == 1
    waits[1].cancel()
    await asyncio.wait(waits)
    await keys.queue_of(0)
    assert one.waiter_count == 0
    await held.release()
    await keys.gone()


@pytest.mark.parametrize("ticks", range(0, 24, 2))
async def test_a_client_that_hangs_up_just_as_it_is_granted_asks_again_and_has_it(
    one: Locker, other: Locker, heard: Heard, name: str, keys: Keys, lease_id: str, ticks: int
) -> None:
    first = await other.acquire(name)
    waiting = asyncio.create_task(lend(one, name, lease_id, wait_s=60))
    await keys.queue_of(1)
    releasing = asyncio.create_task(first.release())
    for _ in range(ticks):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    await releasing

    loan = await lend(one, name, lease_id, wait_s=60)
    assert keys.holder() == lease_id
    await one.lending.release(name, loan.lease_id)
    await keys.gone()
    assert held_by_books(heard) == 0


async def test_a_lease_that_is_over_is_not_granted_again(
    one: Locker, other: Locker, name: str, keys: Keys, lease_id: str
) -> None:
    await lend(one, name, lease_id)
    await one.lending.release(name, lease_id)
    with pytest.raises(LeaseOver, match="released"):
        await lend(other, name, lease_id, wait_s=60)
    another = await lend(one, name, secrets.token_hex(16))
    for _ in range(2):
        with pytest.raises(LeaseOver):
            await lend(other, name, lease_id, wait_s=60)
    await one.lending.release(name, another.lease_id)
    with pytest.raises(LeaseOver):
        await lend(other, name, lease_id)

    forced = secrets.token_hex(16)
    token = (await lend(one, name, forced)).fencing_token
    await other.force_release(name, fencing_token=token)
    with pytest.raises(LeaseOver, match="forced"):
        await lend(other, name, forced)

    lapsed = secrets.token_hex(16)
    await lend(one, name, lapsed, lease_ttl_s=0.1)
    await keys.gone()
    with pytest.raises(LeaseOver, match="expired"):
        await lend(other, name, lapsed)
    assert keys.holder() is None


async def test_an_id_that_the_server_chose_is_not_granted_again_either(one: Locker, other: Locker, name: str) -> None:
    loan = await one.lending.lend(name, lease_ttl_s=60, wait_s=0.0, request_id="")
    again = await lend(other, name, loan.lease_id)
    assert (again.fencing_token, again.is_new) == (loan.fencing_token, False)
    await other.lending.release(name, loan.lease_id)
    with pytest.raises(LeaseOver, match="released"):
        await lend(one, name, loan.lease_id)


async def test_the_id_under_another_name_is_another_lease(
    one: Locker, heard: Heard, name: str, keys: Keys, lease_id: str
) -> None:
    here, there = await lend(one, name, lease_id), await lend(one, f"{name}/2", lease_id)
    assert (here.is_new, there.is_new, len(one.lending.all)) == (True, True, 2)
    await one.lending.release(f"{name}/2", lease_id)
    assert keys.holder() == lease_id
    assert [kept.name for kept in one.lending.all] == [name]
    assert not (await lend(one, name, lease_id)).is_new
    await one.lending.release(name, lease_id)
    assert held_by_books(heard) == 0


async def test_what_is_remembered_of_a_lease_ends_soon_after_it(one: Locker, name: str, keys: Keys) -> None:
    lease_id = secrets.token_hex(16)
    await lend(one, name, lease_id, lease_ttl_s=3600)
    assert keys.client.ttl(asked_key(name, lease_id)) > 3600
    await one.lending.extend(name, lease_id, lease_ttl_s=1800)
    assert 1800 + KEEP_S < keys.client.ttl(asked_key(name, lease_id)) <= 3600 + KEEP_S, "no less than it had"
    await one.lending.release(name, lease_id)
    assert 0 < keys.client.ttl(asked_key(name, lease_id)) <= KEEP_S


@pytest.mark.parametrize("lease_id", ["", "x" * 32, "A" * 32, "0" * 31, "0" * 33, "0" * 31 + "\n"])
async def test_an_id_of_another_shape_is_refused(one: Locker, name: str, keys: Keys, lease_id: str) -> None:
    with pytest.raises(ValueError, match="lease_id"):
        await lend(one, name, lease_id)
    await keys.gone()


@pytest.mark.parametrize("lease_ttl_s", [60.0, 5.0])
@pytest.mark.parametrize("again", [lend, extend])
async def test_a_release_that_is_owed_ends_no_lease_that_was_given_time_since(
    proxy: Proxy, heard: Heard, other: Locker, name: str, keys: Keys, lease_id: str, again: Again, lease_ttl_s: float
) -> None:
    async with locking_through(proxy, heard) as away:
        first = await lend(away, name, lease_id)
        proxy.go_away()
        with pytest.raises(LockStoreDown):
            await away.lending.release(name, lease_id)
        loan = await again(other, name, lease_id, lease_ttl_s=lease_ttl_s)
        assert (loan.fencing_token, len(away._lines.returns)) == (first.fencing_token, 1)

        proxy.come_back()
        await nothing_owed(away, name)

        assert keys.holder() == lease_id
        assert (heard.all(Lost), heard.all(Released)) == ([], [])
        await away.lending.release(name, lease_id)
        await keys.gone()


async def test_a_release_that_is_owed_ends_no_later_lease_under_its_id(
    proxy: Proxy, redis_server: RedisServer, heard: Heard, name: str, keys: Keys, lease_id: str
) -> None:
    through = f"redis://127.0.0.1:{proxy.port}/0"
    async with (
        forgetful(through, heard) as away,
        forgetful(redis_server.url, heard) as other,
    ):
        first = await lend(away, name, lease_id, lease_ttl_s=1.0)
        proxy.go_away()
        with pytest.raises(LockStoreDown):
            await away.lending.release(name, lease_id)
        await keys.gone()
        loan = await lend_anew(other, name, lease_id)
        assert loan.fencing_token > first.fencing_token

        proxy.come_back()
        await nothing_owed(away, name)

        assert keys.holder() == lease_id


@pytest.mark.parametrize("again", [lend, extend])
async def test_a_release_that_waits_for_redis_says_that_the_lease_was_given_time_meanwhile(
    proxy: Proxy, other: Locker, name: str, keys: Keys, lease_id: str, again: Again
) -> None:
    async with locking(f"redis://127.0.0.1:{proxy.port}/0") as away:
        await lend(away, name, lease_id)
        proxy.go_away()
        releasing = asyncio.create_task(away.lending.release(name, lease_id))

        async def is_away() -> bool:
            return not away.is_up

        await wait_until_async(is_away)
        await again(other, name, lease_id)
        proxy.come_back()

        with pytest.raises(LockStoreDown, match="again after this release"):
            await asyncio.wait_for(releasing, PATIENCE_S)
        assert keys.holder() == lease_id
        await away.lending.release(name, lease_id)
        await keys.gone()


@pytest.mark.parametrize("late", ["extend", "ask"])
async def test_what_is_carried_out_late_takes_no_time_away_that_was_given_since(
    one: Locker, other: Locker, name: str, keys: Keys, lease_id: str, late: str
) -> None:
    await lend(one, name, lease_id, lease_ttl_s=1.0)
    await extend(other, name, lease_id, lease_ttl_s=600)
    scripts = one.store.scripts
    if late == "extend":
        await one.store.run(name, lambda node: scripts.lent_extend(node, name, lease_id, lease_ms=300))
    else:
        await one.store.run(name, lambda node: scripts.lent_ask(node, name, lease_id, lease_ms=300, for_whom=""))

    assert 500 < int(keys.client.pttl(keys.lock)) / 1000 <= 600
    assert 500 < int(keys.client.pttl(asked_key(name, lease_id))) / 1000 <= 600 + KEEP_S


async def extended(locker: Locker, name: str, lease_id: str) -> None:
    await extend(locker, name, lease_id)


async def released(locker: Locker, name: str, lease_id: str) -> None:
    await locker.lending.release(name, lease_id)


@pytest.mark.parametrize(("asked", "left"), [(extended, 1), (released, 0)])
async def test_a_process_that_has_missed_the_end_of_a_lease_goes_on_with_the_later_one_under_its_id(
    redis_server: RedisServer,
    heard: Heard,
    name: str,
    keys: Keys,
    lease_id: str,
    asked: Callable[[Locker, str, str], Awaitable[None]],
    left: int,
) -> None:
    async with (
        forgetful(redis_server.url, heard) as deaf,
        forgetful(redis_server.url, heard) as other,
    ):
        first = await lend(deaf, name, lease_id)
        await deaf._servers.node_of(name).messages.close()
        await other.lending.release(name, lease_id)
        later = await lend_anew(other, name, lease_id)
        assert later.fencing_token > first.fencing_token

        await asked(deaf, name, lease_id)
        await nothing_owed(deaf, name)

        assert keys.holder() == (lease_id if left else None)
        assert [lost.reason for lost in heard.all(Lost)] == [LossReason.EXPIRED]
        assert [kept.fencing_token for kept in (*deaf.lending.all, *other.lending.all)] == [later.fencing_token] * left
        assert held_by_books(heard) == left


async def test_nor_does_it_count_both_when_it_lends_the_later_one_itself(
    redis_server: RedisServer, heard: Heard, name: str, keys: Keys, lease_id: str
) -> None:
    async def forgotten() -> bool:
        return int(keys.client.exists(keys.waiters, keys.grant, asked_key(name, lease_id))) == 0

    async with (
        forgetful(redis_server.url, heard) as deaf,
        forgetful(redis_server.url, heard) as other,
    ):
        await lend(deaf, name, lease_id)
        await deaf._servers.node_of(name).messages.close()
        await other.lending.release(name, lease_id)
        await wait_until_async(forgotten)
        later = await lend(deaf, name, lease_id)
        assert later.is_new
        assert [kept.fencing_token for kept in deaf.lending.all] == [later.fencing_token]
        assert held_by_books(heard) == 1
