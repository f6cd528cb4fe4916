"""Holders and waiters that are killed or frozen: the next one gets the lock, in time, and nobody has it twice."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator

import pytest

from locks.events import Acquired, WakeSource
from tests.bench import locks_overlap
from tests.conftest import ReportFigures
from tests.harness import PATIENCE_S
from tests.integration.lock_faults import (
    LONG_MS,
    SOON_S,
    Timed,
    head_channel,
    keys_at,
    lease_end_s,
    nobody_listens,
    stand,
)
from tests.integration.test_locker import Heard, Keys, locking
from tests.lock_process import LockProcess
from tests.proxy import Proxy, Way
from tests.servers.fixtures import StartLockProcess
from tests.servers.redis_server import RedisServer

DEATHS = 12
SHORT_S = 0.4
# The promise is a median of 50 ms on a quiet machine, which this one need not be.
MEDIAN_LIMIT_MS = 500


@pytest.fixture
def keys(redis_url: str, name: str) -> Iterator[Keys]:
    with keys_at(redis_url, name) as keys:
        yield keys


# A holder that is killed


async def test_a_killed_holders_lock_is_taken_over_as_its_lease_ends(
    redis_url: str, name: str, keys: Keys, lock_process: StartLockProcess, report_figures: ReportFigures
) -> None:
    heard, overshoots_ms = Timed(), []
    async with locking(redis_url, heard=heard, alive_ms=LONG_MS) as locker:
        for _ in range(DEATHS):
            holder = lock_process(redis_url)
            held = await holder.wait_for_async(holder.hold(name, lease_ttl_s=SHORT_S), "acquired")
            waiting = asyncio.create_task(locker.acquire(name))
            await stand(keys, 1)

            overshoots_ms += await overshoot_after(holder.kill, keys, waiting, heard)

            lease = waiting.result()
            assert lease.fencing_token > held["fencing_token"]
            assert heard.wake_source() in (WakeSource.TIMER, WakeSource.TRACKING)
            assert await lease.release()

    judge("takeover from a killed holder, after its lease's end", overshoots_ms, report_figures)


async def test_so_is_that_of_a_killed_holder_to_whom_we_had_handed_it_over(
    redis_url: str, name: str, keys: Keys, lock_process: StartLockProcess, report_figures: ReportFigures
) -> None:
    heard, overshoots_ms = Timed(), []
    async with locking(redis_url, heard=heard, alive_ms=LONG_MS) as locker:
        for _ in range(DEATHS // 3):
            heir = lock_process(redis_url)
            ours = await locker.acquire(name, lease_ttl_s=60)
            handle = heir.hold(name, lease_ttl_s=SHORT_S)
            await stand(keys, 1)
            waiting = asyncio.create_task(locker.acquire(name, lease_ttl_s=60))
            await stand(keys, 2)
            assert await ours.release()
            held = await heir.wait_for_async(handle, "acquired")

            overshoots_ms += await overshoot_after(heir.kill, keys, waiting, heard)

            lease = waiting.result()
            assert ours.fencing_token < held["fencing_token"] < lease.fencing_token
            assert await lease.release()

    judge("the same from one to whom we had handed over", overshoots_ms, report_figures)


async def test_so_is_that_of_a_killed_holder_by_the_second_in_line_when_the_first_is_killed_too(
    redis_url: str, name: str, keys: Keys, lock_process: StartLockProcess, report_figures: ReportFigures
) -> None:
    heard, overshoots_ms = Timed(), []
    async with locking(redis_url, heard=heard, alive_ms=LONG_MS) as locker:
        for _ in range(DEATHS // 2):
            holder, head = lock_process(redis_url), lock_process(redis_url)
            held = await holder.wait_for_async(holder.hold(name, lease_ttl_s=SHORT_S), "acquired")
            head.hold(name, lease_ttl_s=60)
            await stand(keys, 1)
            waiting = asyncio.create_task(locker.acquire(name))
            await stand(keys, 2)

            def kill(first: Callable[[], None] = head.kill, second: Callable[[], None] = holder.kill) -> None:
                first()
                second()

            overshoots_ms += await overshoot_after(kill, keys, waiting, heard)

            lease = waiting.result()
            assert lease.fencing_token > held["fencing_token"]
            assert await lease.release()

    judge("the same by the second in line, the first one killed too", overshoots_ms, report_figures)


# A holder that is frozen


@pytest.mark.parametrize("releases_late", [False, True])
async def test_a_frozen_holder_finds_its_lease_lost_and_takes_nothing_from_its_successor(
    redis_url: str, name: str, keys: Keys, lock_process: StartLockProcess, releases_late: bool
) -> None:
    holder = lock_process(redis_url)
    handle = holder.hold(name, lease_ttl_s=SHORT_S)
    held = await holder.wait_for_async(handle, "acquired")
    async with locking(redis_url, alive_ms=LONG_MS) as locker:
        waiting = asyncio.create_task(locker.acquire(name, lease_ttl_s=60))
        await stand(keys, 1)

        holder.freeze()
        lease = await asyncio.wait_for(waiting, SOON_S)
        if releases_late:
            holder.release(handle)  # which it reads when it is thawed
        holder.thaw()

        lost = await holder.wait_for_async(handle, "lost")
        assert lost["reason"] in ("taken", "expired")
        assert [event["event"] for event in holder.events_of(handle)] == ["acquired", "lost"]
        assert held["fencing_token"] < lease.fencing_token
        assert keys.holder() == lease.lease_id
        assert await lease.release()


async def test_a_release_that_arrives_after_a_takeover_frees_nothing(redis_server: RedisServer, name: str) -> None:
    with Proxy("127.0.0.1", redis_server.port) as proxy, keys_at(redis_server.url, name) as keys:
        slow_url = f"redis://127.0.0.1:{proxy.port}/0"
        async with locking(slow_url) as slow, locking(redis_server.url, alive_ms=LONG_MS) as locker:
            lease = await slow.acquire(name, lease_ttl_s=1.0)
            waiting = asyncio.create_task(locker.acquire(name, lease_ttl_s=60))
            await stand(keys, 1)

            proxy.hold(Way.REQUESTS)
            releasing = asyncio.create_task(lease.release())
            successor = await asyncio.wait_for(waiting, SOON_S)
            proxy.let_through(Way.REQUESTS)

            assert await releasing is False
            assert keys.holder() == successor.lease_id
            assert await successor.release()


# The first in line, killed or frozen


@pytest.mark.parametrize("behind", ["the holder's process", "another process"])
async def test_a_killed_first_in_line_costs_the_next_one_nothing(
    redis_url: str, name: str, keys: Keys, lock_process: StartLockProcess, behind: str
) -> None:
    """Handed over to the dead one, the lock would stay there for a claim, which is a minute here."""
    heard = Heard()
    head = lock_process(redis_url)
    async with (
        locking(redis_url, heard=heard, alive_ms=LONG_MS, claim_ms=LONG_MS) as locker,
        locking(redis_url, heard=heard, alive_ms=LONG_MS, claim_ms=LONG_MS) as other,
    ):
        lease = await locker.acquire(name, lease_ttl_s=60)
        head.acquire(name, lease_ttl_s=60)
        await stand(keys, 1)
        next_locker = locker if behind == "the holder's process" else other
        waiting = asyncio.create_task(next_locker.acquire(name, lease_ttl_s=60))
        await stand(keys, 2)
        channel = head_channel(keys)
        # Its last sign of life lasts for a while yet: it is the silence on its channel that tells of its death.
        head.kill()
        await nobody_listens(keys, channel)

        assert await lease.release()

        assert (await asyncio.wait_for(waiting, SOON_S)).stood_in_line
        assert heard.all(Acquired)[-1].wake_source is WakeSource.HANDOFF
        assert await waiting.result().release()


async def test_a_first_in_line_that_is_frozen_for_long_is_dropped_and_comes_again(
    redis_url: str, name: str, keys: Keys, lock_process: StartLockProcess
) -> None:
    heard = Heard()
    head = lock_process(redis_url)
    async with locking(redis_url, claim_ms=LONG_MS) as holding, locking(redis_url, heard=heard, alive_ms=900) as locker:
        lease = await holding.acquire(name, lease_ttl_s=60)
        handle = head.acquire(name, lease_ttl_s=60)
        await stand(keys, 1)
        waiting = asyncio.create_task(locker.acquire(name, lease_ttl_s=60))
        await stand(keys, 2)
        channel = head_channel(keys)
        head.freeze()
        await asyncio.sleep(1.0)  # its sign of life lasts for 0.9 s, and that is the claim

        assert await lease.release()

        behind = await asyncio.wait_for(waiting, SOON_S)
        assert heard.all(Acquired)[-1].wake_source is WakeSource.HANDOFF
        assert keys.client.zscore(keys.queue, channel) is None

        head.thaw()
        await stand(keys, 1)
        assert [event["event"] for event in head.events_of(handle)] == []
        assert await behind.release()
        acquired = await head.wait_for_async(handle, "acquired")
        assert acquired["fencing_token"] > behind.fencing_token


@pytest.mark.parametrize("begin", [LockProcess.acquire, LockProcess.hold])
async def test_a_first_in_line_that_is_frozen_before_the_handoff_costs_a_claim_and_does_not_think_that_it_holds(
    redis_url: str,
    name: str,
    keys: Keys,
    lock_process: StartLockProcess,
    report_figures: ReportFigures,
    begin: Callable[..., int],
) -> None:
    head, costs_ms = lock_process(redis_url), []
    async with locking(redis_url, alive_ms=900) as holding, locking(redis_url, alive_ms=900) as locker:
        for _ in range(3):
            lease = await holding.acquire(name, lease_ttl_s=60)
            handle = begin(head, name, lease_ttl_s=60)
            await stand(keys, 1)
            waiting = asyncio.create_task(locker.acquire(name, lease_ttl_s=60))
            await stand(keys, 2)
            head.freeze()
            released_at_s = time.monotonic()
            assert await lease.release()

            behind = await asyncio.wait_for(waiting, SOON_S)

            costs_ms.append((time.monotonic() - released_at_s) * 1000)
            head.thaw()
            await stand(keys, 1)
            assert [event["event"] for event in head.events_of(handle)] == []
            let_go_at_s = time.monotonic()
            assert await behind.release()
            acquired = await head.wait_for_async(handle, "acquired")
            assert acquired["at_s"] >= let_go_at_s
            assert acquired["fencing_token"] > behind.fencing_token
            head.release(handle)
            assert (await head.wait_for_async(handle, "released"))["still_ours"]

    report_figures("handoff to a frozen process, until the next one has the lock", costs_ms)


# Beside python-redis-lock


def test_no_two_processes_are_ever_inside_and_both_kinds_get_their_turns(redis_server: RedisServer) -> None:
    # The shares even out over seconds, not over a few turns.
    turns = locks_overlap.play(redis_server.url, ours=2, theirs=2, seconds=30, enough_turns=2000)

    verdict = locks_overlap.judge(turns)

    assert len(turns) >= 300
    assert verdict.overlaps == 0
    assert verdict.tokens_rise
    assert verdict.least_share >= locks_overlap.LEAST_SHARE, verdict


@pytest.mark.parametrize(
    ("turns", "fault"),
    [
        ([("ours", 0, 2, 1), ("theirs", 1, 3, 0)], "overlaps"),
        ([("theirs", 0, 9, 0), ("ours", 1, 2, 1), ("theirs", 3, 4, 0)], "overlaps"),
        ([("ours", 0, 1, 2), ("theirs", 1, 2, 0), ("ours", 2, 3, 2), ("theirs", 3, 4, 0)], "tokens"),
        ([("theirs", 0, 1, 0), *[("ours", turn, turn + 1, turn) for turn in range(1, 9)]], "share"),
    ],
)
def test_the_judge_finds_what_is_wrong(turns: list[tuple[str, float, float, int]], fault: str) -> None:
    verdict = locks_overlap.judge(
        [locks_overlap.Turn(side, enters, enters, leaves, token) for side, enters, leaves, token in turns]
    )

    found = {
        "overlaps": verdict.overlaps > 0,
        "tokens": not verdict.tokens_rise,
        "share": verdict.least_share < locks_overlap.LEAST_SHARE,
    }
    assert found[fault]
    assert not verdict.is_good


# Helpers


async def overshoot_after(
    kill: Callable[[], None], keys: Keys, waiting: asyncio.Task[object], heard: Timed
) -> list[float]:
    """The milliseconds from the lease's end in Redis to the waiter's lease; none when it had ended as we looked."""
    kill()
    ends_at_s = lease_end_s(keys)
    await asyncio.wait_for(asyncio.shield(waiting), PATIENCE_S)
    return [] if ends_at_s is None else [(heard.last_at_s(Acquired) - ends_at_s) * 1000]


def judge(what: str, overshoots_ms: list[float], report_figures: ReportFigures) -> None:
    report_figures(what, overshoots_ms)
    assert min(overshoots_ms) > -5  # Redis counts whole milliseconds
    assert statistics.median(overshoots_ms) <= MEDIAN_LIMIT_MS
