"""Each mutant of the lock has its defect on a real Valkey, where the product, asked the same, has none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import redis

from locks import Lease, LeaseLost, LockBusy, Locker
from locks.events import Acquired, Listener, LockEvent, Released, ignore
from locks.lending import LeaseOver
from locks.loan import Loan
from tests.chaos.mutants import MUTANTS, UNSEEN_MUTANTS
from tests.chaos.mutants.in_child import in_child
from tests.harness import PATIENCE_S, OwnRedis, wait_until_async
from tests.lock_process import LockProcess
from tests.proxy import Cut, Proxy

Trial = Callable[[int, Path], Awaitable[bool]]  # of the server's port and a folder; whether the defect shows

ALL = {**MUTANTS, **UNSEEN_MUTANTS}
NAME = "appointment:7"
LOCK, QUEUE = f"lock:{{{NAME}}}", f"lock-queue:{{{NAME}}}"
LONG_S, SHORT_S = 60.0, 0.3
# Far longer than what is waited for takes where there is no defect, and far shorter than where there is one.
ENOUGH_S = 3.0


@asynccontextmanager
async def _locker(port: int, *, listener: Listener = ignore) -> AsyncIterator[Locker]:
    url = f"redis://127.0.0.1:{port}/0"
    async with Locker(url, instance_id="mutant", command_timeout_s=PATIENCE_S, listener=listener) as locker:
        yield locker


def _server(port: int) -> closing[redis.Redis]:
    return closing(redis.Redis(port=port, socket_timeout=PATIENCE_S, decode_responses=True))


async def _stand(port: int, count: int) -> None:
    """Returns once so many processes stand in line."""
    with _server(port) as server:

        async def enough() -> bool:
            return int(server.zcard(QUEUE)) == count

        await wait_until_async(enough, what=f"{count} in line")


async def two_hold_it_at_once(port: int, folder: Path) -> bool:
    """A second one comes while the first one holds."""
    async with _locker(port) as one, _locker(port) as two, one.hold(NAME, lease_ttl_s=LONG_S):
        with contextlib.suppress(LockBusy):
            async with two.hold(NAME, lease_ttl_s=LONG_S, wait_s=SHORT_S):
                return True
    return False


async def _robbed(port: int, give_back: Callable[[Locker, Lease], Awaitable[object]]) -> bool:
    """Whether somebody's lock is free once one has given back what Redis had forgotten meanwhile."""
    async with _locker(port) as one, _locker(port) as two:
        lease = await one.acquire(NAME, lease_ttl_s=LONG_S)
        with _server(port) as server:
            server.flushall()
            await two.acquire(NAME, lease_ttl_s=LONG_S)
            await give_back(one, lease)
            return server.get(LOCK) is None


async def a_release_frees_another_ones_lock(port: int, folder: Path) -> bool:
    """By release."""
    return await _robbed(port, lambda _, lease: lease.release())


async def a_finish_frees_another_ones_lock(port: int, folder: Path) -> bool:
    """By finish, with others in line."""
    released = asyncio.Event()

    def hear(event: LockEvent) -> None:
        if isinstance(event, Released):
            released.set()

    async with _locker(port, listener=hear) as one, _locker(port) as two, _locker(port) as three:
        lease = await one.acquire(NAME, lease_ttl_s=LONG_S)
        with _server(port) as server:
            server.flushall()
            theirs = await two.acquire(NAME, lease_ttl_s=LONG_S)
            waiting = asyncio.create_task(three.acquire(NAME, lease_ttl_s=LONG_S))
            await _stand(port, 1)
            lease.finish()
            await asyncio.wait_for(released.wait(), PATIENCE_S)
            robbed = server.get(LOCK) != theirs.lease_id
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    return robbed


async def a_client_frees_another_ones_lock(port: int, folder: Path) -> bool:
    """By the release of a lease that was lent."""
    async with _locker(port) as one, _locker(port) as two:
        loan = await _lent(one)
        with _server(port) as server:
            server.flushall()
            await two.acquire(NAME, lease_ttl_s=LONG_S)
            with contextlib.suppress(LeaseOver):
                await one.lending.release(NAME, loan.lease_id)
            return server.get(LOCK) is None


async def _lent(locker: Locker) -> Loan:
    return await locker.lending.lend(NAME, lease_ttl_s=LONG_S, wait_s=0.0, request_id="")


async def a_holder_hears_nothing_of_its_loss(port: int, folder: Path) -> bool:
    """Redis forgets its lock, and another has it by then."""
    async with _locker(port) as one, _locker(port) as two:
        try:
            async with one.hold(NAME, lease_ttl_s=SHORT_S):
                with _server(port) as server:
                    server.flushall()
                await two.acquire(NAME, lease_ttl_s=LONG_S)
                await asyncio.sleep(ENOUGH_S)  # cut short by the loss
        except LeaseLost:
            return False
    return True


async def a_client_hears_nothing_of_its_loss(port: int, folder: Path) -> bool:
    """As it extends what was lent to it."""
    async with _locker(port) as one, _locker(port) as two:
        loan = await _lent(one)
        with _server(port) as server:
            server.flushall()
        await two.acquire(NAME, lease_ttl_s=LONG_S)
        try:
            await one.lending.extend(NAME, loan.lease_id, lease_ttl_s=LONG_S)
        except LeaseOver:
            return False
    return True


async def the_lock_ends_before_its_holder_does(port: int, folder: Path) -> bool:
    """By the server's count."""
    async with _locker(port) as one:
        lease = await one.acquire(NAME, lease_ttl_s=LONG_S)
        with _server(port) as server:
            return server.pttl(LOCK) / 1000 < lease.remaining_s()


async def a_token_falls(port: int, folder: Path) -> bool:
    """Over a FLUSHALL."""
    async with _locker(port) as one:
        before = await one.acquire(NAME, lease_ttl_s=LONG_S)
        await before.release()
        with _server(port) as server:
            server.flushall()
        after = await one.acquire(NAME, lease_ttl_s=LONG_S)
        return after.fencing_token <= before.fencing_token


async def a_granted_lock_has_no_end(port: int, folder: Path) -> bool:
    """In the moment in which its holder hears of it."""
    ends_ms: list[int] = []
    with _server(port) as server:

        def look(event: LockEvent) -> None:
            if isinstance(event, Acquired):
                ends_ms.append(server.pttl(LOCK))

        async with _locker(port, listener=look) as one:
            await one.acquire(NAME, lease_ttl_s=LONG_S)
    return ends_ms == [-1]


async def a_lock_is_handed_to_the_dead_for_ever(port: int, folder: Path) -> bool:
    """The first in line is killed, and then the holder releases."""
    async with _locker(port) as one:
        lease = await one.acquire(NAME, lease_ttl_s=LONG_S)
        heir = LockProcess.start(f"redis://127.0.0.1:{port}/0", folder)
        try:
            heir.hold(NAME)
            await _stand(port, 1)
        finally:
            heir.kill()
        with _server(port) as server:
            channel = str(server.zrange(QUEUE, 0, -1)[0])

            async def is_gone() -> bool:
                return bool(server.pubsub_numsub(channel)[0][1] == 0)

            await wait_until_async(is_gone, what="the end of its connections")
            await lease.release()
            return server.pttl(LOCK) == -1


async def a_lapse_is_slept_through(port: int, folder: Path) -> bool:
    """Of a holder that does nothing more."""
    async with _locker(port) as one, _locker(port) as two:
        await one.acquire(NAME, lease_ttl_s=SHORT_S)
        try:
            await two.acquire(NAME, wait_s=ENOUGH_S)
        except LockBusy:
            return True
    return False


async def an_acquirer_waits_for_itself(port: int, folder: Path) -> bool:
    """The answer to its acquire is lost with the connection."""
    with Proxy("127.0.0.1", port) as proxy:
        async with _locker(proxy.port) as one:
            proxy.cut_once(Cut.AFTER_ANSWERED, at=NAME.encode())
            try:
                await one.acquire(NAME, lease_ttl_s=LONG_S, wait_s=ENOUGH_S)
            except LockBusy:
                return True
    return False


async def a_grant_has_no_end(port: int, folder: Path) -> bool:
    """What stays of a lease that is over."""
    async with _locker(port) as one:
        lease = await one.acquire(NAME)
        await lease.release()
    with _server(port) as server:
        return server.pttl(f"lock-grant:{{{NAME}}}") == -1


TRIALS: list[tuple[str, Trial]] = [
    ("row-only", two_hold_it_at_once),
    ("foreign-release", a_release_frees_another_ones_lock),
    ("foreign-release", a_finish_frees_another_ones_lock),
    ("foreign-release", a_client_frees_another_ones_lock),
    ("deaf-renewal", a_holder_hears_nothing_of_its_loss),
    ("deaf-renewal", a_client_hears_nothing_of_its_loss),
    ("lock-cut-short", the_lock_ends_before_its_holder_does),
    ("fence-from-counter", a_token_falls),
    ("acquire-then-expire", a_granted_lock_has_no_end),
    ("handoff-to-the-dead", a_lock_is_handed_to_the_dead_for_ever),
    ("no-takeover", a_lapse_is_slept_through),
    ("acquire-not-idempotent", an_acquirer_waits_for_itself),
    ("grant-without-expiry", a_grant_has_no_end),
]
IDS = [f"{name}: {trial.__name__}" for name, trial in TRIALS]


@pytest.mark.parametrize(("name", "trial"), TRIALS, ids=IDS)
def test_each_mutant_of_the_lock_has_its_defect_and_the_product_has_not(
    name: str, trial: Trial, own_redis: OwnRedis, tmp_path: Path
) -> None:
    assert not in_child(None, trial, own_redis.port, tmp_path)
    own_redis.flush()
    assert in_child(ALL[name], trial, own_redis.port, tmp_path)
