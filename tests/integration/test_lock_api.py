"""What the library promises beside acquire and release: several locks, transfer, inspection, force, bounds, events."""
# ruff: noqa: PT012 - what raises is a hold with its whole body

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
import redis
import redis_lock

import locks
from locks import (
    HolderChanged,
    Lease,
    LeaseLost,
    LockBusy,
    Locker,
    LockView,
    LossReason,
    Party,
    TooManyLeases,
    TooManyWaiters,
)
from locks.events import (
    Acquired,
    Adopted,
    Exported,
    Extended,
    Forced,
    GaveUp,
    Lost,
    Released,
    Releasing,
    Waiting,
    WakeSource,
)
from locks.store import QueueLimits
from tests.harness import PATIENCE_S, OwnRedis, wait_until_async
from tests.integration.test_locker import Heard, Keys
from tests.servers.fixtures import StartRedis
from tests.servers.redis_server import AclUser, RedisServer

Result = TypeVar("Result")

LONG_S = 600.0
SOON_S = 30.0  # an upper bound for what ends in milliseconds; leases and signs of life are far longer
LONG_MS = 600_000


@pytest.fixture
def keys(redis_url: str, name: str) -> Iterator[Keys]:
    keys = Keys(redis_url, name)
    yield keys
    keys.client.close()


@pytest.fixture
def blind_server(start_redis: StartRedis) -> RedisServer:
    """A server that does not tell when a key has changed: its user may not switch that on."""
    return start_redis(users=[AclUser("locker", "secret", "~lock* &* +@all -client|tracking")])


@asynccontextmanager
async def process(
    url: str, instance_id: str, heard: Heard | None = None, *, alive_ms: int = LONG_MS, **others: Any
) -> AsyncIterator[Locker]:
    """A locker with a name, bounds and limits of its own, as another process has it."""
    limits = {name: others.pop(name) for name in ("handoffs", "signal_ms") if name in others}
    locker = Locker(
        url,
        instance_id=instance_id,
        command_timeout_s=20,
        queue_limits=QueueLimits(alive_ms=alive_ms, claim_ms=LONG_MS, grace_ms=LONG_MS, **limits),
        listener=heard or (lambda event: None),
        **others,
    )
    async with locker:
        yield locker


async def soon(work: Awaitable[Result]) -> Result:
    return await asyncio.wait_for(work, SOON_S)


# Several locks at once


async def test_several_leases_come_together_in_the_order_of_the_call_and_ascending_by_name(
    redis_url: str, name: str
) -> None:
    heard = Heard()
    wanted = [f"{name}/{each}" for each in "bca"]
    async with process(redis_url, "a", heard) as locker:
        leases = await locker.acquire_many(wanted, lease_ttl_s=LONG_S)
        assert [lease.name for lease in leases] == wanted
        assert [event.name for event in heard.all(Acquired)] == sorted(wanted)
        assert [await lease.release() for lease in leases] == [True] * 3

        async with locker.hold_many(wanted, lease_ttl_s=LONG_S, request_id="r-1") as leases:
            assert [lease.name for lease in leases] == wanted
            views = [await view_of(locker, each) for each in wanted]
            assert [view.fencing_token for view in views] == [lease.fencing_token for lease in leases]
            assert [view.holder.request_id for view in views if view.holder] == ["r-1"] * 3
        assert [await locker.inspect(each) for each in wanted] == [None] * 3
        assert locker.held == []
        assert await locker.acquire_many([]) == []


async def test_eight_callers_of_overlapping_locks_never_meet_nor_deadlock(redis_url: str, name: str) -> None:
    inside: set[str] = set()
    choices = random.Random(8)
    async with process(redis_url, "a") as one, process(redis_url, "b") as other:

        async def enter(locker: Locker, wanted: list[list[str]]) -> None:
            for each in wanted:
                async with locker.hold_many(each, lease_ttl_s=LONG_S) as leases:
                    assert not inside & {lease.name for lease in leases}
                    inside.update(each)
                    await asyncio.sleep(0)
                    inside.difference_update(each)

        callers = []
        for number in range(8):
            wanted = [
                [f"{name}/{lock}" for lock in choices.sample(range(5), choices.randrange(2, 5))] for _ in range(10)
            ]
            callers.append(asyncio.create_task(enter((one, other)[number % 2], wanted)))
        # No lease ends by itself in this time, and nobody's wait does: a deadlock would last.
        await asyncio.wait_for(asyncio.gather(*callers), PATIENCE_S)

        for lock in range(5):
            await gone(one, f"{name}/{lock}")


@pytest.mark.parametrize("wait_s", [0, 0.2])
async def test_one_busy_lock_of_several_keeps_none_of_them(redis_url: str, name: str, wait_s: float) -> None:
    heard = Heard()
    first, busy, last = (f"{name}/{each}" for each in "abc")
    async with process(redis_url, "a", heard) as locker, process(redis_url, "b") as other:
        theirs = await other.acquire(busy, lease_ttl_s=LONG_S)

        with pytest.raises(LockBusy) as caught:
            await locker.acquire_many([last, busy, first], lease_ttl_s=LONG_S, wait_s=wait_s)
        assert caught.value.name == busy
        with pytest.raises(LockBusy):
            async with locker.hold_many([last, busy, first], lease_ttl_s=LONG_S, wait_s=wait_s):
                pytest.fail("the body ran without all of its leases")

        assert last not in {event.name for event in heard.all(Acquired)}
        for each in (first, last):
            await gone(locker, each)
        assert locker.held == []
        assert await theirs.release()
        await gone(locker, busy)


async def test_the_time_to_wait_is_for_all_together(redis_url: str, name: str) -> None:
    heard = Heard()
    first, last = f"{name}/a", f"{name}/b"
    async with process(redis_url, "a", heard) as locker, process(redis_url, "b") as other:
        theirs = await other.acquire_many([first, last], lease_ttl_s=LONG_S)
        waiting = asyncio.create_task(locker.acquire_many([first, last], wait_s=4.0))
        await heard.count(Waiting, 1)
        await asyncio.sleep(3.0)  # most of it goes by for the first
        assert await theirs[0].release()
        with pytest.raises(LockBusy) as caught:
            await waiting
        assert caught.value.name == last
        assert caught.value.waited_s < 3.9


async def test_a_lease_lost_while_the_next_is_waited_for_keeps_none(redis_url: str, name: str) -> None:
    heard = Heard()
    lost, late = f"{name}/a", f"{name}/b"
    async with process(redis_url, "a", heard) as locker, process(redis_url, "b") as other:
        theirs = await other.acquire(late, lease_ttl_s=LONG_S)
        calls: list[Callable[..., Coroutine[Any, Any, object]]] = [locker.acquire_many, entering_many(locker)]
        for call in calls:
            heard.events.clear()
            waiting = asyncio.create_task(call([lost, late], lease_ttl_s=1.0))
            await heard.count(Waiting, 1)
            with Keys(redis_url, lost).client as client:
                client.delete(f"lock:{{{lost}}}")
            await heard.count(Lost, 1)
            assert await theirs.release()

            with pytest.raises(LeaseLost) as caught:
                await soon(waiting)

            assert (caught.value.name, caught.value.reason) == (lost, LossReason.DELETED)
            theirs = await soon(other.acquire(late, lease_ttl_s=LONG_S))
            await gone(locker, lost)
            assert locker.held == []


async def test_a_lock_named_twice_or_wrongly_is_refused_and_nothing_is_taken(redis_url: str, name: str) -> None:
    heard = Heard()
    async with process(redis_url, "a", heard) as locker:
        with pytest.raises(ValueError, match="only once"):
            await locker.acquire_many([name, f"{name}/2", name])
        with pytest.raises(ValueError, match="only once"):
            async with locker.hold_many([name, name]):
                pytest.fail("the body ran")
        assert heard.all(Acquired) == []
        with pytest.raises(ValueError, match="a lock's name"):
            await locker.acquire_many([name, "~not a name"])
        await gone(locker, name)
        assert locker.held == []


async def test_the_body_is_cancelled_when_any_of_its_leases_is_lost(redis_url: str, name: str) -> None:
    wanted = [f"{name}/{each}" for each in "abc"]
    for lost in wanted:
        async with process(redis_url, "a") as locker:
            cancelled = False
            with pytest.raises(LeaseLost) as caught:
                async with locker.hold_many(wanted, lease_ttl_s=1.0) as leases:
                    with Keys(redis_url, lost).client as client:
                        client.delete(f"lock:{{{lost}}}")
                    try:
                        await asyncio.sleep(PATIENCE_S)
                    except asyncio.CancelledError:
                        cancelled = True
                        raise
            assert cancelled
            assert (caught.value.name, caught.value.reason) == (lost, LossReason.DELETED)
            assert [lease.name for lease in leases if lease.lost.is_set()] == [lost]
            for each in wanted:
                await gone(locker, each)
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0


async def test_several_leases_are_kept_extended_only_where_that_is_asked_for(redis_url: str, name: str) -> None:
    heard = Heard()
    wanted = [f"{name}/{each}" for each in "ab"]
    async with process(redis_url, "a", heard) as locker:
        kept = await locker.acquire_many(wanted, lease_ttl_s=1.0, keep_extended=True)
        await heard.count(Extended, 8)
        assert [await lease.release() for lease in kept] == [True, True]

        leases = await locker.acquire_many(wanted, lease_ttl_s=1.0)
        assert all(0 < lease.remaining_s() <= 1.0 for lease in leases)
        for lease in leases:
            await soon(lease.lost.wait())
            assert lease.loss_reason is LossReason.EXPIRED


# Passed on to another process


async def test_an_exported_lease_is_the_adopters_alone(redis_url: str, name: str, keys: Keys) -> None:
    heard, heard_there = Heard(), Heard()
    async with process(redis_url, "a", heard) as here, process(redis_url, "b", heard_there) as there:
        lease = await here.acquire(name, lease_ttl_s=60.0, keep_extended=True)
        keys.client.pexpire(keys.lock, 20_000)

        adopted = await there.adopt(lease.export(), request_id="r-2")

        assert adopted.fencing_token == lease.fencing_token
        assert (adopted.name, adopted.lease_ttl_s, adopted.request_id) == (name, 60.0, "r-2")
        assert 50 < adopted.remaining_s() <= 60
        assert keys.client.pttl(keys.lock) > 50_000
        view = await view_of(here, name)
        assert view.fencing_token == lease.fencing_token
        assert view.holder == Party("b", socket.gethostname(), os.getpid(), "r-2")
        assert (here.held, there.held) == ([], [adopted])
        # Its exporter has no say in it any more,
        assert lease.remaining_s() == 0
        with pytest.raises(LeaseLost):
            await lease.extend(1.0)
        with pytest.raises(LeaseLost):
            lease.export()
        assert await lease.release() is False
        assert keys.client.pttl(keys.lock) > 50_000
        assert (heard.all(Lost), heard.all(Extended), heard.all(Released)) == ([], [], [])
        # and the adopter has.
        await adopted.extend(120.0)
        assert keys.client.pttl(keys.lock) > 110_000
        waiting = asyncio.create_task(here.acquire(name, lease_ttl_s=LONG_S))
        await heard.count(Waiting, 1)
        assert await adopted.release()
        assert await (await soon(waiting)).release()


async def test_a_text_is_adopted_once_by_whomever(redis_url: str, name: str, keys: Keys) -> None:
    async with process(redis_url, "a") as here, process(redis_url, "b") as there:
        text = (await here.acquire(name, lease_ttl_s=LONG_S)).export()
        outcomes = await asyncio.gather(*[there.adopt(text) for _ in range(3)], return_exceptions=True)
        adopted = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
        refused = [outcome.reason for outcome in outcomes if isinstance(outcome, LeaseLost)]
        assert (adopted, refused) == (there.held, [LossReason.TAKEN] * 2)
        for locker in (here, there):
            with pytest.raises(LeaseLost):
                await locker.adopt(text)
        assert await adopted[0].release()
        await keys.gone()
        with pytest.raises(LeaseLost):
            await there.adopt(text)


async def test_a_lease_that_is_exported_as_its_renewal_begins_is_not_extended_any_more(
    redis_url: str, name: str, keys: Keys
) -> None:
    async with process(redis_url, "a") as locker:
        lease = await locker.acquire(name, lease_ttl_s=LONG_S, keep_extended=True)
        keys.client.pexpire(keys.lock, int(500 * LONG_S))
        locker._renewal._start(lease)
        lease.export()
        assert await locker.inspect(name) is not None  # behind whatever was sent
        assert 0 < int(keys.client.pttl(keys.lock)) <= 500 * LONG_S


async def test_a_released_lease_cannot_be_extended(redis_url: str, name: str) -> None:
    heard = Heard()
    async with process(redis_url, "a", heard) as locker:
        lease = await locker.acquire(name)
        assert await lease.release()
        with pytest.raises(LeaseLost):
            await lease.extend(10.0)
        assert heard.all(Extended) == []


async def test_an_exported_lease_is_not_kept_extended_and_an_adopted_one_is_where_asked_for(
    redis_url: str, name: str
) -> None:
    heard, heard_there = Heard(), Heard()
    async with process(redis_url, "a", heard) as here, process(redis_url, "b", heard_there) as there:
        lease = await here.acquire(name, lease_ttl_s=1.0, keep_extended=True)
        adopted = await there.adopt(lease.export(), keep_extended=True)
        await heard_there.count(Extended, 4)
        assert not adopted.lost.is_set()

        again = await here.adopt(adopted.export())  # back again, and not kept extended
        await soon(again.lost.wait())

        assert again.loss_reason is LossReason.EXPIRED
        assert again.fencing_token == adopted.fencing_token == lease.fencing_token
        assert (heard.all(Extended), heard_there.all(Lost)) == ([], [])
        await gone(here, name)


async def test_a_lease_that_nobody_adopts_runs_out_by_itself(redis_url: str, name: str) -> None:
    heard = Heard()
    async with process(redis_url, "a", heard) as locker:
        lease = await locker.acquire(name, lease_ttl_s=0.5, keep_extended=True)
        lease.export()
        await gone(locker, name)
        assert (heard.all(Lost), heard.all(Extended)) == ([], [])
        assert not lease.lost.is_set()


@pytest.mark.parametrize("adopts", [False, True], ids=["acquires", "adopts"])
async def test_whoever_gets_a_lock_that_its_process_has_tells_the_one_that_had_it(
    redis_url: str, name: str, keys: Keys, adopts: bool
) -> None:
    """Its lease was over at the server, and no renewal has said so."""
    heard = Heard()
    async with process(redis_url, "a", heard) as here, process(redis_url, "b") as there:
        first = await here.acquire(name, lease_ttl_s=LONG_S)
        keys.client.delete(keys.lock)
        if adopts:
            second = await here.adopt((await there.acquire(name, lease_ttl_s=LONG_S)).export())
        else:
            second = await here.acquire(name, lease_ttl_s=LONG_S, wait_s=0)
        assert (first.lost.is_set(), first.loss_reason) == (True, LossReason.TAKEN)
        assert [lost.fencing_token for lost in heard.all(Lost)] == [first.fencing_token]
        assert here.held == [second]
        assert await second.release()


@pytest.mark.parametrize("reason", [LossReason.DELETED, LossReason.TAKEN, LossReason.FORCED])
async def test_what_has_ended_meanwhile_is_not_adopted(
    redis_url: str, name: str, keys: Keys, reason: LossReason
) -> None:
    heard = Heard()
    async with process(redis_url, "a") as here, process(redis_url, "b", heard) as there:
        lease = await here.acquire(name, lease_ttl_s=LONG_S)
        text = lease.export()
        if reason is LossReason.DELETED:
            keys.client.delete(keys.lock)
        elif reason is LossReason.TAKEN:
            keys.client.set(keys.lock, "another", px=20_000)
        else:
            assert await here.force_release(name, fencing_token=lease.fencing_token)
        holder = keys.holder()

        with pytest.raises(LeaseLost) as caught:
            await there.adopt(text)

        assert caught.value.reason is reason
        assert (caught.value.name, caught.value.fencing_token) == (name, lease.fencing_token)
        assert keys.holder() == holder
        assert (there.held, heard.all(Adopted)) == ([], [])


async def test_the_exported_text_is_all_that_an_adopter_needs(redis_url: str, name: str) -> None:
    async with process(redis_url, "a") as locker:
        lease = await locker.acquire(name, lease_ttl_s=12.5)
        text = lease.export()
        assert json.loads(text) == [name, lease.lease_id, lease.fencing_token, lease.fencing_token, 12.5]
        assert text.isascii()
        assert await (await locker.adopt(text)).release()


ID = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "garbage",
        "{}",
        "[]",
        "null",
        "1",
        '"text"',
        json.dumps(["a:1", ID, 1]),
        json.dumps(["a:1", ID, 1, 1, 10.0, 5]),
        json.dumps([1, ID, 1, 1, 10.0]),
        json.dumps(["not a name", ID, 1, 1, 10.0]),
        json.dumps(["a{b}", ID, 1, 1, 10.0]),
        json.dumps(["a:1", ID[1:], 1, 1, 10.0]),
        json.dumps(["a:1", f"{ID}0", 1, 1, 10.0]),
        json.dumps(["a:1", f"{ID[2:]}\r\n", 1, 1, 10.0]),
        json.dumps(["a:1", 5, 1, 1, 10.0]),
        json.dumps(["a:1", ID, "1", 1, 10.0]),
        json.dumps(["a:1", ID, 1.5, 1, 10.0]),
        json.dumps(["a:1", ID, 1, "1", 10.0]),
        json.dumps(["a:1", ID, 1, 1, "10"]),
        json.dumps(["a:1", ID, 1, 1, 0]),
        json.dumps(["a:1", ID, 1, 1, -1.0]),
        json.dumps(["a:1", ID, 1, 1, 3601]),
        json.dumps(["a:1", ID, 1, 1, None]),
        json.dumps(["a:1", ID, 1, 1, float("nan")]),
        json.dumps(["a:1", ID, 1, 1, float("inf")]),
        json.dumps(["a:1", ID, 1, 1, 10**400]),
        json.dumps({"name": "a:1"}),
        "[" * 100_000,
        "[" * 3 + "]" * 3,
        "\ud800",
        "\x00",
    ],
    ids=range(32),
)
async def test_a_text_that_nobody_exported_is_refused(redis_url: str, garbage: str) -> None:
    heard = Heard()
    async with process(redis_url, "a", heard) as locker:
        with pytest.raises(ValueError, match=r"not an exported lease|a lock's name|lease_ttl_s"):
            await locker.adopt(garbage)
        assert (locker.held, heard.all(Adopted)) == ([], [])


async def test_a_guessed_lease_id_adopts_nothing(redis_url: str, name: str) -> None:
    async with process(redis_url, "a") as here, process(redis_url, "b") as there:
        lease = await here.acquire(name, lease_ttl_s=LONG_S)
        with pytest.raises(LeaseLost) as caught:
            await there.adopt(json.dumps([name, ID, lease.fencing_token, lease.fencing_token, 10.0]))
        assert caught.value.reason is LossReason.TAKEN
        assert await lease.release()


# Looked at


async def test_a_free_lock_has_nothing_to_show(redis_url: str, name: str) -> None:
    async with process(redis_url, "a") as locker:
        assert await locker.inspect(name) is None
        assert await (await locker.acquire(name)).release()
        assert await locker.inspect(name) is None
        with pytest.raises(ValueError, match="a lock's name"):
            await locker.inspect("not a name")


async def test_anybody_sees_who_holds_since_when_and_for_how_long(redis_url: str, name: str) -> None:
    async with process(redis_url, "api-3") as here, process(redis_url, "b") as there:
        lease = await here.acquire(name, lease_ttl_s=60.0, request_id="charge 42")
        earlier = await view_of(there, name)

        async def later() -> bool:
            view = await view_of(there, name)
            assert earlier.held_s is not None
            assert view.held_s is not None
            return view.held_s >= earlier.held_s + 0.05

        await wait_until_async(later)
        view = await view_of(there, name)

        assert view.name == name
        assert view.is_held
        assert not view.by_python_redis_lock
        assert view.holder == Party("api-3", socket.gethostname(), os.getpid(), "charge 42")
        assert view.fencing_token == lease.fencing_token
        assert view.lease_ttl_s == 60.0
        assert view.held_s is not None
        assert view.expires_in_s is not None
        assert 59.5 < view.held_s + view.expires_in_s < 60.5
        assert (view.waiting, view.waiter_count) == ((), 0)
        assert await lease.release()


async def test_anybody_sees_who_waits_in_order_and_how_many(redis_url: str, name: str) -> None:
    heard = Heard()
    async with (
        process(redis_url, "a", heard, alive_ms=900) as first,
        process(redis_url, "b", heard, alive_ms=900) as second,
        process(redis_url, "c", heard, alive_ms=900) as third,
    ):
        lease = await first.acquire(name, lease_ttl_s=LONG_S)
        waiting = []
        for locker, request_id in ((second, "b-1"), (third, "c-1"), (second, "b-2"), (first, "a-1"), (second, "b-3")):
            waiting.append(asyncio.create_task(locker.acquire(name, lease_ttl_s=LONG_S, request_id=request_id)))
            await heard.count(Waiting, len(waiting))

        async def all_stand() -> bool:
            return (await view_of(third, name)).waiter_count == 5

        await wait_until_async(all_stand)
        view = await view_of(third, name)
        stand = [(each.party.instance_id, each.party.request_id, each.waiter_count) for each in view.waiting]
        assert stand == [("b", "b-1", 3), ("c", "c-1", 1), ("a", "a-1", 1)]
        assert {(each.party.host, each.party.pid) for each in view.waiting} == {(socket.gethostname(), os.getpid())}
        waited_s = [each.waited_s for each in view.waiting]
        assert waited_s == sorted(waited_s, reverse=True)
        assert view.holder == Party("a", socket.gethostname(), os.getpid(), "")

        # A lease id is a capability, so nobody's is shown.
        with Keys(redis_url, name).client as client:
            entries = [entry for field, entry in client.hgetall(f"lock-waiters:{{{name}}}").items() if field[0] != "."]
        lease_ids = [lease.lease_id, *(str(entry).split("\t")[3] for entry in entries)]
        assert [len(each) for each in lease_ids] == [32] * 4
        assert not any(each in repr(view) for each in lease_ids)

        for each in waiting:
            each.cancel()
        assert await asyncio.gather(*waiting, return_exceptions=True)
        assert await lease.release()
        await gone(third, name)


@pytest.mark.parametrize("expire", [20, None])
async def test_a_python_redis_lock_program_is_shown_as_such(
    redis_url: str, name: str, keys: Keys, expire: int | None
) -> None:
    theirs = redis_lock.Lock(keys.client, f"{{{name}}}", expire=expire)
    async with process(redis_url, "a") as locker:
        assert await (await locker.acquire(name)).release()  # whose grant must not be taken for theirs
        assert theirs.acquire(blocking=False)
        view = await view_of(locker, name)
        assert view.is_held
        assert view.by_python_redis_lock
        assert (view.holder, view.fencing_token, view.held_s, view.lease_ttl_s) == (None, None, None, None)
        if expire is None:
            assert view.expires_in_s is None
        else:
            assert view.expires_in_s is not None
            assert 10 < view.expires_in_s <= 20
        assert str(keys.holder()) not in repr(view)
        theirs.release()
        assert await locker.inspect(name) is None


# Ended by force


async def test_a_forced_holder_is_told_at_once_and_the_next_gets_the_lock(redis_url: str, name: str) -> None:
    heard, heard_there = Heard(), Heard()
    cancelled = False

    async def hold(locker: Locker) -> None:
        nonlocal cancelled
        async with locker.hold(name, lease_ttl_s=LONG_S):
            try:
                await asyncio.sleep(PATIENCE_S)
            except asyncio.CancelledError:
                cancelled = True
                raise

    async with process(redis_url, "a", heard) as here, process(redis_url, "b", heard_there) as there:
        holding = asyncio.create_task(hold(here))
        await heard.count(Acquired, 1)
        token = heard.all(Acquired)[0].fencing_token
        waiting = asyncio.create_task(there.acquire(name, lease_ttl_s=LONG_S))
        await heard_there.count(Waiting, 1)
        await in_line(redis_url, name)

        # Neither a renewal nor a heartbeat comes within minutes.
        assert await there.force_release(name, fencing_token=token) is True

        with pytest.raises(LeaseLost) as caught:
            await soon(holding)
        assert (caught.value.reason, caught.value.fencing_token) == (LossReason.FORCED, token)
        assert cancelled
        assert [(event.reason, event.fencing_token) for event in heard.all(Lost)] == [(LossReason.FORCED, token)]
        assert heard.all(Released) == []
        assert heard_there.all(Forced) == [Forced(name, token)]
        lease = await soon(waiting)
        assert lease.fencing_token > token
        # The lease that was forced is not the current one any more: nobody is thrown out by a repetition.
        with pytest.raises(HolderChanged, match=str(token)):
            await here.force_release(name, fencing_token=token)
        assert (await view_of(here, name)).fencing_token == lease.fencing_token
        assert await lease.release()
        assert await there.force_release(name, fencing_token=lease.fencing_token) is False
        assert heard.all(Forced) == []
        assert len(heard_there.all(Forced)) == 1


async def test_a_holder_that_misses_the_message_learns_by_its_renewal_that_it_was_forced(
    redis_url: str, name: str
) -> None:
    heard = Heard()
    async with process(redis_url, "a", heard) as here, process(redis_url, "b") as there:
        with pytest.raises(LeaseLost) as caught:
            async with here.hold(name, lease_ttl_s=2.0) as lease:
                await here._servers.node_of(name).messages.close()
                assert await there.force_release(name, fencing_token=lease.fencing_token)
                # Another holds it by now, which alone would be a loss to another.
                theirs = await there.acquire(name, lease_ttl_s=LONG_S, wait_s=0)
                await asyncio.sleep(PATIENCE_S)
        assert caught.value.reason is LossReason.FORCED
        assert [event.reason for event in heard.all(Lost)] == [LossReason.FORCED]
        assert await theirs.release()


async def test_a_python_redis_lock_program_that_died_without_expiry_is_forced_out_with_token_0(
    redis_url: str, name: str, keys: Keys
) -> None:
    heard = Heard()
    async with process(redis_url, "a", heard) as locker:
        before = await locker.acquire(name)
        assert await before.release()
        assert redis_lock.Lock(keys.client, f"{{{name}}}", expire=None).acquire(blocking=False)
        waiting = asyncio.create_task(locker.acquire(name, lease_ttl_s=LONG_S))
        await heard.count(Waiting, 1)
        await in_line(redis_url, name)
        with pytest.raises(HolderChanged):
            await locker.force_release(name, fencing_token=before.fencing_token)

        assert await locker.force_release(name, fencing_token=0) is True

        lease = await soon(waiting)
        with pytest.raises(HolderChanged):  # a lease of ours has a token
            await locker.force_release(name, fencing_token=0)
        assert await lease.release()
        assert await locker.force_release(name, fencing_token=0) is False
        assert heard.all(Forced) == [Forced(name, 0)]


# Bounds


async def test_too_many_waiters_of_one_lock_are_refused_and_others_are_not(redis_url: str, name: str) -> None:
    heard = Heard()
    async with process(redis_url, "a", heard, max_waiters_per_lock=2) as locker:
        leases = [await locker.acquire(each, lease_ttl_s=LONG_S) for each in (name, f"{name}/2")]
        waiting = [asyncio.create_task(locker.acquire(name)) for _ in range(2)]
        await heard.count(Waiting, 2)

        with pytest.raises(TooManyWaiters, match="that wait for this lock already: 2"):
            await locker.acquire(name)

        assert locker.waiter_count == len(heard.all(Waiting)) == 2
        waiting.append(asyncio.create_task(locker.acquire(f"{name}/2")))
        await heard.count(Waiting, 3)
        for lease in leases:
            assert await lease.release()
        for each in waiting:
            assert await (await soon(each)).release()
        assert locker.waiter_count == 0


async def test_too_many_waiters_of_a_process_are_refused_whatever_they_wait_for(redis_url: str, name: str) -> None:
    heard = Heard()
    async with process(redis_url, "a", heard, max_waiters=1) as locker:
        lease = await locker.acquire(name, lease_ttl_s=LONG_S)
        waiting = asyncio.create_task(locker.acquire(name))
        await heard.count(Waiting, 1)
        for each in (name, f"{name}/2"):
            with pytest.raises(TooManyWaiters, match="callers of this process that wait already: 1"):
                await locker.acquire(each)
        assert await locker.inspect(f"{name}/2") is None
        assert await (await locker.acquire(f"{name}/2", wait_s=0)).release()  # who does not wait is no waiter
        assert await lease.release()
        assert await (await soon(waiting)).release()


async def test_callers_at_once_do_not_get_more_leases_than_there_may_be(redis_url: str, name: str) -> None:
    async with process(redis_url, "a", Heard(), max_leases=3) as locker:
        calls = [locker.acquire(f"{name}/{number}", lease_ttl_s=LONG_S) for number in range(10)]

        outcomes = await asyncio.gather(*calls, return_exceptions=True)

        assert sum(isinstance(outcome, TooManyLeases) for outcome in outcomes) == 7
        assert len(locker.held) == 3
        for lease in locker.held:
            assert await lease.release()
        assert await (await locker.acquire(name)).release()


async def test_too_many_leases_are_refused_and_nothing_is_taken(redis_url: str, name: str) -> None:
    heard = Heard()
    async with process(redis_url, "a", heard, max_leases=2) as locker, process(redis_url, "b") as other:
        leases = [await locker.acquire(f"{name}/{number}", lease_ttl_s=LONG_S) for number in range(2)]
        exported = (await other.acquire(f"{name}/exported", lease_ttl_s=LONG_S)).export()
        refused: list[Callable[[], Awaitable[object]]] = [
            lambda: locker.acquire(name),
            lambda: locker.acquire(name, wait_s=0),
            lambda: locker.acquire(f"{name}/0"),
            lambda: locker.acquire_many([name]),
            lambda: locker.adopt(exported),
            lambda: locker.hold(name).__aenter__(),
        ]
        for call in refused:
            with pytest.raises(TooManyLeases, match="holds or asks for already: 2"):
                await call()

        assert await locker.inspect(name) is None
        assert (await view_of(other, f"{name}/exported")).holder == Party("b", socket.gethostname(), os.getpid(), "")
        assert len(heard.all(Acquired)) == 2
        assert (heard.all(Waiting), heard.all(Adopted), locker.waiter_count) == ([], [], 0)
        assert await leases.pop().release()
        with pytest.raises(TooManyLeases):  # all or none
            await locker.acquire_many([f"{name}/8", f"{name}/9"], lease_ttl_s=LONG_S)
        await gone(locker, f"{name}/8")
        leases.append(await locker.adopt(exported))
        for lease in leases:
            assert await lease.release()


@pytest.mark.parametrize("bad", ["x" * 201, "é", "a\tb", "a\nb", "\x00", "\x7f"])
async def test_a_request_id_that_cannot_be_kept_is_refused_and_nothing_is_taken(
    redis_url: str, name: str, bad: str
) -> None:
    heard = Heard()
    async with process(redis_url, "a", heard) as locker, process(redis_url, "b") as other:
        exported = (await other.acquire(f"{name}/exported")).export()
        refused: list[Callable[[], Awaitable[object]]] = [
            lambda: locker.acquire(name, request_id=bad),
            lambda: locker.acquire(name, request_id=bad, wait_s=0),
            lambda: locker.acquire_many([name], request_id=bad),
            lambda: locker.adopt(exported, request_id=bad),
            lambda: locker.hold(name, request_id=bad).__aenter__(),
            lambda: locker.hold_many([name], request_id=bad).__aenter__(),
        ]
        for call in refused:
            with pytest.raises(ValueError, match="a request_id is at most 200 printable ASCII characters"):
                await call()
        assert await locker.inspect(name) is None
        assert (heard.all(Acquired), heard.all(Adopted)) == ([], [])
        assert await (await locker.adopt(exported)).release()


async def test_the_longest_request_id_of_every_sign_is_shown(redis_url: str, name: str) -> None:
    longest = "".join(chr(each) for each in range(ord(" "), ord("~") + 1)).ljust(200, "x")
    async with process(redis_url, "a") as locker:
        for wait_s in (0, None):
            lease = await locker.acquire(name, request_id=longest, wait_s=wait_s)
            holder = (await view_of(locker, name)).holder
            assert holder is not None
            assert holder.request_id == lease.request_id == longest
            assert await lease.release()


# Events


async def test_a_life_without_contention_is_told_fact_by_fact(redis_url: str, name: str) -> None:
    heard = Heard()
    async with process(redis_url, "a", heard) as locker:
        heard.events.clear()
        for wait_s in (0, None):
            lease = await locker.acquire(name, wait_s=wait_s)
            token = lease.fencing_token
            await lease.extend(20.0)
            assert await lease.release()

            acquired, extended, releasing, released = heard.events
            assert acquired == Acquired(name, token, lease.waited_s, WakeSource.NONE, False, False, None)
            assert extended == Extended(name, token)
            assert releasing == Releasing(name, token)
            assert isinstance(released, Released)
            assert released == Released(name, token, released.held_s, still_ours=True, handed_over=False)
            assert 0 < released.held_s < SOON_S
            heard.events.clear()


async def test_a_transfer_is_told_by_both_sides(redis_url: str, name: str) -> None:
    heard, heard_there = Heard(), Heard()
    async with process(redis_url, "a", heard) as here, process(redis_url, "b", heard_there) as there:
        lease = await here.acquire(name)
        adopted = await there.adopt(lease.export())
        (exported,) = heard.all(Exported)
        assert exported == Exported(name, lease.fencing_token, exported.held_s)
        assert 0 < exported.held_s < SOON_S
        assert heard_there.all(Adopted) == [Adopted(name, lease.fencing_token)]
        assert (heard.all(Released), heard_there.all(Acquired)) == ([], [])
        assert await adopted.release()
        assert [event.still_ours for event in heard_there.all(Released)] == [True]


async def test_a_release_of_what_is_gone_is_told_as_such(redis_url: str, name: str, keys: Keys) -> None:
    heard = Heard()
    async with process(redis_url, "a", heard) as locker:
        lease = await locker.acquire(name, lease_ttl_s=LONG_S)
        keys.client.delete(keys.lock)
        assert await lease.release() is False
        (released,) = heard.all(Released)
        assert (released.still_ours, released.handed_over) == (False, False)
        assert heard.all(Lost) == []


@pytest.mark.parametrize("waiters_are_of", ["a", "b"])
async def test_contention_is_told_fact_by_fact(redis_url: str, name: str, waiters_are_of: str) -> None:
    heard = Heard()
    async with process(redis_url, "a", heard) as here, process(redis_url, "b", heard) as there:
        locker = {"a": here, "b": there}[waiters_are_of]
        lease = await here.acquire(name, lease_ttl_s=LONG_S)
        heard.events.clear()
        waiting = asyncio.create_task(locker.acquire(name, lease_ttl_s=LONG_S))
        await heard.count(Waiting, 1)
        await in_line(redis_url, name)
        cancelled = asyncio.create_task(locker.acquire(name))
        await heard.count(Waiting, 2)
        cancelled.cancel()
        await heard.count(GaveUp, 1)
        with pytest.raises(LockBusy):
            await locker.acquire(name, wait_s=0.01)
        assert await lease.release()
        theirs = await soon(waiting)
        await heard.count(Released, 1)
        assert await theirs.release()

        assert heard.all(Waiting) == [Waiting(name)] * 3
        gave_up = heard.all(GaveUp)
        assert [(event.name, event.outcome, event.queued) for event in gave_up] == [
            (name, "cancelled", True),
            (name, "busy", True),
        ]
        assert gave_up[1].waited_s >= 0.01
        (acquired,) = heard.all(Acquired)
        assert (acquired.name, acquired.fencing_token) == (name, theirs.fencing_token)
        assert (acquired.wake_source, acquired.queued, acquired.takeover) == (WakeSource.HANDOFF, True, False)
        assert acquired.waited_s == theirs.waited_s > 0
        assert acquired.handoff_s is not None
        assert 0 <= acquired.handoff_s < SOON_S
        released = [(event.fencing_token, event.still_ours, event.handed_over) for event in heard.all(Released)]
        assert released == [(lease.fencing_token, True, True), (theirs.fencing_token, True, False)]


# What wakes a waiter


async def test_a_waiter_is_woken_by_a_change_of_the_lock_key(redis_url: str, name: str, keys: Keys) -> None:
    heard = Heard()
    async with process(redis_url, "a", heard) as locker:
        keys.client.set(keys.lock, "another")  # without expiry
        assert await woken(locker, heard, redis_url, name, lambda: keys.client.delete(keys.lock)) is WakeSource.TRACKING


async def test_a_waiter_is_woken_by_a_message_that_the_lock_is_free(blind_server: RedisServer, name: str) -> None:
    """A release does not hand over, but lets a python-redis-lock program go first, which then does not come."""
    heard, heard_there = Heard(), Heard()
    with redis.Redis.from_url(blind_server.url, socket_timeout=PATIENCE_S) as client:
        async with (
            process(blind_server.url, "a", heard, handoffs=0, signal_ms=LONG_MS) as here,
            process(blind_server.url, "b", heard_there, handoffs=0, signal_ms=LONG_MS) as there,
        ):
            first = await there.acquire(name, lease_ttl_s=LONG_S)
            waiting = asyncio.create_task(here.acquire(name, lease_ttl_s=LONG_S))
            await heard.count(Waiting, 1)
            waiting_there = asyncio.create_task(there.acquire(name, lease_ttl_s=LONG_S))
            await heard_there.count(Waiting, 1)
            await in_line(blind_server.url, name, count=2)
            assert await first.release()  # which leaves a signal for such a program
            second = await soon(waiting)
            assert client.blpop([f"lock-signal:{{{name}}}"], timeout=SOON_S)  # and one was waiting for it
            assert await second.release()
            third = await soon(waiting_there)
            acquired = heard_there.all(Acquired)[-1]
            assert (acquired.wake_source, acquired.handoff_s) == (WakeSource.MESSAGE, None)
            assert [event.handed_over for event in heard.all(Released)] == [False]
            assert await third.release()


async def test_a_waiter_is_woken_by_its_timer_at_the_holders_end(blind_server: RedisServer, name: str) -> None:
    heard = Heard()
    with redis.Redis.from_url(blind_server.url, socket_timeout=PATIENCE_S) as client:
        client.set(f"lock:{{{name}}}", "another", px=500)
        async with process(blind_server.url, "a", heard) as locker:
            assert await woken(locker, heard, blind_server.url, name, lambda: None) is WakeSource.TIMER


async def test_a_waiter_finds_a_free_lock_by_its_sign_of_life_at_the_latest(
    blind_server: RedisServer, name: str
) -> None:
    heard = Heard()
    with redis.Redis.from_url(blind_server.url, socket_timeout=PATIENCE_S) as client:
        client.set(f"lock:{{{name}}}", "another")
        async with process(blind_server.url, "a", heard, alive_ms=900) as locker:
            source = await woken(locker, heard, blind_server.url, name, lambda: client.delete(f"lock:{{{name}}}"))
            assert source is WakeSource.HEARTBEAT


async def test_a_waiter_looks_again_when_its_connection_is_back(own_redis: OwnRedis, name: str) -> None:
    heard = Heard()
    with redis.Redis(port=own_redis.port, socket_timeout=PATIENCE_S) as client:
        client.set(f"lock:{{{name}}}", "another")

        def cut_and_free() -> None:
            # In one go, so that nobody is back before the lock is free, or still there when it becomes free.
            pipeline = client.pipeline(transaction=False)
            for kind in ("normal", "pubsub"):
                pipeline.client_kill_filter(_type=kind, skipme=True)
            pipeline.delete(f"lock:{{{name}}}")
            pipeline.execute()

        async with process(own_redis.url, "a", heard) as locker:
            assert await woken(locker, heard, own_redis.url, name, cut_and_free) is WakeSource.RECONNECT


@pytest.mark.parametrize("wait_s", [0, None])
async def test_a_free_lock_is_taken_at_once_where_only_the_dead_stand_in_line(
    redis_url: str, name: str, keys: Keys, wait_s: float | None
) -> None:
    heard = Heard()
    keys.client.set(keys.lock, "another", px=60_000)
    async with process(redis_url, "a", heard) as dying, process(redis_url, "b") as locker:
        waiting = asyncio.create_task(dying.acquire(name))
        await heard.count(Waiting, 1)
        await in_line(redis_url, name)
        node = dying._servers.node_of(name)
        await node.messages.close()
        await node.commands.close()
        keys.client.delete(keys.lock)

        # Its sign of life would last for minutes.
        lease = await soon(locker.acquire(name, wait_s=wait_s))

        assert await lease.release()
        waiting.cancel()
        await asyncio.wait([waiting])


# The library as its own docstring shows it


async def test_the_docstrings_example_is_true(redis_url: str, name: str) -> None:
    assert locks.__doc__ is not None
    example = locks.__doc__.partition("\n\n")[2]
    assert "redis://localhost" in example
    assert "appointment:42" in example
    example = example.replace("redis://localhost", redis_url).replace("appointment:42", name)
    example = example.replace("...", "seen.append((lease, await locker.inspect(lease.name)))")
    seen: list[Any] = []
    scope: dict[str, Any] = {"Locker": Locker, "seen": seen}
    exec(f"async def run():\n{textwrap.indent(example, '    ')}", scope)

    await scope["run"]()

    ((lease, view),) = seen
    assert view.holder.instance_id == "api-3"
    assert view.fencing_token == lease.fencing_token
    assert lease.ended
    async with process(redis_url, "a") as locker:
        assert await locker.inspect(name) is None


# Helpers


async def view_of(locker: Locker, name: str) -> LockView:
    view = await locker.inspect(name)
    assert view is not None
    return view


async def gone(locker: Locker, name: str) -> None:
    """Waits until nobody holds it and nobody waits."""

    async def nothing_left() -> bool:
        return await locker.inspect(name) is None

    await wait_until_async(nothing_left, patience_s=SOON_S, what=f"{name} to be free")


async def in_line(url: str, name: str, *, count: int = 1) -> None:
    """Once so many processes stand in line at the server."""
    with redis.Redis.from_url(url, socket_timeout=PATIENCE_S) as client:

        async def enough() -> bool:
            return int(client.zcard(f"lock-queue:{{{name}}}")) >= count

        await wait_until_async(enough)


def entering_many(locker: Locker) -> Callable[..., Coroutine[Any, Any, object]]:
    async def enter(names: list[str], *, lease_ttl_s: float) -> None:
        async with locker.hold_many(names, lease_ttl_s=lease_ttl_s):
            pytest.fail("the body ran without all of its leases")

    return enter


async def woken(locker: Locker, heard: Heard, url: str, name: str, free: Callable[[], object]) -> WakeSource:
    """What brought the lock to a caller who stood in line when it became free."""
    waiting = asyncio.create_task(locker.acquire(name, lease_ttl_s=LONG_S))
    await heard.count(Waiting, 1)
    await in_line(url, name)
    await looked(locker, name)
    free()
    lease = await soon(waiting)
    (acquired,) = heard.all(Acquired)
    assert (acquired.queued, acquired.handoff_s) == (True, None)
    assert await lease.release()
    return acquired.wake_source


async def looked(locker: Locker, name: str) -> None:
    """Once the line has the answer to its look, and has asked to be told of changes: nothing is on its way any more."""

    async def nothing_asked() -> bool:
        line = locker._lines.by_name[name]
        return line.asked is None

    await wait_until_async(nothing_asked)
    assert await locker.inspect(name) is not None  # travels behind all that was asked before
