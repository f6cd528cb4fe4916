"""The owner of a lease: shown wherever its holder is, whichever way the lease goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis

from locks import Locker, LockView, Party, PartyKind
from locks.compat import SafeLock
from tests.harness import wait_until_async
from tests.integration.test_locker import locking
from tests.servers.redis_server import RedisServer

OWNER = "nightly import, 100 % of 日本 🦊"
LONG_S = 60.0
CHOSEN = "0123456789abcdef" * 2


@pytest.fixture
async def one(redis_server: RedisServer) -> AsyncIterator[Locker]:
    async with locking(redis_server.url) as locker:
        yield locker


@pytest.fixture
async def other(redis_server: RedisServer) -> AsyncIterator[Locker]:
    async with locking(redis_server.url) as locker:
        yield locker


async def view_of(locker: Locker, name: str) -> LockView:
    view = await locker.inspect(name)
    assert view is not None
    return view


async def holder_of(locker: Locker, name: str) -> Party:
    holder = (await view_of(locker, name)).holder
    assert holder is not None
    return holder


async def said(locker: Locker, name: str) -> tuple[str, str | None, PartyKind]:
    holder = await holder_of(locker, name)
    return holder.request_id, holder.owner, holder.kind


async def test_every_way_to_a_lease_shows_its_owner(one: Locker, other: Locker, name: str) -> None:
    for wait_s in (None, 0.0, 5.0):
        lease = await one.acquire(name, request_id="r-1", owner=OWNER, wait_s=wait_s)
        assert (lease.request_id, lease.owner) == ("r-1", OWNER)
        assert await said(other, name) == ("r-1", OWNER, PartyKind.LOCKER)
        await lease.extend(20.0)
        assert await said(other, name) == ("r-1", OWNER, PartyKind.LOCKER)
        await lease.release()
    async with one.hold(name, owner=OWNER):
        assert await said(other, name) == ("", OWNER, PartyKind.LOCKER)
    both = [f"{name}/1", f"{name}/2"]
    async with one.hold_many(both, request_id="r-2", owner=OWNER) as leases:
        assert [await said(other, each) for each in both] == [("r-2", OWNER, PartyKind.LOCKER)] * 2
        text = leases[0].export()
        adopted = await other.adopt(text, request_id="r-3", owner="another")
        assert await said(one, both[0]) == ("r-3", "another", PartyKind.LOCKER)
        await adopted.release()
    lease = await one.acquire(name)
    assert (lease.owner, await said(other, name)) == (None, ("", None, PartyKind.LOCKER))


async def test_handed_over_within_a_process_and_to_another_it_is_the_next_owners(
    one: Locker, other: Locker, name: str
) -> None:
    first = await one.acquire(name, lease_ttl_s=LONG_S)
    waits = []
    for number, locker in enumerate((one, one, other)):
        waits.append(asyncio.create_task(locker.acquire(name, lease_ttl_s=LONG_S, owner=f"owner {number}")))

        async def waits_now(count: int = number + 1) -> bool:
            return (await view_of(one, name)).waiter_count == count

        await wait_until_async(waits_now, what="one more waiter")
    assert [each.owner for each in (await view_of(other, name)).waiters] == ["owner 0", None, "owner 2"]

    for number, wait in enumerate(waits):
        await first.release()
        first = await wait

        async def is_the_next(owner: str = f"owner {number}") -> bool:
            return (await holder_of(other, name)).owner == owner

        await wait_until_async(is_the_next, what="the server to know the next owner")


async def test_a_client_outside_is_told_from_its_keeper_and_keeps_its_owner_with_another_one(
    redis_server: RedisServer, other: Locker, name: str
) -> None:
    async with locking(redis_server.url) as leaving:
        loan = await leaving.lending.lend(name, lease_ttl_s=60, wait_s=0, request_id="r-1", owner=OWNER)
        unnamed = await leaving.lending.lend(f"{name}/2", lease_ttl_s=60, wait_s=0, request_id="r-2")
        assert (loan.owner, unnamed.owner) == (OWNER, None)
        assert await said(other, name) == ("r-1", OWNER, PartyKind.CLIENT)
        assert await said(other, f"{name}/2") == ("r-2", None, PartyKind.CLIENT)

    extended = await other.lending.extend(name, loan.lease_id, lease_ttl_s=60)

    assert extended.owner == OWNER
    holder = await holder_of(other, name)
    assert (holder.owner, holder.kind, holder.instance_id) == (OWNER, PartyKind.CLIENT, other.instance_id)


@pytest.mark.parametrize("wait_s", [0.0, 5.0])
async def test_asked_again_with_a_chosen_id_the_first_owner_stays(
    one: Locker, other: Locker, name: str, wait_s: float
) -> None:
    first = await one.lending.lend_as(name, CHOSEN, lease_ttl_s=60, wait_s=wait_s, request_id="r-1", owner=OWNER)
    for locker, owner in ((one, "another"), (other, "another"), (other, None)):
        again = await locker.lending.lend_as(name, CHOSEN, lease_ttl_s=60, wait_s=wait_s, request_id="r-2", owner=owner)
        assert (again.fencing_token, again.is_new, again.owner) == (first.fencing_token, False, OWNER)

    assert await said(other, name) == ("r-1", OWNER, PartyKind.CLIENT)


async def test_a_safe_lock_has_an_owner_too_and_is_told_from_a_locker(
    redis_server: RedisServer, one: Locker, name: str
) -> None:
    client = redis.Redis.from_url(redis_server.url)
    lock = SafeLock(client, name, owner=OWNER)
    await asyncio.to_thread(lock.acquire)
    try:
        assert await said(one, name) == ("", OWNER, PartyKind.SAFE_LOCK)
    finally:
        await asyncio.to_thread(lock.release)
        client.close()


async def test_a_process_of_before_there_were_owners_can_read_what_ours_write_and_be_read(
    redis_server: RedisServer, one: Locker, name: str
) -> None:
    """It takes the grant apart into five fields, of which the last is the request, and writes no other ones."""
    await one.acquire(name, request_id="r-1", owner=OWNER)
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        grant = str(client.get(f"lock-grant:{{{name}}}"))
        _, _, _, channel, instance_id, host, pid, request = grant.split("\t")
        assert (channel != "", instance_id, pid.isdigit()) == (True, one.instance_id, True)
        assert request.startswith("r-1")

        await one.acquire(f"{name}/2", request_id="r-2")
        grant = str(client.get(f"lock-grant:{{{name}/2}}"))
        assert grant.split("\t")[4:] == [instance_id, host, pid, "r-2"], "without an owner nothing is new"
        assert await said(one, f"{name}/2") == ("r-2", None, PartyKind.LOCKER)
