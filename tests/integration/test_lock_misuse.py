"""What a caller does wrong is said at once and in one sentence; and nobody holds for longer than was meant."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from locks import HeldByCaller, LeaseLost, LockBusy, Locker, LossReason, WrongLoop
from locks.clock import SYSTEM
from locks.events import WakeSource
from locks.waiter import Grant
from tests.harness import PATIENCE_S, wait_until_async
from tests.integration.lock_faults import keys_at
from tests.integration.test_locker import Keys, locking


@pytest.fixture
def keys(redis_url: str, name: str) -> Iterator[Keys]:
    with keys_at(redis_url, name) as keys:
        yield keys


# Opened again.


async def test_a_locker_that_was_closed_is_not_opened_again(redis_url: str) -> None:
    locker = Locker(redis_url, instance_id="a")
    await locker.open()
    await locker.close()
    with pytest.raises(RuntimeError, match="closed"):
        await locker.open()


# Waiting for oneself.


async def test_a_task_that_waits_for_its_own_lock_for_ever_is_refused(redis_url: str, name: str, keys: Keys) -> None:
    async with locking(redis_url) as locker:
        async with locker.hold(name):
            for forever in (None, math.inf):
                with pytest.raises(HeldByCaller, match=name):
                    await locker.acquire(name, wait_s=forever)
                with pytest.raises(HeldByCaller):
                    async with locker.hold(name, wait_s=forever):
                        pass
                with pytest.raises(HeldByCaller):
                    async with locker.hold_many([f"{name}/1", name, f"{name}/2"], wait_s=forever):
                        pass
            with pytest.raises(LockBusy):
                await locker.acquire(name, wait_s=0.05)
            assert locker.waiter_count == 0
            assert [lease.name for lease in locker.held] == [name]
        await keys.gone()
        async with locker.hold_many([name, f"{name}/1"]):
            with pytest.raises(HeldByCaller):
                await locker.acquire(f"{name}/1")
        waited_for = await locker.acquire(name, keep_extended=True)
        with pytest.raises(HeldByCaller):
            await locker.acquire(name)
        adopted = await locker.adopt(waited_for.export(), keep_extended=True)
        with pytest.raises(HeldByCaller):
            await locker.acquire(name)
        await adopted.release()


async def test_whoever_may_get_the_lock_in_the_end_waits_as_ever(redis_url: str, name: str) -> None:
    async with locking(redis_url) as locker:
        # Another task's, its own that ends by itself, and one after another.
        first = await locker.acquire(name, keep_extended=True)
        other = asyncio.create_task(locker.acquire(name, lease_ttl_s=0.2))
        await asyncio.sleep(0)
        await first.release()
        await asyncio.wait_for(other, PATIENCE_S)
        ends_by_itself = await asyncio.wait_for(locker.acquire(name, lease_ttl_s=0.2), PATIENCE_S)
        bounded = await locker.acquire(name, lease_ttl_s=0.2, keep_extended=True, max_hold_s=0.4)
        last = await asyncio.wait_for(locker.acquire(name, keep_extended=True), PATIENCE_S)
        assert ends_by_itself.fencing_token < bounded.fencing_token < last.fencing_token
        await last.release()
        assert last.task is None


# Another event loop.


USES: dict[str, Callable[[Locker, Any], Awaitable[object]]] = {
    "acquire": lambda locker, lease: locker.acquire("a"),
    "hold": lambda locker, lease: contextlib.AsyncExitStack().enter_async_context(locker.hold("a")),
    "inspect": lambda locker, lease: locker.inspect("a"),
    "force": lambda locker, lease: locker.force_release("a", fencing_token=1),
    "extend": lambda locker, lease: lease.extend(10),
    "release": lambda locker, lease: lease.release(),
    "finish": lambda locker, lease: asyncio.sleep(0, lease.finish()),
    "export": lambda locker, lease: asyncio.sleep(0, lease.export()),
    "lend": lambda locker, lease: locker.lending.lend("a", lease_ttl_s=1, wait_s=0, request_id=""),
    "lend again": lambda locker, lease: locker.lending.lend_as("a", "0" * 32, lease_ttl_s=1, wait_s=0, request_id=""),
    "close": lambda locker, lease: locker.close(),
}


async def test_a_locker_used_from_another_loop_says_so_and_goes_on_in_its_own(redis_url: str, name: str) -> None:
    async with locking(redis_url) as locker:
        lease = await locker.acquire(name)

        async def use(how: Callable[[Locker, Any], Awaitable[object]]) -> None:
            await how(locker, lease)

        for kind, how in USES.items():
            with pytest.raises(WrongLoop, match="event loop"):
                await asyncio.wait_for(asyncio.to_thread(asyncio.run, use(how)), PATIENCE_S)
            assert locker.held == [lease], kind
        with pytest.raises(WrongLoop):
            await asyncio.to_thread(lease.finish)
        await lease.extend(10)
        assert await lease.release()


# Times that are none.


@pytest.mark.parametrize("wait_s", [-1, -0.001, -math.inf, math.nan])
async def test_a_wait_that_is_no_time_is_refused(redis_url: str, name: str, keys: Keys, wait_s: float) -> None:
    async with locking(redis_url) as locker:
        for refused in (
            locker.acquire(name, wait_s=wait_s),
            locker.acquire_many([name], wait_s=wait_s),
            locker.hold(name, wait_s=wait_s).__aenter__(),
            locker.hold_many([name], wait_s=wait_s).__aenter__(),
            locker.lending.lend(name, lease_ttl_s=1, wait_s=wait_s, request_id=""),
            locker.lending.lend_as(name, "0" * 32, lease_ttl_s=1, wait_s=wait_s, request_id=""),
        ):
            with pytest.raises(ValueError, match="wait_s"):
                await refused
        assert locker.held == []
    assert keys.holder() is None


@pytest.mark.parametrize("max_hold_s", [-1, 0, 1.9, math.nan])
async def test_a_bound_below_the_lease_is_refused(redis_url: str, name: str, max_hold_s: float) -> None:
    async with locking(redis_url) as locker:
        with pytest.raises(ValueError, match="max_hold_s"):
            locker.hold(name, lease_ttl_s=2, max_hold_s=max_hold_s)
        with pytest.raises(ValueError, match="max_hold_s"):
            locker.hold_many([name], lease_ttl_s=2, max_hold_s=max_hold_s)
        with pytest.raises(ValueError, match="max_hold_s"):
            await locker.acquire(name, lease_ttl_s=2, keep_extended=True, max_hold_s=max_hold_s)
        with pytest.raises(ValueError, match="kept extended"):
            await locker.acquire(name, lease_ttl_s=2, max_hold_s=4)


# No longer than was meant.


async def bodies(locker: Locker, name: str) -> list[tuple[str, Any]]:
    async def acquired() -> Any:
        return await locker.acquire(f"{name}/1", lease_ttl_s=0.5, keep_extended=True, max_hold_s=1.2)

    async def adopted() -> Any:
        exported = (await locker.acquire(f"{name}/2", lease_ttl_s=0.5)).export()
        return await locker.adopt(exported, keep_extended=True, max_hold_s=1.2)

    async def many() -> Any:
        [lease] = await locker.acquire_many([f"{name}/3"], lease_ttl_s=0.5, keep_extended=True, max_hold_s=1.2)
        return lease

    return [("acquire", await acquired()), ("adopt", await adopted()), ("acquire_many", await many())]


async def test_a_lease_with_a_bound_is_extended_up_to_it_and_lost_then(redis_url: str, name: str, keys: Keys) -> None:
    async with locking(redis_url) as locker:
        for kind, lease in await bodies(locker, name):
            await asyncio.wait_for(lease.lost.wait(), PATIENCE_S)
            assert lease.loss_reason is LossReason.EXPIRED, kind
            assert 0.6 < lease.deadline_s - lease.acquired_at_s <= 1.2, kind
        began_at_s = SYSTEM.monotonic_s()
        for hold in (
            locker.hold(name, lease_ttl_s=0.5, max_hold_s=1.2),
            locker.hold_many([name], lease_ttl_s=0.5, max_hold_s=1.2),
        ):
            with pytest.raises(LeaseLost) as lost:
                async with hold:
                    await asyncio.sleep(PATIENCE_S)
            assert lost.value.reason is LossReason.EXPIRED
            await keys.gone()
        assert SYSTEM.monotonic_s() - began_at_s > 1.2
        assert locker.held == []


async def test_extending_it_by_hand_does_not_pass_the_bound(redis_url: str, name: str) -> None:
    async with locking(redis_url) as locker:
        lease = await locker.acquire(name, lease_ttl_s=0.5, keep_extended=True, max_hold_s=1.0)
        await lease.extend(60)
        assert lease.remaining_s() <= 1.0
        await asyncio.wait_for(lease.lost.wait(), PATIENCE_S)


# What is shown.


async def test_a_lease_shows_what_it_is_and_never_its_id(redis_url: str, name: str, keys: Keys) -> None:
    async with locking(redis_url) as locker:
        lease = await locker.acquire(name, lease_ttl_s=60)
        shown = repr(lease)
        assert name in shown
        assert str(lease.fencing_token) in shown
        assert " s left" in shown
        lost = await locker.acquire(f"{name}/2", keep_extended=True, lease_ttl_s=0.3)
        keys.client.delete(f"lock:{{{name}/2}}")

        async def is_lost() -> bool:
            return lost.loss_reason is not None

        await wait_until_async(is_lost)
        assert "deleted" in repr(lost)
        grant = Grant(lease.lease_id, 1, 0.0, WakeSource.NONE, takeover=False, handoff_s=None)
        loan = await locker.lending.lend(f"{name}/3", lease_ttl_s=60, wait_s=0, request_id="")
        everything = f"{lease!r} {lost!r} {lost.loss()!r} {grant!r} {loan!r} {locker.lending.all!r} {locker.held!r}"
        for secret in (lease.lease_id, lost.lease_id, loan.lease_id):
            assert secret not in everything
        await lease.release()
        assert "over" in repr(lease)
