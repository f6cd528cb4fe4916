"""Leases lent to clients outside: any process may be asked, one keeps the books, and they come out even."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import pytest

from locks import Lease, LockBusy, Locker, LockStoreDown, LossReason, lending
from locks.clock import SYSTEM
from locks.errors import TooManyBorrowed
from locks.events import Acquired, Adopted, Exported, Lost, Released, Waiting
from locks.for_whom import text_for_client
from locks.lending import LeaseOver
from locks.loan import Loan
from tests.harness import PATIENCE_S, wait_until_async
from tests.integration.lock_faults import LONG_MS, SILENT_S, locking_through
from tests.integration.test_locker import Heard, Keys, locking
from tests.proxy import Cut, Proxy
from tests.servers.redis_server import RedisServer


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def heard() -> Heard:
    """Of the keeper."""
    return Heard()


@pytest.fixture
def heard_elsewhere() -> Heard:
    """Of the other process."""
    return Heard()


@pytest.fixture
async def keeper(redis_server: RedisServer, heard: Heard) -> AsyncIterator[Locker]:
    async with locking(redis_server.url, heard=heard) as locker:
        yield locker


@pytest.fixture
async def other(redis_server: RedisServer, heard_elsewhere: Heard) -> AsyncIterator[Locker]:
    async with locking(redis_server.url, heard=heard_elsewhere) as locker:
        yield locker


R_1 = text_for_client("r-1")


async def lend(locker: Locker, name: str, *, lease_ttl_s: float = 60.0, wait_s: float = 0.0) -> Loan:
    return await locker.lending.lend(name, lease_ttl_s=lease_ttl_s, wait_s=wait_s, request_id="r-1")


def held_by_books(*books: Heard) -> int:
    """What a gauge of holders shows over these processes."""
    counts = Counter(type(event) for heard in books for event in heard.events)
    return counts[Acquired] + counts[Adopted] - counts[Released] - counts[Lost] - counts[Exported]


async def test_the_keeper_books_what_other_processes_are_asked(
    keeper: Locker, other: Locker, heard: Heard, heard_elsewhere: Heard, name: str
) -> None:
    loan = await lend(keeper, name)
    extended = await other.lending.extend(name, loan.lease_id, lease_ttl_s=90)
    assert (extended.fencing_token, other.lending.all) == (loan.fencing_token, [])
    [kept] = keeper.lending.all
    assert (kept.name, kept.fencing_token, kept.for_whom) == (name, loan.fencing_token, R_1)

    async def moved() -> bool:
        return kept.deadline_s - SYSTEM.monotonic_s() > 61

    await wait_until_async(moved, what="the keeper to hear of the new end")
    assert (held_by_books(heard), keeper.held) == (1, [])

    await other.lending.release(name, loan.lease_id)

    await heard.count(Released, 1)
    assert (keeper.lending.all, held_by_books(heard, heard_elsewhere)) == ([], 0)
    [released] = heard.all(Released)
    assert (released.fencing_token, released.still_ours, released.for_whom) == (loan.fencing_token, True, R_1)
    assert loan.lease_id not in f"{loan!r} {kept!r} {heard.events} {heard_elsewhere.events}"


async def test_a_lease_that_runs_out_is_lost_once_and_never_before_its_end(
    keeper: Locker, other: Locker, heard: Heard, heard_elsewhere: Heard, name: str, keys: Keys
) -> None:
    loan = await lend(keeper, name, lease_ttl_s=0.3)
    await other.lending.extend(name, loan.lease_id, lease_ttl_s=1.0)

    await heard.count(Lost, 1)

    assert keys.holder() is None
    assert [lost.reason for lost in heard.all(Lost)] == [LossReason.EXPIRED]
    with pytest.raises(LeaseOver, match="expired"):
        await other.lending.extend(name, loan.lease_id, lease_ttl_s=1.0)
    await asyncio.sleep(0)
    assert held_by_books(heard, heard_elsewhere) == 0
    assert len(heard.all(Lost) + heard_elsewhere.all(Lost)) == 1


async def test_whoever_is_asked_after_the_keeper_is_gone_becomes_the_keeper(
    redis_server: RedisServer, other: Locker, heard: Heard, heard_elsewhere: Heard, name: str
) -> None:
    async with locking(redis_server.url, heard=heard) as leaving:
        loan = await lend(leaving, name)
        not_extended = await lend(leaving, f"{name}/2")
    assert [event.name for event in heard.all(Exported)] == [name, f"{name}/2"], "the books are closed, not the leases"
    assert held_by_books(heard) == 0

    for _ in range(2):
        extended = await other.lending.extend(name, loan.lease_id, lease_ttl_s=60)
        assert extended.fencing_token == loan.fencing_token
    [kept] = other.lending.all
    assert (kept.for_whom, held_by_books(heard_elsewhere)) == (R_1, 1)
    view = await other.inspect(name)
    assert view is not None
    assert view.holder is not None
    assert (view.holder.request_id, view.fencing_token) == ("r-1", loan.fencing_token)

    await other.lending.release(name, loan.lease_id)
    await other.lending.release(f"{name}/2", not_extended.lease_id)

    assert held_by_books(heard_elsewhere) == 0
    assert [released.name for released in heard_elsewhere.all(Released)] == [name, f"{name}/2"]
    assert all(0 < released.held_s < PATIENCE_S for released in heard_elsewhere.all(Released))


async def test_a_keeper_that_did_not_hear_that_another_took_its_place_says_nothing_is_lost(
    redis_server: RedisServer, other: Locker, heard: Heard, heard_elsewhere: Heard, name: str, keys: Keys
) -> None:
    async with locking(redis_server.url, heard=heard) as deaf:
        loan = await lend(deaf, name, lease_ttl_s=1.0)
        channel = deaf._servers.node_of(name).channel
        await deaf._servers.node_of(name).messages.close()
        assert keys.client.pubsub_numsub(channel)[0][1] == 0
        await other.lending.extend(name, loan.lease_id, lease_ttl_s=60)

        await heard.count(Exported, 1)

        assert heard.all(Lost) == []
        assert (held_by_books(heard), held_by_books(heard_elsewhere)) == (0, 1)


async def test_a_release_whose_answer_is_lost_is_a_release_and_booked_once(
    proxy: Proxy, heard: Heard, name: str, keys: Keys
) -> None:
    async with locking_through(proxy, heard) as locker:
        loan = await lend(locker, name)
        proxy.cut_once(Cut.AFTER_ANSWERED, at=b"EVALSHA")

        await locker.lending.release(name, loan.lease_id)

        assert keys.holder() is None
        assert (held_by_books(heard), len(heard.all(Released)), heard.all(Lost)) == (0, 1, [])
        with pytest.raises(LeaseOver, match="released"):
            await locker.lending.release(name, loan.lease_id)


async def test_a_force_whose_answer_is_lost_is_said_to_have_forced(proxy: Proxy, heard: Heard, name: str) -> None:
    async with locking_through(proxy, heard) as locker:
        loan = await lend(locker, name)
        proxy.cut_once(Cut.AFTER_ANSWERED, at=b"EVALSHA")

        assert await locker.force_release(name, fencing_token=loan.fencing_token)

        with pytest.raises(LeaseOver, match="forced"):
            await locker.lending.extend(name, loan.lease_id, lease_ttl_s=60)
        assert [lost.reason for lost in heard.all(Lost)] == [LossReason.FORCED]


async def test_a_lease_whose_end_comes_while_redis_is_silent_is_judged_when_redis_is_back(
    proxy: Proxy, heard: Heard, other: Locker, name: str
) -> None:
    async with locking_through(proxy, heard) as locker:
        lapsing = await lend(locker, name, lease_ttl_s=0.3)
        extended = await lend(locker, f"{name}/2", lease_ttl_s=0.3)
        proxy.go_away()
        await other.lending.extend(extended.name, extended.lease_id, lease_ttl_s=60)
        await asyncio.sleep(lapsing.ends_in_s() + 2 * SILENT_S)
        assert heard.all(Lost) == []

        proxy.come_back()

        await heard.count(Lost, 1)
        await heard.count(Exported, 1)
        assert [lost.name for lost in heard.all(Lost)] == [name]
        assert [kept.name for kept in other.lending.all] == [f"{name}/2"]


@pytest.mark.parametrize("ticks", range(0, 24, 2))
async def test_a_cancelled_wait_leaves_no_lease_behind_whenever_it_is_cancelled(
    keeper: Locker, other: Locker, heard: Heard, name: str, keys: Keys, ticks: int
) -> None:
    first = await lend(other, name)
    waiting = asyncio.create_task(lend(keeper, name, wait_s=60))
    await keys.queue_of(1)
    releasing = asyncio.create_task(other.lending.release(name, first.lease_id))
    for _ in range(ticks):
        await asyncio.sleep(0)
    waiting.cancel()
    await releasing
    try:
        loan = await waiting
    except asyncio.CancelledError:
        pass
    else:
        await keeper.lending.release(name, loan.lease_id)
    await keys.gone()

    async def even() -> bool:
        return held_by_books(heard) == 0

    await wait_until_async(even)
    assert keeper.lending.all == []


async def test_clients_wait_in_one_line_with_the_bodies_of_a_process_and_each_gets_its_whole_lease(
    redis_server: RedisServer, name: str, keys: Keys
) -> None:
    """Turns of a run begin under another's lease: a client outside is told no end that Redis does not know of."""
    tokens: list[int] = []
    heard = Heard()
    async with locking(redis_server.url, heard=heard, slack_ms=1000, alive_ms=LONG_MS) as locker:

        async def body() -> None:
            async with locker.hold(name, lease_ttl_s=2.0) as lease:
                tokens.append(lease.fencing_token)

        async def client() -> None:
            loan = await lend(locker, name, lease_ttl_s=60.0, wait_s=60)
            tokens.append(loan.fencing_token)
            assert keys.holder() == loan.lease_id
            assert int(keys.client.pttl(keys.lock)) / 1000 >= loan.ends_in_s() - 0.002
            await locker.lending.release(name, loan.lease_id)

        first = await locker.acquire(name)
        tasks = [asyncio.create_task(each()) for each in (body, client, body, client, client, body)]
        await keys.queue_of(1)
        await first.release()
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_S)
    assert tokens == sorted(set(tokens))
    assert len(tokens) == 6
    assert held_by_books(heard) == 0


async def test_a_turn_that_the_server_has_not_heard_of_is_not_handed_out(
    proxy: Proxy, other: Locker, heard: Heard, name: str, keys: Keys
) -> None:
    async with locking_through(proxy, heard) as locker:
        first = await other.acquire(name)
        is_on, may_end = asyncio.Event(), asyncio.Event()

        async def body() -> None:
            async with locker.hold(name, lease_ttl_s=5.0) as lease:

                async def confirmed() -> bool:
                    return not lease.is_unconfirmed

                await wait_until_async(confirmed)
                is_on.set()
                await may_end.wait()

        # Both at once, so that their process stands in line for two: what the other gives it is a run of two turns.
        running = asyncio.create_task(body())
        waiting = asyncio.create_task(lend(locker, name, wait_s=60))
        await heard.count(Waiting, 2)
        await keys.queue_of(1)
        await first.release()
        await asyncio.wait_for(is_on.wait(), PATIENCE_S)
        proxy.cut_once(Cut.BEFORE_FORWARDING, at=b"EVALSHA")

        may_end.set()

        await running
        try:
            loan = await asyncio.wait_for(waiting, PATIENCE_S)
        except LockStoreDown:
            await keys.gone()
        else:
            assert keys.holder() == loan.lease_id
            assert int(keys.client.pttl(keys.lock)) / 1000 >= loan.ends_in_s() - 0.002


async def test_a_lease_that_is_lost_just_as_it_is_granted_is_not_handed_out(
    keeper: Locker, other: Locker, heard: Heard, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire = keeper.acquire_to_lend

    async def acquire_and_lose(*args: Any, **kwargs: Any) -> Lease:
        """Its caller goes on after the loss is heard of, as in a loop with much to do."""
        lease = await acquire(*args, **kwargs)
        assert await other.force_release(name, fencing_token=lease.fencing_token)
        await lease.lost.wait()
        return lease

    monkeypatch.setattr(keeper, "acquire_to_lend", acquire_and_lose)
    with pytest.raises(LockStoreDown, match="lost before it could be handed out"):
        await lend(keeper, name)
    assert (keeper.lending.all, held_by_books(heard)) == ([], 0)


async def test_a_client_outside_waits_on_where_others_are_sent_home(keeper: Locker, name: str, keys: Keys) -> None:
    first = await keeper.acquire(name)
    waiting = asyncio.create_task(lend(keeper, name, wait_s=60))
    await keys.queue_of(1)
    first.finish()
    loan = await asyncio.wait_for(waiting, PATIENCE_S)
    assert keys.holder() == loan.lease_id


Break = Callable[[Keys], object]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (lambda keys: keys.client.delete(keys.lock), "deleted"),
        (lambda keys: keys.client.flushall(), "deleted"),
        (lambda keys: keys.client.set(keys.lock, "another program's", px=LONG_MS), "taken"),
    ],
    ids=["DEL", "FLUSHALL", "SET"],
)
async def test_the_keeper_that_is_asked_knows_what_redis_has_forgotten(
    keeper: Locker, heard: Heard, name: str, keys: Keys, how: Break, reason: str
) -> None:
    loan = await lend(keeper, name)
    how(keys)
    with pytest.raises(LeaseOver) as over:
        await keeper.lending.extend(name, loan.lease_id, lease_ttl_s=60)
    assert over.value.reason == reason
    assert [lost.reason.value for lost in heard.all(Lost)] == [reason]
    assert held_by_books(heard) == 0


@pytest.mark.parametrize("sleeps", [False, True], ids=["", "while the machine sleeps now and then"])
async def test_the_books_of_a_lease_that_redis_gives_longer_than_it_had_are_looked_at_again(
    keeper: Locker, heard: Heard, name: str, keys: Keys, monkeypatch: pytest.MonkeyPatch, sleeps: bool
) -> None:
    """Redis' clock was set back, which makes keys last, and forward again: then they are gone at once."""
    monkeypatch.setattr(lending, "LOOK_AT_LEAST_EVERY_S", 0.1)
    await lend(keeper, name, lease_ttl_s=0.3)
    keys.client.delete(keys.grant)
    keys.client.pexpire(keys.lock, 3_600_000)
    scripts = scripts_run(keys)

    async def looked() -> bool:
        return scripts_run(keys) > scripts

    await wait_until_async(looked, what="a look at the end that the keeper knows of")
    assert len(keeper.lending.all) == 1
    keys.client.delete(keys.lock)

    async def is_told() -> bool:
        if sleeps:
            keeper.lending.count_anew()
        return bool(heard.all(Lost))

    await wait_until_async(is_told, what="the end of the lease")
    assert held_by_books(heard) == 0


def scripts_run(keys: Keys) -> int:
    """How often the server has been asked to run a script."""
    return int(cast(Any, keys.client).info("commandstats")["cmdstat_evalsha"]["calls"])


async def test_no_key_stays_without_an_end(keeper: Locker, other: Locker, name: str, keys: Keys) -> None:
    for _ in range(3):
        loan = await lend(keeper, name)
        waiting = asyncio.create_task(lend(other, name, wait_s=60))
        await keys.queue_of(1)
        await keeper.lending.release(name, loan.lease_id)
        loan = await waiting
        assert await keeper.force_release(name, fencing_token=loan.fencing_token)
    found = list(keys.client.scan_iter(match=f"*{{{name}}}*"))
    assert found
    assert all(0 < int(keys.client.pttl(key)) <= LONG_MS + 20_000 for key in found)


async def test_an_adopted_lease_counts_for_whoever_extended_it_and_its_end_makes_room(
    redis_server: RedisServer, name: str
) -> None:
    redis_url = redis_server.url
    async with Locker.connect(redis_url, instance_id="keeper") as keeper:
        lent = await keeper.lending.lend(name, lease_ttl_s=60, wait_s=0, request_id="", borrower=7)
    async with Locker(redis_url, instance_id="heir", max_leases_per_borrower=1) as heir:
        other = await heir.lending.lend(f"{name}/2", lease_ttl_s=60, wait_s=0, request_id="", borrower=7)
        await heir.lending.extend(name, lent.lease_id, lease_ttl_s=60, borrower=7)  # one too many, and not refused

        for ended in (other, lent):
            with pytest.raises(TooManyBorrowed):
                await heir.lending.lend(f"{name}/3", lease_ttl_s=60, wait_s=0, request_id="", borrower=7)
            await heir.lending.release(ended.name, ended.lease_id)
        with pytest.raises(LockBusy):  # gives its place back
            async with heir.hold(f"{name}/3"):
                await heir.lending.lend(f"{name}/3", lease_ttl_s=60, wait_s=0.01, request_id="", borrower=7)
        assert heir.lending._borrowed == {}
