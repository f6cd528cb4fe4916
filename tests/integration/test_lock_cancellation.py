"""A call that is cancelled at any of its awaits leaves nothing behind and delays nobody: every point, not a sample.

A scenario runs again and again. Each time its call is cancelled at another suspension, and at another moment of that
suspension, until there is none left. Every time-out is an hour or the like, so that only a give-back explains that the
others get the lock.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from locks import Lease, LockBusy, Locker
from locks.events import Acquired, Lost, Waiting
from locks.wire import Wire
from tests.harness import wait_until_async
from tests.integration.test_locker import Heard, Keys, locking

HOUR_MS = 3_600_000
LEASE_S = 3600.0
SOON_S = 5.0  # an upper bound for what ends in milliseconds; every time-out of the protocol is far longer
MOST_SUSPENSIONS = 50

# Each makes a call of which any await may be cancelled; what else happens meanwhile it leaves to its stage.
Scenario = Callable[["Stage"], Coroutine[Any, Any, Coroutine[Any, Any, object]]]
# Arranges that the call is cancelled in a suspension; is told what it waits for, None being a mere turn of the loop.
Cancel = Callable[[], None]
Moment = Callable[[Cancel, "asyncio.Future[object] | None", "Traffic"], None]


# The moments of a suspension


def at_once(cancel: Cancel, waits_for: asyncio.Future[object] | None, traffic: Traffic) -> None:
    """Before anything that was asked for in this turn of the loop has been sent."""
    cancel()


def after_turns(count: int) -> Moment:
    """So many turns of the loop later: a command is gathered in the first, and written in the second."""

    def arrange(cancel: Cancel, waits_for: asyncio.Future[object] | None, traffic: Traffic) -> None:
        def turn(left: int) -> None:
            if left == 0:
                cancel()
            else:
                loop.call_soon(turn, left - 1)

        loop = asyncio.get_running_loop()
        loop.call_soon(turn, count - 1)

    return arrange


def after_traffic(count: int) -> Moment:
    """When commands have been written or replies read so many times, by anybody: between them, never within one."""

    def arrange(cancel: Cancel, waits_for: asyncio.Future[object] | None, traffic: Traffic) -> None:
        traffic.call_after(count, cancel)

    return arrange


def at_a_word(cancel: Cancel, waits_for: asyncio.Future[object] | None, traffic: Traffic) -> None:
    """When the scenario says so, before anybody hears of what has just happened."""
    traffic.call_at_a_word(cancel)


def when_it_is_over(cancel: Cancel, waits_for: asyncio.Future[object] | None, traffic: Traffic) -> None:
    """What it waits for has come, and it has not been told yet."""
    if waits_for is None:
        asyncio.get_running_loop().call_soon(cancel)
    else:
        waits_for.add_done_callback(lambda _: cancel())


MOMENTS: dict[str, Moment] = {
    "at once": at_once,
    **{f"after {count} turns": after_turns(count) for count in (1, 2, 3)},
    **{f"after {count} writes and reads": after_traffic(count) for count in range(1, 9)},
    "at a word": at_a_word,
    "when it is over": when_it_is_over,
}


class Traffic:
    """Counts what all connections of this loop write and read."""

    def __init__(self) -> None:
        self._left = 0
        self._then: Cancel | None = None
        self.word: Cancel = _nothing

    def call_after(self, count: int, then: Cancel) -> None:
        self._left, self._then = count, then

    def call_at_a_word(self, then: Cancel) -> None:
        self.word = then

    def forget(self) -> None:
        self._then = None
        self.word = _nothing

    def happened(self) -> None:
        self._left -= 1
        if self._left == 0 and self._then is not None:
            then, self._then = self._then, None
            then()


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> Traffic:
    traffic = Traffic()
    flush, buffer_updated = Wire.flush, Wire.buffer_updated

    def counting_flush(wire: Wire) -> None:
        flush(wire)
        traffic.happened()

    def counting_buffer_updated(wire: Wire, nbytes: int) -> None:
        buffer_updated(wire, nbytes)
        traffic.happened()

    monkeypatch.setattr(Wire, "flush", counting_flush)
    monkeypatch.setattr(Wire, "buffer_updated", counting_buffer_updated)
    return traffic


def _nothing() -> None:
    pass


class Interrupted:
    """Runs a coroutine in a task, and at its k-th suspension arranges for the task's cancellation at this moment."""

    def __init__(self, call: Coroutine[Any, Any, object], *, suspension: int, moment: Moment, traffic: Traffic) -> None:
        self._call = call
        self._suspension = suspension
        self._moment = moment
        self._traffic = traffic
        self._in_time = False
        self.suspension_count = 0
        self.was_cancelled = False
        self.task: asyncio.Task[object] = asyncio.create_task(self._run(), name="the interrupted call")

    async def _run(self) -> object:
        return await self

    def __await__(self) -> Generator[Any, Any, object]:
        resume: Callable[[], Any] = lambda: self._call.send(None)  # noqa: E731
        while True:
            try:
                waits_for = resume()
            except StopIteration as end:
                return end.value
            if self.suspension_count == self._suspension:
                self._in_time = True
                self._moment(self._cancel, waits_for, self._traffic)
            self.suspension_count += 1
            try:
                yield waits_for
            except BaseException as error:
                resume = _throwing(self._call, error)
            else:
                resume = lambda: self._call.send(None)  # noqa: E731
            self._in_time = False
            self._traffic.forget()

    def _cancel(self) -> None:
        """Unless the suspension has ended before."""
        if self._in_time and not self.was_cancelled:
            self.was_cancelled = True
            self.task.cancel()


def _throwing(call: Coroutine[Any, Any, object], error: BaseException) -> Callable[[], Any]:
    return lambda: call.throw(error)


class Stage:
    """Two lockers, each a process as far as Redis knows, and the others that want the scenario's locks."""

    def __init__(self, url: str, here: Locker, there: Locker, heard: StageHeard, traffic: Traffic) -> None:
        self.traffic = traffic
        self.here = here
        self.there = there
        self.heard = heard
        self.keys = Keys(url, f"test:{uuid.uuid4().hex}")
        self.name = self.keys.name
        self.names = [self.name]
        self.others: list[asyncio.Task[object]] = []
        self._on_waiting: list[Callable[[], object]] = []
        self._inside: set[str] = set()

    def also(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        """Something else that happens meanwhile, and must come to its end."""
        self.others.append(asyncio.create_task(work))
        return self.others[-1]

    def once_it_waits(self, release: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """As soon as the call is queued; or when it has ended, if it never was."""
        self._on_waiting.append(lambda: self.also(release()))

    def on_waiting(self) -> None:
        """Somebody is queued."""
        while self._on_waiting:
            self._on_waiting.pop()()

    async def waits_too(self, locker: Locker) -> None:
        """Somebody else, who is queued when this returns and gets the lock in the end."""
        waiting = len(self.heard.all(Waiting))
        self.also(self.take(locker, self.name))
        await self.heard.count(Waiting, waiting + 1)

    async def take(self, locker: Locker, name: str) -> None:
        """Acquires, is alone, releases."""
        lease = await locker.acquire(name, lease_ttl_s=LEASE_S)
        await self.alone(lease)
        assert await lease.release(), f"{name} was not ours any more"

    async def alone(self, lease: Lease) -> None:
        """For a few turns of the loop, and by the server too."""
        assert lease.name not in self._inside, f"two leases on {lease.name} at a time"
        self._inside.add(lease.name)
        try:
            for _ in range(3):
                await asyncio.sleep(0)
            # A turn of a run is on before the server knows: what tells it travels on another connection than ours.
            await wait_until_async(lambda: self._is_its_holder(lease), what=f"the server to know {lease}")
        finally:
            self._inside.remove(lease.name)

    async def _is_its_holder(self, lease: Lease) -> bool:
        return bool(self.keys.client.get(f"lock:{{{lease.name}}}") == lease.lease_id)


# The scenarios


async def free_lock(stage: Stage) -> Coroutine[Any, Any, object]:
    return stage.here.acquire(stage.name, lease_ttl_s=LEASE_S)


async def free_lock_without_waiting(stage: Stage) -> Coroutine[Any, Any, object]:
    return stage.here.acquire(stage.name, lease_ttl_s=LEASE_S, wait_s=0)


async def held_lock_without_waiting(stage: Stage) -> Coroutine[Any, Any, object]:
    lease = await stage.there.acquire(stage.name, lease_ttl_s=LEASE_S)
    stage.once_it_waits(lease.release)
    return refused(stage.here.acquire(stage.name, lease_ttl_s=LEASE_S, wait_s=0))


async def handed_over_by_the_same_process(stage: Stage) -> Coroutine[Any, Any, object]:
    lease = await stage.here.acquire(stage.name, lease_ttl_s=LEASE_S)
    stage.once_it_waits(lease.release)
    return stage.here.acquire(stage.name, lease_ttl_s=LEASE_S)


async def handed_over_by_another_process(stage: Stage) -> Coroutine[Any, Any, object]:
    lease = await stage.there.acquire(stage.name, lease_ttl_s=LEASE_S)
    stage.once_it_waits(lambda: release_when_queued(stage, lease))
    return stage.here.acquire(stage.name, lease_ttl_s=LEASE_S)


async def first_of_several_in_line(stage: Stage) -> Coroutine[Any, Any, object]:
    lease = await stage.there.acquire(stage.name, lease_ttl_s=LEASE_S)

    async def others_come() -> None:
        await stage.waits_too(stage.here)
        await stage.waits_too(stage.there)
        await lease.release()

    stage.once_it_waits(others_come)
    return stage.here.acquire(stage.name, lease_ttl_s=LEASE_S)


async def between_others_in_line(stage: Stage) -> Coroutine[Any, Any, object]:
    lease = await stage.here.acquire(stage.name, lease_ttl_s=LEASE_S)
    await stage.waits_too(stage.there)
    await stage.waits_too(stage.here)
    stage.once_it_waits(lease.release)
    return stage.here.acquire(stage.name, lease_ttl_s=LEASE_S)


async def waiting_with_a_time_out(stage: Stage) -> Coroutine[Any, Any, object]:
    lease = await stage.there.acquire(stage.name, lease_ttl_s=LEASE_S)

    async def call() -> None:
        try:
            await refused(stage.here.acquire(stage.name, lease_ttl_s=LEASE_S, wait_s=0.02))
        finally:
            stage.also(release_when_left(stage, lease))

    return call()


async def first_in_line_of_a_lock_that_becomes_free(stage: Stage) -> Coroutine[Any, Any, object]:
    """Nobody but the first in line watches the lock; who gives that place up must tell the next."""
    stage.keys.client.set(stage.keys.lock, "python-redis-lock")

    async def becomes_free() -> None:
        await stands_or_is_gone(stage)
        await stage.waits_too(stage.there)
        channel = stage.there._servers.node_of(stage.name).channel
        await wait_until_async(lambda: _stands(stage, channel))
        if stage.here.waiter_count == 0:
            assert await stage.there.force_release(stage.name, fencing_token=0)  # the next does not watch it yet
            return
        stage.keys.client.delete(stage.keys.lock)
        stage.traffic.word()

    stage.once_it_waits(becomes_free)
    return stage.here.acquire(stage.name, lease_ttl_s=LEASE_S)


async def hold_with_a_body(stage: Stage) -> Coroutine[Any, Any, object]:
    return holding(stage)


async def hold_with_others_in_line(stage: Stage) -> Coroutine[Any, Any, object]:
    lease = await stage.there.acquire(stage.name, lease_ttl_s=LEASE_S)

    async def others_come() -> None:
        await stage.waits_too(stage.there)
        await stage.waits_too(stage.here)
        await lease.release()

    stage.once_it_waits(others_come)
    return holding(stage)


async def release_without_waiters(stage: Stage) -> Coroutine[Any, Any, object]:
    return (await stage.here.acquire(stage.name, lease_ttl_s=LEASE_S)).release()


async def release_with_a_waiter_of_the_same_process(stage: Stage) -> Coroutine[Any, Any, object]:
    lease = await stage.here.acquire(stage.name, lease_ttl_s=LEASE_S)
    await stage.waits_too(stage.here)
    return lease.release()


async def release_with_a_waiter_of_another_process(stage: Stage) -> Coroutine[Any, Any, object]:
    lease = await stage.here.acquire(stage.name, lease_ttl_s=LEASE_S)
    await stage.waits_too(stage.there)
    await queued(stage, 1)
    return lease.release()


async def release_with_waiters_of_both(stage: Stage) -> Coroutine[Any, Any, object]:
    lease = await stage.here.acquire(stage.name, lease_ttl_s=LEASE_S)
    await stage.waits_too(stage.there)
    await queued(stage, 1)
    await stage.waits_too(stage.here)
    return lease.release()


async def release_while_the_first_caller_asks(stage: Stage) -> Coroutine[Any, Any, object]:
    lease = await stage.here.acquire(stage.name, lease_ttl_s=LEASE_S)

    # All in one turn of the loop: one asks, another joins its line, and the holder releases.
    for _ in range(2):
        stage.also(stage.take(stage.here, stage.name))
    return lease.release()


async def first_caller_before_a_second(stage: Stage) -> Coroutine[Any, Any, object]:
    async def call() -> object:
        stage.also(stage.take(stage.here, stage.name))  # which runs when this one suspends
        return await stage.here.acquire(stage.name, lease_ttl_s=LEASE_S)

    return call()


async def second_caller_while_the_first_asks(stage: Stage) -> Coroutine[Any, Any, object]:
    async def call() -> object:
        first = stage.also(stage.take(stage.here, stage.name))
        await asyncio.sleep(0)
        assert not first.done()
        return await stage.here.acquire(stage.name, lease_ttl_s=LEASE_S)

    return call()


async def second_caller_while_the_first_asks_for_a_held_lock(stage: Stage) -> Coroutine[Any, Any, object]:
    lease = await stage.there.acquire(stage.name, lease_ttl_s=LEASE_S)
    stage.once_it_waits(lease.release)
    return await second_caller_while_the_first_asks(stage)


async def three_free_locks(stage: Stage) -> Coroutine[Any, Any, object]:
    stage.names = [f"{stage.name}/{each}" for each in "bac"]
    return stage.here.acquire_many(stage.names, lease_ttl_s=LEASE_S)


async def three_locks_of_which_one_is_held(stage: Stage) -> Coroutine[Any, Any, object]:
    stage.names = [f"{stage.name}/{each}" for each in "bac"]
    lease = await stage.there.acquire(stage.names[0], lease_ttl_s=LEASE_S)
    stage.once_it_waits(lease.release)
    return stage.here.acquire_many(stage.names, lease_ttl_s=LEASE_S)


async def hold_of_three_locks(stage: Stage) -> Coroutine[Any, Any, object]:
    stage.names = [f"{stage.name}/{each}" for each in "bac"]

    async def call() -> None:
        async with stage.here.hold_many(stage.names, lease_ttl_s=LEASE_S) as leases:
            for lease in leases:
                await stage.alone(lease)

    return call()


async def hold_of_three_locks_that_others_want(stage: Stage) -> Coroutine[Any, Any, object]:
    stage.names = [f"{stage.name}/{each}" for each in "bac"]

    async def call() -> None:
        async with stage.here.hold_many(stage.names, lease_ttl_s=LEASE_S):
            for name in stage.names:
                stage.also(stage.take(stage.there, name))
            for name in stage.names:
                await wait_until_async(lambda name=name: _is_queued(stage, name))  # type: ignore[misc]

    return call()


async def adopting(stage: Stage) -> Coroutine[Any, Any, object]:
    text = (await stage.there.acquire(stage.name, lease_ttl_s=LEASE_S)).export()
    return stage.here.adopt(text)


async def adopting_what_another_waits_for(stage: Stage) -> Coroutine[Any, Any, object]:
    text = (await stage.there.acquire(stage.name, lease_ttl_s=LEASE_S)).export()
    await stage.waits_too(stage.there)
    await queued(stage, 1)
    return stage.here.adopt(text)


async def extending(stage: Stage) -> Coroutine[Any, Any, object]:
    async def call() -> None:
        async with stage.here.hold(stage.name, lease_ttl_s=LEASE_S) as lease:
            await lease.extend(LEASE_S - 1)
            await lease.extend(LEASE_S)

    return call()


SCENARIOS: list[Scenario] = [
    free_lock,
    free_lock_without_waiting,
    held_lock_without_waiting,
    handed_over_by_the_same_process,
    handed_over_by_another_process,
    first_of_several_in_line,
    between_others_in_line,
    waiting_with_a_time_out,
    first_in_line_of_a_lock_that_becomes_free,
    hold_with_a_body,
    hold_with_others_in_line,
    release_without_waiters,
    release_with_a_waiter_of_the_same_process,
    release_with_a_waiter_of_another_process,
    release_with_waiters_of_both,
    release_while_the_first_caller_asks,
    first_caller_before_a_second,
    second_caller_while_the_first_asks,
    second_caller_while_the_first_asks_for_a_held_lock,
    three_free_locks,
    three_locks_of_which_one_is_held,
    hold_of_three_locks,
    hold_of_three_locks_that_others_want,
    adopting,
    adopting_what_another_waits_for,
    extending,
]


# The claim


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_a_call_cancelled_at_any_await_leaves_nothing_and_delays_nobody(
    redis_url: str, traffic: Traffic, scenario: Scenario, request: pytest.FixtureRequest
) -> None:
    cancelled: dict[str, int] = {}
    tasks_before = asyncio.all_tasks()
    async with two_processes(redis_url) as (here, there, heard):
        for moment_name, moment in MOMENTS.items():
            cancelled[moment_name] = 0
            for suspension in itertools.count():
                assert suspension < MOST_SUSPENSIONS, "the call does not come to its end"
                stage = Stage(redis_url, here, there, heard, traffic)
                heard.events.clear()
                heard.on_waiting = stage.on_waiting
                try:
                    call = await scenario(stage)
                    interrupted = Interrupted(call, suspension=suspension, moment=moment, traffic=traffic)
                    await ended(interrupted)
                    await assert_nothing_is_left(stage, interrupted)
                except BaseException as error:
                    error.add_note(f"{scenario.__name__}, cancelled {moment_name} at suspension {suspension}")
                    raise
                finally:
                    stage.keys.client.close()
                cancelled[moment_name] += interrupted.was_cancelled
                if suspension >= interrupted.suspension_count:
                    break
    assert asyncio.all_tasks() - tasks_before == set()
    # As record_property does, which warns where junit's newest format is asked for.
    request.node.user_properties.append(("points", sum(cancelled.values())))
    print(f"{scenario.__name__}: {sum(cancelled.values())} points: {cancelled}")
    assert cancelled["at once"] >= 1
    assert cancelled["when it is over"] >= 1
    assert sum(cancelled.values()) >= len(MOMENTS) // 2


# Helpers


class StageHeard(Heard):
    """Also tells the stage when somebody is queued, and checks each grant."""

    def __init__(self) -> None:
        super().__init__()
        self.on_waiting: Callable[[], None] = lambda: None
        self.tokens: dict[str, int] = {}
        self.granted_twice: list[Acquired] = []

    def __call__(self, event: Any) -> None:
        super().__call__(event)
        if isinstance(event, Waiting):
            self.on_waiting()
        elif isinstance(event, Acquired):
            if event.fencing_token <= self.tokens.get(event.name, 0):
                self.granted_twice.append(event)
            self.tokens[event.name] = event.fencing_token


@asynccontextmanager
async def two_processes(url: str) -> AsyncIterator[tuple[Locker, Locker, StageHeard]]:
    heard = StageHeard()
    endless = {"alive_ms": HOUR_MS, "claim_ms": HOUR_MS, "grace_ms": HOUR_MS, "handoffs": 1000, "most_handoffs": 1000}
    async with locking(url, heard=heard, **endless) as here, locking(url, heard=heard, **endless) as there:
        yield here, there, heard


async def ended(interrupted: Interrupted) -> None:
    """The call has come to its end, and to the right one."""
    await asyncio.wait([interrupted.task], timeout=SOON_S)
    assert interrupted.task.done(), "the call does not end"
    assert interrupted.task.cancelled() == interrupted.was_cancelled, interrupted.task
    if not interrupted.was_cancelled:
        result = interrupted.task.result()
        for lease in result if isinstance(result, list) else [result]:
            if isinstance(lease, Lease):
                assert await lease.release()


async def assert_nothing_is_left(stage: Stage, interrupted: Interrupted) -> None:
    stage.on_waiting()
    async with asyncio.timeout(SOON_S):
        for other in itertools.chain.from_iterable(iter(lambda: stage.others[:], [])):
            stage.others.remove(other)
            await other
        for name in stage.names:
            # Whoever comes now gets it, and is alone.
            await stage.take(stage.there, name)
        for name in stage.names:
            await wait_until_async(lambda name=name: _is_gone(stage, name), what=f"{name} to be gone")  # type: ignore[misc]
    for locker in (stage.here, stage.there):
        assert locker.held == []
        assert locker.waiter_count == 0
        assert locker._lines.by_name == {}
        assert locker._lines._by_lease_id == {}
    assert stage.heard.all(Lost) == []
    assert stage.heard.granted_twice == []

    async def no_task() -> bool:
        return not any(task.get_name() in ("lock-settling", "the interrupted call") for task in asyncio.all_tasks())

    await wait_until_async(no_task, what="every task to end")


async def _is_gone(stage: Stage, name: str) -> bool:
    """Neither holder nor queue, nor anybody's entry beside it."""
    client = stage.keys.client
    entries = [field for field in client.hkeys(f"lock-waiters:{{{name}}}") if not str(field).startswith(".")]
    return not client.exists(f"lock:{{{name}}}", f"lock-queue:{{{name}}}") and not entries


async def _is_queued(stage: Stage, name: str) -> bool:
    return bool(stage.keys.client.zcard(f"lock-queue:{{{name}}}"))


async def _stands(stage: Stage, channel: str) -> bool:
    return stage.keys.client.zscore(stage.keys.queue, channel) is not None


async def queued(stage: Stage, count: int) -> None:
    """So many processes stand in line at the server."""

    async def enough() -> bool:
        return stage.keys.queued() == count

    await wait_until_async(enough)


async def release_when_queued(stage: Stage, lease: Lease) -> None:
    """So that a handoff and not its look brings the call the lock."""
    await stands_or_is_gone(stage)
    await lease.release()


async def stands_or_is_gone(stage: Stage) -> None:
    """Once the call stands in line, or waits no longer."""

    async def so_far() -> bool:
        return stage.keys.queued() > 0 or stage.here.waiter_count == 0

    await wait_until_async(so_far)


async def release_when_left(stage: Stage, lease: Lease) -> None:
    """Once the call's place in line is gone, which no release needs to clear."""

    async def left() -> bool:
        return stage.keys.queued() == 0

    await wait_until_async(left, patience_s=SOON_S, what="the place to be given up")
    await lease.release()


async def refused(acquiring: Awaitable[object]) -> None:
    with pytest.raises(LockBusy):
        await acquiring


async def holding(stage: Stage) -> None:
    async with stage.here.hold(stage.name, lease_ttl_s=LEASE_S) as lease:
        await asyncio.sleep(0)
        await stage.alone(lease)
        await asyncio.sleep(0.001)
