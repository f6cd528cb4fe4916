"""Programs with python-redis-lock, and with SafeLock, by the commands that they send: they are on the same locks."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import hiredis
import redis_lock

from locks import sync_store
from locks.keys import keys_of
from locks.lease import is_over, margin_s
from locks.store import QueueLimits
from tests.sim.process import Process
from tests.sim.recording import Held, ns

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

EXPIRE_S = 1
TIMEOUT_S = 2.0
WAIT_S = 1.0
EXTENDS_AFTER_S = EXPIRE_S / 3
EXTENDED = (0, b"extended")  # the answers of redis_lock's script, and of SafeLock's
UNLOCK = redis_lock.UNLOCK_SCRIPT.decode()
UNLOCK_SHA = hashlib.sha1(redis_lock.UNLOCK_SCRIPT, usedforsecurity=False).hexdigest()
EXTEND = redis_lock.EXTEND_SCRIPT.decode()
EXTEND_SHA = hashlib.sha1(redis_lock.EXTEND_SCRIPT, usedforsecurity=False).hexdigest()


class Talk(asyncio.Protocol):
    """One connection: a question, its answer, the next question. An answer that is an error is raised."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._transport: Any = None
        self._answer: asyncio.Future[Any] | None = None

    async def ask(self, *command: str | int | float | bytes, timeout_s: float = TIMEOUT_S) -> Any:
        """Raises ConnectionError, TimeoutError, hiredis.ReplyError."""
        if self._transport is None:
            raise ConnectionError("lost")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(hiredis.pack_command(command))  # type: ignore[arg-type]
        answer = await asyncio.wait_for(self._answer, timeout_s)
        if isinstance(answer, hiredis.ReplyError):
            raise answer
        return answer

    async def run(self, source: str | bytes, sha: str, keys: tuple[str, ...], *arguments: str | int) -> Any:
        """A script, by its hash where the server knows it; however often it forgets that one again."""
        while True:
            try:
                return await self.ask("EVALSHA", sha, len(keys), *keys, *arguments)
            except hiredis.ReplyError as error:
                if not str(error).startswith("NOSCRIPT"):
                    raise
            await self.ask("SCRIPT", "LOAD", source)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(reply)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("lost"))

    def close(self) -> None:
        """Ends it."""
        if self._transport is not None:
            self._transport.abort()


class Program:
    """A process that takes one lock after another; `held`: what it holds."""

    def __init__(self, simulation: Simulation, process: Process, *, is_safe: bool) -> None:
        self.held: list[Held] = []
        self._simulation, self.process, self._is_safe = simulation, process, is_safe
        self._random = simulation.world.random(f"{process.name}.{process.life} program")
        self._clock = process.clock()
        self._seen_fence = 0

    async def run(self) -> None:
        """Until the run stops."""
        while not self._simulation.is_stopping:
            with contextlib.suppress(ConnectionError, TimeoutError, hiredis.ReplyError):
                _, talk = await asyncio.wait_for(
                    asyncio.get_running_loop().create_connection(Talk, "127.0.0.1", 6379), TIMEOUT_S
                )
                try:
                    await self._turns(talk)
                finally:
                    talk.close()
            await asyncio.sleep(0.05)

    async def _turns(self, talk: Talk) -> None:
        while not self._simulation.is_stopping:
            await asyncio.sleep(self._random.uniform(0.01, 0.3))
            name = self._random.choice(self._simulation.circumstances.names)
            await (self._safe_turn(talk, name) if self._is_safe else self._turn(talk, name))

    async def _turn(self, talk: Talk, name: str) -> None:
        """As redis_lock.Lock.acquire(timeout=1) and release()."""
        lock, signal, owner = f"lock:{{{name}}}", f"lock-signal:{{{name}}}", self._random.randbytes(18).hex()
        is_last = False
        self._invokes(name)
        while True:
            asked_s = self._clock.monotonic_s()
            if await talk.ask("SET", lock, owner, "EX", EXPIRE_S, "NX"):
                break
            if is_last:
                return
            is_last = not await talk.ask("BLPOP", signal, EXPIRE_S, timeout_s=EXPIRE_S + TIMEOUT_S)
        extend = partial(talk.run, EXTEND, EXTEND_SHA, (lock, signal), owner, EXPIRE_S)
        await self._hold(name, None, owner, asked_s, extend)
        ours = await talk.run(UNLOCK, UNLOCK_SHA, (lock, signal), owner, 1000) == 0
        self._tell("released", name, None, still_ours=ours, handed_over=False)

    async def _safe_turn(self, talk: Talk, name: str) -> None:
        """As locks.compat.SafeLock.acquire(timeout=1) and release()."""
        keys = keys_of(name)
        own_keys = (keys.lock, keys.queue, keys.waiters, keys.grant, keys.signal, f"lock-released:{{{name}}}")
        owner, who = self._random.randbytes(12).hex(), f"\t{self.process.name}\thost\t1\t"
        ends_s = self._clock.monotonic_s() + WAIT_S
        script = sync_store._ACQUIRE
        self._invokes(name)
        while True:
            asked_s = self._clock.monotonic_s()
            fence, *busy_ms = await talk.run(
                script.source, script.sha, own_keys, owner, 1000 * EXPIRE_S, 1000 * EXPIRE_S, who, self._seen_fence
            )
            left_s = ends_s - self._clock.monotonic_s()
            if fence is not None and not is_over(EXPIRE_S, after_s=self._clock.monotonic_s() - asked_s):
                break
            if left_s <= 0:
                if fence is not None:  # heard of too late to begin: it is given back
                    await self._safe_release(talk, own_keys, owner, int(fence))
                return
            if fence is None:
                wait_s = max(0.001, round(min(left_s, 1.0, busy_ms[0] / 1000 + 0.01 if busy_ms[0] >= 0 else 1.0), 3))
                await talk.ask("BLPOP", keys.signal, wait_s, timeout_s=wait_s + TIMEOUT_S)
        self._seen_fence = int(fence)
        script = sync_store._EXTEND
        extend = partial(talk.run, script.source, script.sha, own_keys, owner, 1000 * EXPIRE_S, int(fence))
        await self._hold(name, int(fence), owner, asked_s, extend)
        still_ours = await self._safe_release(talk, own_keys, owner, int(fence))
        self._tell("released", name, int(fence), still_ours=still_ours, handed_over=False)

    async def _safe_release(self, talk: Talk, own_keys: tuple[str, ...], owner: str, fence: int) -> bool:
        script = sync_store._RELEASE
        call_id, signal_ms = self._random.randbytes(6).hex(), QueueLimits().signal_ms
        reply = await talk.run(script.source, script.sha, own_keys, owner, call_id, signal_ms, fence)
        return bool(reply == b"released")

    async def _hold(
        self, name: str, fence: int | None, owner: str, asked_s: float, extend: Callable[[], Awaitable[Any]]
    ) -> None:
        ends_s = self._ends_s(asked_s)
        self._tell("acquired", name, fence, until=ns(ends_s), outside=True, lease_s=EXPIRE_S)
        self.held = [Held(name, fence, fence, owner, ends_s)]
        try:
            for _ in range(self._simulation.circumstances.extensions):
                await asyncio.sleep(EXTENDS_AFTER_S)
                asked_s = self._clock.monotonic_s()
                if await extend() not in EXTENDED:
                    return
                ends_s = self._ends_s(asked_s)
                self._tell("extended", name, fence, until=ns(ends_s))
                self.held = [Held(name, fence, fence, owner, ends_s)]
            await asyncio.sleep(self._random.uniform(0.002, 0.02))
        finally:
            self.held = []
            self._tell("releasing", name, fence)

    def _ends_s(self, asked_s: float) -> float:
        return self.process.true_s(asked_s + EXPIRE_S - margin_s(EXPIRE_S))

    def _invokes(self, name: str) -> None:
        self._simulation.recording.point(self.process, "invoked", name=name)

    def _tell(self, p: str, name: str, fence: int | None, **facts: Any) -> None:
        self._simulation.recording.point(self.process, p, name=name, fence=fence, **facts)
