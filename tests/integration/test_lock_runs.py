"""Runs: turns that pass within a process without asking the server, each under a token and a name of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest
import redis

from locks import LeaseLost, Locker, LossReason
from locks.events import Waiting
from locks.keys import packed_keys
from locks.node import Node
from locks.store import QueueLimits
from tests.harness import PATIENCE_S, OwnRedis, wait_until_async
from tests.integration.test_locker import Heard
from tests.lock_process import LockProcess
from tests.proxy import Proxy, Way

RUN_TURNS = QueueLimits().run_turns
LONG_S = 60.0

Turn = TypeVar("Turn")


@asynccontextmanager
async def process(url: str, instance_id: str, heard: Heard | None = None, **limits: int) -> AsyncIterator[Locker]:
    """A locker whose turns of a run may begin late, so that a slow machine does not end the run."""
    queue_limits = QueueLimits(**{"alive_ms": 60_000, "run_ms": 30_000, "slack_ms": 0, **limits})
    async with Locker(
        url,
        instance_id=instance_id,
        command_timeout_s=20,
        queue_limits=queue_limits,
        listener=heard or (lambda event: None),
    ) as locker:
        yield locker


class Turns:
    """Callers of hold on one lock who note their turns."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.tokens: list[int] = []

    async def take(self, locker: Locker, name: str, number: int) -> None:
        async with locker.hold(name, lease_ttl_s=LONG_S, request_id=f"turn-{number}") as lease:
            self.order.append(number)
            self.tokens.append(lease.fencing_token)
            await asyncio.sleep(0)


async def in_line(heard: Heard, waits: list[Callable[[], asyncio.Task[Turn]]]) -> list[asyncio.Task[Turn]]:
    """Their tasks, each waiting before the next begins."""
    before = len(heard.all(Waiting))
    tasks = []
    for number, begin in enumerate(waits):
        tasks.append(begin())
        await heard.count(Waiting, before + number + 1)
    return tasks


def takers(turns: Turns, locker: Locker, name: str, numbers: range) -> list[Callable[[], asyncio.Task[None]]]:
    return [lambda number=number: asyncio.create_task(turns.take(locker, name, number)) for number in numbers]  # type: ignore[misc]


async def test_a_run_passes_in_order_under_rising_tokens_without_asking_the_server(
    own_redis: OwnRedis, name: str
) -> None:
    heard, turns = Heard(), Turns()
    with redis.Redis(port=own_redis.port) as client:
        async with process(own_redis.url, "a", heard) as locker:
            first = await locker.acquire(name, lease_ttl_s=LONG_S)
            tasks = await in_line(heard, takers(turns, locker, name, range(RUN_TURNS)))
            client.config_resetstat()
            assert await first.release()
            await asyncio.gather(*tasks)
            commands = client.info("commandstats")["cmdstat_evalsha"]["calls"]

    assert turns.order == list(range(RUN_TURNS))
    assert turns.tokens == sorted(set(turns.tokens))
    assert first.fencing_token < turns.tokens[0]
    # The release that began the run, the one that ended it, and whatever turn was on when a millisecond was over.
    assert commands < RUN_TURNS


async def test_a_turn_that_lasts_is_the_holder_under_its_own_name(redis_url: str, name: str) -> None:
    heard, go_on = Heard(), asyncio.Event()
    async with process(redis_url, "a", heard) as locker:
        first = await locker.acquire(name, lease_ttl_s=LONG_S)

        async def last() -> int:
            async with locker.hold(name, lease_ttl_s=LONG_S, request_id="the-last") as lease:
                await go_on.wait()
                return lease.fencing_token

        turns = Turns()
        tasks = await in_line(heard, takers(turns, locker, name, range(3)))
        lasting = asyncio.create_task(last())
        await heard.count(Waiting, 4)
        assert await first.release()
        await asyncio.gather(*tasks)

        async def it_is_shown() -> bool:
            view = await locker.inspect(name)
            return view is not None and view.holder is not None and view.holder.request_id == "the-last"

        await wait_until_async(it_is_shown)
        view = await locker.inspect(name)
        go_on.set()
        assert view is not None
        assert view.fencing_token == await lasting > turns.tokens[-1]


async def test_who_has_waited_longer_elsewhere_comes_before_the_rest_of_a_run(redis_url: str, name: str) -> None:
    heard, others, turns = Heard(), Heard(), Turns()
    async with process(redis_url, "a", heard) as locker, process(redis_url, "b", others) as other:
        first = await locker.acquire(name, lease_ttl_s=LONG_S)
        tasks = await in_line(heard, takers(turns, locker, name, range(3)))
        tasks += await in_line(others, takers(turns, other, name, range(100, 101)))
        tasks += await in_line(heard, takers(turns, locker, name, range(3, 6)))
        assert await first.release()
        await asyncio.gather(*tasks)

    assert turns.order == [0, 1, 2, 100, 3, 4, 5]
    assert turns.tokens == sorted(set(turns.tokens))


async def test_within_the_slack_a_process_keeps_the_lock_for_a_bounded_number_of_turns(
    redis_url: str, name: str
) -> None:
    """With an hour of slack everybody came at the same time; still nobody waits for more than a run."""
    heard, others, turns = Heard(), Heard(), Turns()
    hour = {"slack_ms": 3_600_000}
    async with process(redis_url, "a", heard, **hour) as locker, process(redis_url, "b", others, **hour) as other:
        first = await locker.acquire(name, lease_ttl_s=LONG_S)
        tasks = await in_line(others, takers(turns, other, name, range(100, 101)))
        tasks += await in_line(heard, takers(turns, locker, name, range(3 * RUN_TURNS)))
        assert await first.release()
        await asyncio.gather(*tasks)

    assert turns.order.index(100) <= RUN_TURNS
    assert [number for number in turns.order if number != 100] == list(range(3 * RUN_TURNS))


async def test_a_lock_that_is_deleted_in_a_run_is_a_loss_and_the_rest_asks_anew(redis_url: str, name: str) -> None:
    heard, turns, is_on = Heard(), Turns(), asyncio.Event()
    async with process(redis_url, "a", heard) as locker:
        first = await locker.acquire(name, lease_ttl_s=LONG_S)

        async def robbed() -> None:
            async with locker.hold(name, lease_ttl_s=0.5):
                is_on.set()
                await asyncio.sleep(PATIENCE_S)

        tasks = await in_line(heard, [*takers(turns, locker, name, range(2))])
        losing = asyncio.create_task(robbed())
        await heard.count(Waiting, 3)
        tasks += await in_line(heard, takers(turns, locker, name, range(2, 5)))
        assert await first.release()
        await is_on.wait()
        with redis.Redis.from_url(redis_url) as client:
            client.delete(f"lock:{{{name}}}")

        with pytest.raises(LeaseLost) as lost:
            await losing
        await asyncio.gather(*tasks)

    assert lost.value.reason in (LossReason.DELETED, LossReason.TAKEN)
    assert turns.order == list(range(5))
    assert turns.tokens == sorted(set(turns.tokens))
    assert turns.tokens[1] < lost.value.fencing_token < turns.tokens[2]


async def test_a_turn_can_be_forced_out_by_its_own_token(redis_url: str, name: str) -> None:
    heard, turns, is_on = Heard(), Turns(), asyncio.Event()
    async with process(redis_url, "a", heard) as locker, process(redis_url, "operator") as operator:
        first = await locker.acquire(name, lease_ttl_s=LONG_S)

        async def forced_out() -> None:
            async with locker.hold(name, lease_ttl_s=LONG_S, request_id="victim"):
                is_on.set()
                await asyncio.sleep(PATIENCE_S)

        tasks = await in_line(heard, takers(turns, locker, name, range(2)))
        losing = asyncio.create_task(forced_out())
        await heard.count(Waiting, 3)
        tasks += await in_line(heard, takers(turns, locker, name, range(2, 4)))
        assert await first.release()
        await is_on.wait()

        async def victim_is_shown() -> bool:
            view = await operator.inspect(name)
            return view is not None and view.holder is not None and view.holder.request_id == "victim"

        await wait_until_async(victim_is_shown)
        view = await operator.inspect(name)
        assert view is not None
        assert view.fencing_token is not None
        assert await operator.force_release(name, fencing_token=view.fencing_token)

        with pytest.raises(LeaseLost) as lost:
            await losing
        await asyncio.gather(*tasks)

    assert lost.value.reason is LossReason.FORCED
    assert turns.order == list(range(4))


async def test_a_lease_exported_in_the_middle_of_a_run_keeps_its_token(redis_url: str, name: str) -> None:
    heard, turns, texts = Heard(), Turns(), asyncio.Queue[tuple[int, str]]()
    async with process(redis_url, "a", heard) as locker, process(redis_url, "b") as adopter:
        first = await locker.acquire(name, lease_ttl_s=LONG_S)

        async def exporting() -> None:
            async with locker.hold(name, lease_ttl_s=LONG_S) as lease:
                texts.put_nowait((lease.fencing_token, lease.export()))

        tasks = await in_line(heard, takers(turns, locker, name, range(2)))
        tasks.append(asyncio.create_task(exporting()))
        await heard.count(Waiting, 3)
        tasks += await in_line(heard, takers(turns, locker, name, range(2, 4)))

        async def the_line_watches() -> bool:
            return locker._lines.by_name[name]._watched

        # So that the change of the key makes it look under the id that the release has just granted.
        await wait_until_async(the_line_watches)
        assert await first.release()
        token, text = await texts.get()

        lease = await adopter.adopt(text)
        assert lease.fencing_token == token > turns.tokens[-1]
        assert turns.order == [0, 1]  # the others wait for the adopter
        assert await lease.release()
        await asyncio.gather(*tasks)

    assert turns.order == [0, 1, 2, 3]
    assert turns.tokens[2] > token


async def test_acquire_returns_with_its_whole_lease_however_it_was_handed_over(own_redis: OwnRedis, name: str) -> None:
    """A body before it in the run has begun under the claim, and its confirmation is slow to come."""
    with Proxy("127.0.0.1", own_redis.port) as proxy:
        slow_url = f"redis://127.0.0.1:{proxy.port}/0"
        async with (
            process(own_redis.url, "a", claim_ms=5000) as here,
            process(slow_url, "b", claim_ms=5000) as there,
        ):
            held = await here.acquire(name, lease_ttl_s=LONG_S)

            async def body() -> float:
                async with there.hold(name, lease_ttl_s=LONG_S) as lease:
                    return lease.remaining_s()

            bodies = asyncio.create_task(body())
            acquiring = asyncio.create_task(there.acquire(name, lease_ttl_s=LONG_S))

            async def both_stand_in_line() -> bool:
                view = await here.inspect(name)
                return view is not None and view.waiter_count == 2

            await wait_until_async(both_stand_in_line)
            proxy.delay(Way.REPLIES, delay_s=0.3)
            assert await held.release()

            assert await bodies < 5.0  # it did begin under the claim
            lease = await asyncio.wait_for(acquiring, PATIENCE_S)

            assert lease.remaining_s() > 5.0
            assert await lease.release()


async def test_a_body_that_blocks_its_loop_for_longer_than_its_claim_has_not_lost_its_lease(
    redis_url: str, name: str, lock_process: Callable[..., LockProcess]
) -> None:
    """It begins under the claim; the confirmation that came meanwhile is read before its end is judged."""
    other = lock_process(redis_url, instance_id="other")
    handle = other.acquire(name, lease_ttl_s=LONG_S)
    other.wait_for(handle, "acquired")
    heard = Heard()
    async with process(redis_url, "a", heard, alive_ms=900) as locker:

        async def blocking() -> bool:
            async with locker.hold(name, lease_ttl_s=LONG_S):
                time.sleep(1.5)  # noqa: ASYNC251  # twice the claim
                return True

        task = asyncio.create_task(blocking())
        await heard.count(Waiting, 1)
        other.release(handle)

        assert await asyncio.wait_for(task, PATIENCE_S)


async def test_a_grant_told_once_more_takes_nothing_from_a_turn_that_the_server_has_not_heard_of(
    own_redis: OwnRedis, name: str
) -> None:
    """Its turn goes by an id of its own already; the server, which has forgotten the turn's script, knows the first."""
    heard = Heard()
    async with process(own_redis.url, "api-1", heard) as locker:
        holder = await locker.acquire(name, lease_ttl_s=LONG_S)
        waits = await in_line(heard, [lambda: asyncio.create_task(locker.acquire(name, lease_ttl_s=LONG_S))] * 2)
        await holder.release()
        first = await waits[0]
        granted_as, token = first.known_as, first.fencing_token

        with redis.Redis(port=own_redis.port) as server:
            server.script_flush()
        await locker.store.run(f"{name}/other", lambda node: _give_back(locker, node, f"{name}/other", "0" * 32))
        releasing = asyncio.create_task(first.release())
        second = await waits[1]
        # The answer of a look that was on its way when the release granted it.
        locker._lines.granted_to_nobody(name, granted_as, token, 2)
        await releasing

        async def is_told() -> bool:
            view = await locker.inspect(name)
            return view is not None and view.fencing_token == second.fencing_token

        await wait_until_async(is_told, what="a server that knows the second turn")
        await second.extend(LONG_S)
        await second.release()


async def test_a_turn_that_is_told_of_before_an_older_extension_is_carried_out_keeps_its_lease(
    own_redis: OwnRedis, name: str
) -> None:
    """Its turn goes by its predecessor's id when more time is asked for, and by its own once a lost script is there."""
    heard = Heard()
    async with process(own_redis.url, "api-1", heard) as locker:

        async def extends_at_once() -> int:
            async with locker.hold(name, lease_ttl_s=LONG_S) as lease:
                with redis.Redis(port=own_redis.port) as server:
                    server.script_flush()
                    server.script_load(locker.store.scripts._turn.source)
                extending = asyncio.create_task(lease.extend(LONG_S))
                for _ in range(3):  # it is sent
                    await asyncio.sleep(0)
                time.sleep(0.05)  # noqa: ASYNC251  # so that its answer is there when the turn is told of
                await extending
                return lease.fencing_token

        turns = Turns()
        holder = await locker.acquire(name, lease_ttl_s=LONG_S)
        (before,) = await in_line(heard, takers(turns, locker, name, range(1)))
        (body,) = await in_line(heard, [lambda: asyncio.create_task(extends_at_once())])
        await holder.release()
        await before
        assert await body == turns.tokens[0] + 1


def _give_back(locker: Locker, node: Node, name: str, lease_id: str) -> str:
    return locker.store.scripts.give_back(node, packed_keys(name), lease_id)
