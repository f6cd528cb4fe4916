"""Whatever several processes, other programs and operators do to a lock, in whatever order: a model of it stays true.

Hypothesis makes up what happens, step by step, against a real server. After each step the locks come to rest, and then
the server and every process must agree with the model: one holder, the first in line next, a token that rises.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from locks import Dismissed, HolderChanged, Lease, LeaseLost, LockBusy, Locker, LossReason
from locks.store import QueueLimits
from tests.harness import PATIENCE_S, wait_until_async
from tests.servers.redis_server import RedisServer

NAMES = ("a", "b")
PROCESS_COUNT = 3
LEASE_S = 600.0  # no lease ends by itself
TOGETHER_S = 0.1  # closer than this is at the same time, where two processes ask one server
SOON_S = 20.0  # an upper bound for what ends much sooner
LIMITS = QueueLimits(alive_ms=1200, claim_ms=5000)
LONGEST_MS = int(LEASE_S * 1000) + LIMITS.keep_ms + LIMITS.alive_ms
# What python-redis-lock does on release.
FOREIGN_RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 1 end
redis.call('DEL', KEYS[2]) redis.call('LPUSH', KEYS[2], 1) redis.call('PEXPIRE', KEYS[2], 1000)
redis.call('DEL', KEYS[1]) return 0
"""
EXPIRIES = """
local found = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do found[#found + 1] = {key, redis.call('PTTL', key)} end
return found
"""
Result = TypeVar("Result")

names = st.sampled_from(NAMES)
processes = st.integers(0, PROCESS_COUNT - 1)
places = st.integers(0, 5)


@dataclass(eq=False)
class Call:
    """One caller of acquire who waits."""

    process: int
    task: asyncio.Task[Lease]
    began_at_s: float = 0.0


@dataclass(eq=False)
class Holder:
    """Who has the lock by the model: a lease of a process, a lease whose process has died, or another program."""

    id: str
    fencing_token: int = 0
    lease: Lease | None = None
    process: int | None = None
    expires: bool = True


@dataclass
class Lock:
    """What the model knows of one lock. `waiting`: in the order of their arrival."""

    name: str
    holder: Holder | None = None
    waiting: list[Call] = field(default_factory=list)
    token: int = 0
    order_is_lost: bool = False

    @property
    def key(self) -> str:
        """Where python-redis-lock has it too."""
        return f"lock:{{{self.name}}}"


Condition = Callable[[Lock], bool]


def held(lock: Lock) -> bool:
    return lock.holder is not None


def held_by_us(lock: Lock) -> bool:
    return lock.holder is not None and lock.holder.lease is not None


def held_by_another_program(lock: Lock) -> bool:
    return lock.holder is not None and lock.holder.fencing_token == 0


def waited_for(lock: Lock) -> bool:
    return bool(lock.waiting)


def held_by_us_and_waited_for(lock: Lock) -> bool:
    return held_by_us(lock) and waited_for(lock)


class LockModel(RuleBasedStateMachine):
    """Some processes on one event loop, each with connections of its own; a step returns when the locks are at rest."""

    def __init__(self, server: RedisServer, figures: Figures) -> None:
        super().__init__()
        self._url = server.url
        self._figures = figures
        self._loop = asyncio.new_event_loop()
        self._client = redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=PATIENCE_S)
        self._prefix = uuid.uuid4().hex
        self._locks = {name: Lock(f"{self._prefix}:{name}") for name in NAMES}
        self._lockers: list[Locker] = []
        self._stale: list[Holder] = []  # held as far as their processes know
        self._failed = True

    # What happens

    @initialize()
    def begin(self) -> None:
        for _ in range(PROCESS_COUNT):
            self._lockers.append(self._run(self._opened()))
        self._failed = False

    @rule(name=names, process=processes, patience_s=st.sampled_from([0, 0.005]))
    def acquire_with_little_patience(self, name: str, process: int, patience_s: float) -> None:
        async def acquire() -> None:
            lock = self._locks[name]
            wait_s = SOON_S if lock.holder is None and patience_s else patience_s
            acquiring = self._lockers[process].acquire(lock.name, lease_ttl_s=LEASE_S, wait_s=wait_s)
            if lock.holder is None:
                self._granted(lock, process, await acquiring)
            else:
                with pytest.raises(LockBusy):
                    await acquiring

        self._step(acquire())

    @rule(name=names, process=processes)
    def wait(self, name: str, process: int) -> None:
        self._step(self._begin_to_wait(name, process))

    @rule(name=names, others=st.lists(processes, min_size=2, max_size=4))
    def several_wait_one_after_the_other(self, name: str, others: list[int]) -> None:
        async def wait(process: int) -> None:
            await self._begin_to_wait(name, process)
            await asyncio.sleep(1.1 * TOGETHER_S)

        for process in others:
            self._step(wait(process))

    @precondition(lambda self: self._is_there(held_by_us))
    @rule(name=names)
    def release(self, name: str) -> None:
        async def release() -> None:
            lock = self._one(name, held_by_us)
            lease, lock.holder = _lease_of(lock), None
            assert await lease.release() is True

        self._step(release())

    @precondition(lambda self: self._is_there(held_by_us))
    @rule(name=names)
    def finish(self, name: str) -> None:
        async def finish() -> None:
            lock = self._one(name, held_by_us)
            lease, lock.holder = _lease_of(lock), None
            lease.finish()
            await self._dismissed(lock, lock.waiting)
            if not lock.waiting:
                await wait_until_async(lambda: self._is_free(lock), patience_s=SOON_S, what=f"{lock} to be free")

        self._step(finish())

    @precondition(lambda self: self._is_there(waited_for))
    @rule(name=names, place=places)
    def dismiss(self, name: str, place: int) -> None:
        """Those of one process only."""

        async def dismiss() -> None:
            lock = self._one(name, waited_for)
            process = lock.waiting[place % len(lock.waiting)].process
            self._lockers[process].dismiss(lock.name)
            await self._dismissed(lock, _of_process(lock, process))

        self._step(dismiss())

    @precondition(lambda self: self._is_there(held_by_us_and_waited_for))
    @rule(name=names, place=places)
    def release_while_a_waiter_is_cancelled(self, name: str, place: int) -> None:
        async def both() -> None:
            lock = self._one(name, held_by_us_and_waited_for)
            lease, lock.holder = _lease_of(lock), None
            call = lock.waiting.pop(place % len(lock.waiting))
            releasing = asyncio.create_task(lease.release())
            await asyncio.sleep(0)
            await cancelled(call)
            assert await releasing is True

        self._step(both())

    @precondition(lambda self: self._is_there(waited_for))
    @rule(name=names, place=places)
    def cancel(self, name: str, place: int) -> None:
        async def cancel() -> None:
            waiting = self._one(name, waited_for).waiting
            await cancelled(waiting.pop(place % len(waiting)))

        self._step(cancel())

    @precondition(lambda self: self._is_there(held_by_us))
    @rule(name=names)
    def extend(self, name: str) -> None:
        self._step(_lease_of(self._one(name, held_by_us)).extend(LEASE_S))

    @precondition(lambda self: self._stale)
    @rule(place=places)
    def stale_release(self, place: int) -> None:
        async def release() -> None:
            lease = self._stale.pop(place % len(self._stale)).lease
            assert lease is not None
            assert await lease.release() is False

        self._step(release())

    @precondition(lambda self: self._stale)
    @rule(place=places)
    def stale_finish(self, place: int) -> None:
        """Its own process believes it, nobody else does."""

        async def finish() -> None:
            holder = self._stale.pop(place % len(self._stale))
            assert holder.lease is not None
            assert holder.process is not None
            holder.lease.finish()
            lock = next(lock for lock in self._locks.values() if lock.name == holder.lease.name)
            await self._dismissed(lock, _of_process(lock, holder.process))

        self._step(finish())

    @precondition(lambda self: self._stale)
    @rule(place=places)
    def stale_extend(self, place: int) -> None:
        async def extend() -> None:
            lease = self._stale.pop(place % len(self._stale)).lease
            assert lease is not None
            with pytest.raises(LeaseLost):
                await lease.extend(LEASE_S)
            assert lease.lost.is_set()

        self._step(extend())

    @precondition(lambda self: self._is_there(held))
    @rule(name=names)
    def lapse(self, name: str) -> None:
        """The holder's time runs out."""

        async def lapse() -> None:
            lock = self._one(name, held)
            holder = self._vacate(lock)
            self._client.pexpire(lock.key, 1)
            await wait_until_async(lambda: self._is_not(lock, holder.id))

        self._step(lapse())

    @precondition(lambda self: self._is_there(held))
    @rule(name=names)
    def delete(self, name: str) -> None:
        """By an operator, or by python-redis-lock's reset()."""

        async def delete() -> None:
            lock = self._one(name, held)
            self._vacate(lock)
            self._client.delete(lock.key)

        self._step(delete())

    @precondition(lambda self: self._is_there(held))
    @rule(name=names, process=processes)
    def force(self, name: str, process: int) -> None:
        async def force() -> None:
            locker, lock = self._lockers[process], self._one(name, held)
            assert lock.holder is not None
            with pytest.raises(HolderChanged):
                await locker.force_release(lock.name, fencing_token=lock.holder.fencing_token + 1)
            holder = self._vacate(lock)
            assert await locker.force_release(lock.name, fencing_token=holder.fencing_token) is True
            if holder.lease is not None:
                await asyncio.wait_for(holder.lease.lost.wait(), SOON_S)
                assert holder.lease.loss_reason is LossReason.FORCED
                self._stale.remove(holder)

        self._step(force())

    @rule(name=names, expires=st.booleans())
    def foreign_acquire(self, name: str, expires: bool) -> None:
        async def acquire() -> None:
            lock = self._locks[name]
            holder = Holder(f"foreign {uuid.uuid4().hex}", expires=expires)
            done = self._client.set(lock.key, holder.id, px=300_000 if expires else None, nx=True)
            assert bool(done) == (lock.holder is None)
            lock.holder = lock.holder or holder

        self._step(acquire())

    @precondition(lambda self: self._is_there(held))
    @rule(name=names)
    def foreign_overtakes(self, name: str) -> None:
        """Quicker than everybody who waits, when the lock becomes free."""

        async def overtake() -> None:
            lock = self._one(name, held)
            self._vacate(lock)
            lock.holder = Holder(f"foreign {uuid.uuid4().hex}")
            with self._client.pipeline(transaction=True) as pipeline:
                pipeline.delete(lock.key)
                pipeline.set(lock.key, lock.holder.id, px=300_000, nx=True)
                assert pipeline.execute() == [1, True]

        self._step(overtake())

    @precondition(lambda self: self._is_there(held_by_another_program))
    @rule(name=names)
    def foreign_release(self, name: str) -> None:
        async def release() -> None:
            lock = self._one(name, held_by_another_program)
            holder = self._vacate(lock)
            assert self._client.eval(FOREIGN_RELEASE, 2, lock.key, f"lock-signal:{{{lock.name}}}", holder.id) == 0

        self._step(release())

    @rule(process=processes, happens=st.integers(0, 3))
    def crash(self, process: int, happens: int) -> None:
        """A process dies without a word, and another one begins."""

        async def crash() -> None:
            locker = self._lockers[process]
            for node in list(locker._servers.nodes()):
                await node.messages.close()
                await node.commands.close()
            for lock in self._locks.values():
                if lock.holder is not None and lock.holder.process == process:
                    lock.holder.lease = lock.holder.process = None
                for call in [call for call in lock.waiting if call.process == process]:
                    lock.waiting.remove(call)
                    await cancelled(call)
            self._stale = [holder for holder in self._stale if holder.process != process]
            await locker.close()
            self._lockers[process] = await self._opened()

        if happens == 0:
            self._step(crash())

    @rule(happens=st.integers(0, 3))
    def flush_all(self, happens: int) -> None:
        async def flush() -> None:
            for lock in self._locks.values():
                if lock.holder is not None:
                    self._vacate(lock)
                # A free lock without a queue is for whoever comes first, and who that is nobody knows.
                lock.order_is_lost = bool(lock.waiting)
            self._client.flushall()

        if happens == 0:
            self._step(flush())

    # What is true after each step

    @invariant()
    def the_server_and_the_processes_agree_with_the_model(self) -> None:
        if self._failed:
            return
        for lock in self._locks.values():
            assert self._holder_id(lock) == (lock.holder.id if lock.holder else None)
        holders = [lock.holder for lock in self._locks.values() if lock.holder is not None] + self._stale
        for process, locker in enumerate(self._lockers):
            tokens = sorted(lease.fencing_token for lease in locker.held)
            assert tokens == sorted(holder.fencing_token for holder in holders if holder.process == process)
            waiting = sum(call.process == process for lock in self._locks.values() for call in lock.waiting)
            assert locker.waiter_count == waiting

    @invariant()
    def every_key_expires(self) -> None:
        if self._failed:
            return
        endless = {lock.key for lock in self._locks.values() if lock.holder is not None and not lock.holder.expires}
        for key, ttl_ms in self._client.eval(EXPIRIES, 0, f"*{self._prefix}*"):
            assert -1 < ttl_ms <= LONGEST_MS or key in endless, f"{key} expires in {ttl_ms} ms"

    def teardown(self) -> None:
        try:
            if not self._failed:
                self._failed = True
                self._run(self._everything_ends())
        finally:
            self._run(self._closed())
            self._loop.close()
            self._client.close()

    # How it is done

    def _step(self, what: Coroutine[Any, Any, None]) -> None:
        async def step() -> None:
            await what
            for lock in self._locks.values():
                await self._at_rest(lock)

        self._figures.steps += 1
        try:
            self._run(step())
        except BaseException:
            self._failed = True
            raise

    def _run(self, what: Coroutine[Any, Any, Result]) -> Result:
        return self._loop.run_until_complete(what)

    async def _opened(self) -> Locker:
        locker = Locker(self._url, instance_id="model", command_timeout_s=20, queue_limits=LIMITS)
        return await locker.__aenter__()

    def _is_there(self, condition: Condition) -> bool:
        return any(map(condition, self._locks.values()))

    def _one(self, name: str, condition: Condition) -> Lock:
        """The lock of this name, or else another one, for which the condition holds."""
        return next(filter(condition, (self._locks[name], *self._locks.values())))

    async def _begin_to_wait(self, name: str, process: int) -> None:
        lock, locker = self._locks[name], self._lockers[process]
        call = Call(process, asyncio.create_task(locker.acquire(lock.name, lease_ttl_s=LEASE_S)))
        lock.waiting.append(call)
        await asyncio.sleep(0)
        call.began_at_s = time.monotonic()

        async def waits_or_has_it() -> bool:
            line = locker._lines.by_name.get(lock.name)
            return call.task.done() or (line is not None and line.asked is not line)

        await wait_until_async(waits_or_has_it)

    def _vacate(self, lock: Lock) -> Holder:
        """The holder has it no longer, and does not know that."""
        holder, lock.holder = lock.holder, None
        assert holder is not None
        if holder.lease is not None:
            self._stale.append(holder)
        return holder

    def _granted(self, lock: Lock, process: int, lease: Lease) -> None:
        """A lease has come out of the library. Whoever had the lock in this process knows by now that it is over."""
        for holder in [holder for holder in self._stale if holder.process == process]:
            if holder.lease is not None and holder.lease.name == lock.name:
                assert holder.lease.loss_reason is LossReason.TAKEN
                self._stale.remove(holder)
        assert lock.holder is None, f"two have {lock} at a time"
        assert lease.fencing_token > lock.token, f"the token of {lock} does not rise"
        lock.token = lease.fencing_token
        lock.holder = Holder(lease.lease_id, lease.fencing_token, lease, process)
        self._figures.grants += 1

    async def _at_rest(self, lock: Lock) -> None:
        """Once a free lock has found its next holder, and every process whose callers wait stands in line."""
        await wait_until_async(lambda: self._is_at_rest(lock), patience_s=SOON_S, what=f"{lock} to come to rest")

    async def _is_at_rest(self, lock: Lock) -> bool:
        for call in [call for call in lock.waiting if call.task.done()]:
            overtaken = [each for each in lock.waiting if _stands_before(each, call, lock)]
            assert not overtaken, f"{call} overtook {overtaken}"
            lock.waiting.remove(call)
            lock.order_is_lost = False
            self._granted(lock, call.process, call.task.result())
            self._figures.handoffs += 1
        if lock.holder is None:
            return not lock.waiting
        channels = {self._lockers[call.process]._servers.node_of(lock.name).channel for call in lock.waiting}
        return channels <= set(self._client.zrange(f"lock-queue:{{{lock.name}}}", 0, -1))

    async def _dismissed(self, lock: Lock, calls: list[Call]) -> None:
        """Once these are told. A look that is on its way at that moment may still get the lock for one of them."""

        async def all_are_told() -> bool:
            return all(call.task.done() for call in calls)

        await wait_until_async(all_are_told, patience_s=SOON_S, what=f"{calls} to be told")
        granted = [call for call in calls if call.task.exception() is None]
        assert len(granted) <= 1
        assert all(isinstance(call.task.exception(), Dismissed) for call in calls if call not in granted)
        lock.waiting = [call for call in lock.waiting if call not in calls or call in granted]

    async def _is_free(self, lock: Lock) -> bool:
        return self._holder_id(lock) is None

    async def _is_not(self, lock: Lock, holder_id: str) -> bool:
        return self._holder_id(lock) != holder_id

    def _holder_id(self, lock: Lock) -> str | None:
        holder_id = self._client.get(lock.key)
        assert holder_id is None or isinstance(holder_id, str)
        return holder_id

    async def _everything_ends(self) -> None:
        """Everybody gets a turn and releases; then nothing is left that outlives its time."""
        for lock in self._locks.values():
            while lock.holder is not None:
                holder, lock.holder = lock.holder, None
                if holder.lease is not None:
                    assert await holder.lease.release() is True
                else:
                    self._client.delete(lock.key)
                await self._at_rest(lock)
            assert not lock.waiting
            assert not self._client.exists(lock.key), "a lock that nobody holds"
            assert not await self._queued(lock)
        self._failed = False
        self.every_key_expires()

    async def _queued(self, lock: Lock) -> set[str]:
        """The live processes that stand in line: what a dead one has left goes with its time."""
        live = {node.channel for locker in self._lockers for node in locker._servers.nodes()}
        return live & {str(each) for each in self._client.zrange(f"lock-queue:{{{lock.name}}}", 0, -1)}

    async def _closed(self) -> None:
        for lock in self._locks.values():
            for call in lock.waiting:
                await cancelled(call)
        for locker in self._lockers:
            await locker.close()
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*left, return_exceptions=True)


class Figures:
    """How much has happened."""

    def __init__(self) -> None:
        self.steps = 0
        self.grants = 0
        self.handoffs = 0


def _lease_of(lock: Lock) -> Lease:
    assert lock.holder is not None
    assert lock.holder.lease is not None
    return lock.holder.lease


def _of_process(lock: Lock, process: int) -> list[Call]:
    return [call for call in lock.waiting if call.process == process]


def _stands_before(one: Call, other: Call, lock: Lock) -> bool:
    """Callers of one process have an order; those of two have one when they came at different times."""
    if one.process == other.process:
        return lock.waiting.index(one) < lock.waiting.index(other)
    return not lock.order_is_lost and one.began_at_s < other.began_at_s - TOGETHER_S


async def cancelled(call: Call) -> None:
    call.task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await call.task


def test_a_model_of_the_locks_stays_true_whatever_happens(
    redis_server: RedisServer, request: pytest.FixtureRequest
) -> None:
    figures = Figures()

    class Model(LockModel):
        def __init__(self) -> None:
            super().__init__(redis_server, figures)

    run_state_machine_as_test(
        Model,
        settings=settings(
            derandomize=True,
            database=None,
            deadline=None,
            max_examples=35,
            stateful_step_count=30,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    request.node.user_properties.append(("steps", figures.steps))
    print(f"{figures.steps} steps, {figures.grants} grants, {figures.handoffs} of them to callers who waited")
    assert figures.handoffs > 100
