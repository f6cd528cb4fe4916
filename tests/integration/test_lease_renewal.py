"""A lease is kept extended, or its holder learns in time that it is lost, and why."""
# ruff: noqa: PT012 - what raises is a hold with its whole body

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator

import pytest

from locks import Lease, LeaseLost, LockBusy, LossReason
from locks.clock import SYSTEM
from locks.events import Extended, Lost, Released, Unknown
from tests.harness import PATIENCE_S, OwnRedis, wait_until_async
from tests.integration.test_locker import Heard, Keys, locking, own_keys
from tests.proxy import Cut, Proxy

SHORT_S = 0.3


@pytest.fixture
def keys(redis_url: str, name: str) -> Iterator[Keys]:
    keys = Keys(redis_url, name)
    yield keys
    keys.client.close()


async def lost(lease: Lease) -> None:
    await asyncio.wait_for(lease.lost.wait(), PATIENCE_S)


# Kept extended


async def test_a_held_lease_outlives_its_time_under_one_token(redis_url: str, name: str, keys: Keys) -> None:
    heard = Heard()
    async with locking(redis_url, heard=heard) as locker, locker.hold(name, lease_ttl_s=1.0) as lease:
        holder, token = keys.holder(), lease.fencing_token
        await heard.count(Extended, 4)  # a third of the lease each

        assert lease.held_s > 1.0
        assert keys.holder() == holder == lease.lease_id
        assert keys.fence() == lease.fencing_token == token
        assert not lease.lost.is_set()
        assert lease.remaining_s() > 0


async def test_an_acquired_lease_lapses_and_says_so(redis_url: str, name: str, keys: Keys) -> None:
    heard = Heard()
    async with locking(redis_url, heard=heard) as locker:
        lease = await locker.acquire(name, lease_ttl_s=SHORT_S)
        assert not lease.lost.is_set()

        await lost(lease)

        assert lease.loss_reason is LossReason.EXPIRED
        # It says so before Redis lets the next one in.
        assert lease.held_s >= SHORT_S * 0.9
        assert lease.remaining_s() == 0
        with pytest.raises(LeaseLost) as caught:
            await lease.extend(1.0)
        assert (caught.value.name, caught.value.reason) == (name, LossReason.EXPIRED)
        assert caught.value.fencing_token == lease.fencing_token
        assert await lease.release() is False
        assert heard.all(Extended) == []
        (event,) = heard.all(Lost)
        assert (event.reason, event.fencing_token) == (LossReason.EXPIRED, lease.fencing_token)
        await keys.gone()


async def test_an_acquired_lease_is_kept_extended_where_that_is_asked_for(redis_url: str, name: str) -> None:
    heard = Heard()
    async with locking(redis_url, heard=heard) as locker:
        lease = await locker.acquire(name, lease_ttl_s=1.0, keep_extended=True)
        await heard.count(Extended, 4)
        assert await lease.release()
        extended = len(heard.all(Extended))
        await asyncio.sleep(0.5)
        assert len(heard.all(Extended)) == extended


async def test_an_extended_lease_has_its_new_end(redis_url: str, name: str, keys: Keys) -> None:
    async with locking(redis_url) as locker:
        lease = await locker.acquire(name, lease_ttl_s=1.0)
        token = lease.fencing_token
        await lease.extend(60)
        assert lease.remaining_s() > 50
        assert keys.client.pttl(keys.lock) > 50_000
        await lease.extend(SHORT_S)
        assert lease.fencing_token == keys.fence() == token
        await lost(lease)
        assert lease.loss_reason is LossReason.EXPIRED


async def test_whoever_asks_for_the_lock_does_not_cut_an_extended_lease(redis_url: str, name: str, keys: Keys) -> None:
    """A key with more time left than its lease is cut, since then the clock was set back; an extension is the lease."""
    async with locking(redis_url) as locker, locking(redis_url) as other:
        lease = await locker.acquire(name, lease_ttl_s=1.0)
        await lease.extend(60)
        for wait_s in (0, 0.05):
            with pytest.raises(LockBusy):
                await other.acquire(name, wait_s=wait_s)

        assert keys.client.pttl(keys.lock) > 50_000
        assert await lease.release()


async def test_a_short_lease_beside_a_long_one_is_kept_extended(redis_url: str, name: str) -> None:
    """One loop for all leases: the look at one must not put off the look at another."""
    heard = Heard()
    async with (
        locking(redis_url, heard=heard) as locker,
        locker.hold(f"{name}/long", lease_ttl_s=3600) as long,
        locker.hold(f"{name}/short", lease_ttl_s=1.5) as short,
    ):
        await heard.count(Extended, 1)
        # The next look at the long one is in a third of its lease; let that be now.
        long.deadline_s -= 3600 * 2 / 3
        locker._renewal.watch(long)
        await heard.count(Extended, 6)
        assert not short.lost.is_set()


async def test_many_leases_are_all_kept_extended(redis_url: str, name: str) -> None:
    async with locking(redis_url) as locker:

        async def hold(number: int) -> None:
            async with locker.hold(f"{name}/{number}", lease_ttl_s=2.0 + number % 7) as lease:
                await asyncio.sleep(3.0)
                assert lease.remaining_s() > 0

        await asyncio.gather(*[hold(number) for number in range(200)])


# Lost, and why


async def test_a_deleted_key_is_a_loss(redis_url: str, name: str, keys: Keys) -> None:
    heard = Heard()
    async with locking(redis_url, heard=heard) as locker:
        with pytest.raises(LeaseLost) as caught:
            async with locker.hold(name, lease_ttl_s=2.0) as lease:
                keys.client.delete(keys.lock)
                await asyncio.sleep(PATIENCE_S)
        assert caught.value.reason is LossReason.DELETED
        assert caught.value.fencing_token == lease.fencing_token
        assert lease.lost.is_set()
        assert [event.reason for event in heard.all(Lost)] == [LossReason.DELETED]
        assert heard.all(Released) == []
        assert_not_cancelling()


async def test_a_lock_taken_by_another_is_a_loss_and_stays_the_others(redis_url: str, name: str, keys: Keys) -> None:
    async with locking(redis_url) as locker:
        with pytest.raises(LeaseLost) as caught:
            async with locker.hold(name, lease_ttl_s=2.0):
                keys.client.set(keys.lock, "another", px=20_000)
                await asyncio.sleep(PATIENCE_S)
        assert caught.value.reason is LossReason.TAKEN
        assert keys.holder() == "another"


@pytest.mark.parametrize("kill", [False, True], ids=["frozen", "dead"])
async def test_a_server_out_of_reach_is_a_loss_at_the_leases_end(own_redis: OwnRedis, name: str, kill: bool) -> None:
    heard = Heard()
    async with locking(own_redis.url, heard=heard, command_timeout_s=0.2) as locker:
        with pytest.raises(LeaseLost) as caught:
            async with locker.hold(name, lease_ttl_s=1.5) as lease:
                if kill:
                    own_redis.kill()
                else:
                    own_redis.signal(signal.SIGSTOP)
                await asyncio.sleep(PATIENCE_S)
        assert caught.value.reason is LossReason.UNREACHABLE
        # Unknown is not extended: not before the old deadline, and not long after.
        assert -0.01 <= SYSTEM.monotonic_s() - lease.deadline_s < 10
        assert {event.fencing_token for event in heard.all(Unknown)} == {lease.fencing_token}
        assert_not_cancelling()
        if not kill:
            own_redis.signal(signal.SIGCONT)


async def test_a_server_that_comes_back_within_the_lease_costs_nothing(own_redis: OwnRedis, name: str) -> None:
    heard = Heard()
    with Proxy("127.0.0.1", own_redis.port) as proxy:
        async with (
            locking(f"redis://127.0.0.1:{proxy.port}/0", heard=heard, command_timeout_s=1) as locker,
            locker.hold(name, lease_ttl_s=6.0) as lease,
        ):
            proxy.cut_once(Cut.BEFORE_FORWARDING, at=b"EVALSHA")
            await heard.count(Unknown, 1)
            await heard.count(Extended, 1)
            assert lease.loss_reason is None
            assert lease.remaining_s() > 0


async def test_a_restart_without_data_is_a_loss_by_deletion(own_redis: OwnRedis, name: str) -> None:
    async with locking(own_redis.url) as locker:
        with pytest.raises(LeaseLost) as caught:
            async with locker.hold(name, lease_ttl_s=6.0):
                own_redis.kill()
                own_redis.start()
                await asyncio.sleep(PATIENCE_S)
    assert caught.value.reason is LossReason.DELETED


async def test_a_loop_that_was_blocked_past_the_lease_learns_of_its_loss(redis_url: str, name: str) -> None:
    async with locking(redis_url) as locker:
        with pytest.raises(LeaseLost):
            async with locker.hold(name, lease_ttl_s=0.2):
                block_the_loop(0.4)
                await asyncio.sleep(PATIENCE_S)
        assert_not_cancelling()


async def test_a_body_that_blocks_past_its_lease_and_ends_learns_of_its_loss(redis_url: str, name: str) -> None:
    async with locking(redis_url) as locker:
        with pytest.raises(LeaseLost):
            async with locker.hold(name, lease_ttl_s=0.2):
                block_the_loop(0.4)
        assert_not_cancelling()
        await asyncio.sleep(0)


# The body


async def test_the_body_is_cancelled_at_its_await(redis_url: str, name: str, keys: Keys) -> None:
    cancelled = False
    async with locking(redis_url) as locker:
        with pytest.raises(LeaseLost) as caught:
            async with locker.hold(name, lease_ttl_s=1.0):
                keys.client.delete(keys.lock)
                try:
                    await asyncio.sleep(PATIENCE_S)
                except asyncio.CancelledError:
                    cancelled = True
                    raise
        assert cancelled
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        assert_not_cancelling()
        await asyncio.sleep(0)  # no cancellation is left over


async def test_a_body_that_ends_in_spite_of_its_cancellation_learns_of_the_loss_too(
    redis_url: str, name: str, keys: Keys
) -> None:
    async with locking(redis_url) as locker:
        with pytest.raises(LeaseLost):
            async with locker.hold(name, lease_ttl_s=1.0):
                keys.client.delete(keys.lock)
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(PATIENCE_S)
        assert_not_cancelling()
        await asyncio.sleep(0)


async def test_an_outer_cancellation_comes_out_as_itself_and_the_lock_is_released(
    redis_url: str, name: str, keys: Keys
) -> None:
    async with locking(redis_url) as locker:
        entered = asyncio.Event()

        async def body() -> None:
            async with locker.hold(name):
                entered.set()
                await asyncio.sleep(PATIENCE_S)

        task = asyncio.create_task(body())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await keys.gone()


async def test_an_outer_cancellation_beside_the_loss_comes_out_as_itself(redis_url: str, name: str, keys: Keys) -> None:
    async with locking(redis_url) as locker:
        leases: list[Lease] = []

        async def body() -> None:
            async with locker.hold(name, lease_ttl_s=1.0) as lease:
                leases.append(lease)
                try:
                    await asyncio.sleep(PATIENCE_S)
                finally:
                    task.cancel()  # the outer one comes while the body is being cancelled for the loss

        task = asyncio.create_task(body())

        async def entered() -> bool:
            return bool(leases)

        await wait_until_async(entered)
        keys.client.delete(keys.lock)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert leases[0].loss_reason is LossReason.DELETED


async def test_a_timeout_around_the_hold_is_a_timeout(redis_url: str, name: str, keys: Keys) -> None:
    async with locking(redis_url) as locker:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), locker.hold(name):
                await asyncio.sleep(PATIENCE_S)
        assert_not_cancelling()
        await keys.gone()


async def test_the_bodys_own_exception_passes_and_the_lock_is_released(redis_url: str, name: str, keys: Keys) -> None:
    async with locking(redis_url) as locker:
        with pytest.raises(LookupError, match="mine"):
            async with locker.hold(name):
                raise LookupError("mine")
        await keys.gone()


async def test_the_bodys_own_exception_passes_although_the_lease_is_lost(redis_url: str, name: str, keys: Keys) -> None:
    async with locking(redis_url) as locker:
        with pytest.raises(LookupError, match="mine"):
            async with locker.hold(name, lease_ttl_s=1.0):
                keys.client.delete(keys.lock)
                try:
                    await asyncio.sleep(PATIENCE_S)
                except asyncio.CancelledError as error:
                    raise LookupError("mine") from error
        assert_not_cancelling()
        await asyncio.sleep(0)


async def test_a_body_that_finds_the_loss_itself_is_not_cancelled_later(redis_url: str, name: str, keys: Keys) -> None:
    async with locking(redis_url) as locker:
        with pytest.raises(LeaseLost) as caught:
            async with locker.hold(name, lease_ttl_s=20) as lease:
                keys.client.delete(keys.lock)
                await lease.extend(20)
        assert caught.value.reason is LossReason.DELETED
        assert_not_cancelling()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_a_lease_released_in_the_body_ends_the_hold_in_peace(redis_url: str, name: str) -> None:
    async with locking(redis_url) as locker:
        async with locker.hold(name) as lease:
            assert await lease.release()
        assert lease.loss_reason is None


async def test_many_holds_are_lost_at_once_and_each_holder_is_told(own_redis: OwnRedis) -> None:
    async with locking(own_redis.url) as locker:
        entered = 0

        async def body(number: int) -> None:
            nonlocal entered
            async with locker.hold(f"lock:{number}", lease_ttl_s=2.0):
                entered += 1
                await asyncio.sleep(PATIENCE_S)

        tasks = [asyncio.create_task(body(number)) for number in range(50)]

        async def all_entered() -> bool:
            return entered == 50

        await wait_until_async(all_entered)
        with own_keys(own_redis, "lock:0") as keys:
            keys.client.flushall()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, LeaseLost)
            assert outcome.reason is LossReason.DELETED


def block_the_loop(for_s: float) -> None:
    time.sleep(for_s)


def assert_not_cancelling() -> None:
    """The test's own task was cancelled for the loss, and that is over."""
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
