"""A simulated process: an event loop that runs when the world says so, by a clock of its own."""

from __future__ import annotations

import asyncio
from asyncio.events import _set_running_loop  # what whoever writes an event loop is to use
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Protocol

from locks.clock import Clock
from tests.sim.world import World

if TYPE_CHECKING:
    from tests.sim.network import Connection

READING_S = 3e-7  # what a look at the clock takes
CALLBACK_S = 1e-5  # what a callback takes at the most
TIMEOUT_S = 1e-3  # epoll's timeout is in whole milliseconds, so a timer is up to one late
NEVER_S = float("inf")


class Listener(Protocol):
    """Who is told of what a process cannot tell itself."""

    def stood_still(self, process: Process, from_s: float, to_s: float, *, suspended: bool = False) -> None:
        """It did nothing at all, in the middle of something; `suspended`: nor did its timers."""

    def unhandled(self, process: Process, what: str) -> None:
        """Its event loop was told of an exception that nobody takes."""


class Handle:
    """What a loop is to call: as asyncio.Handle and asyncio.TimerHandle."""

    __slots__ = ("_arguments", "_callback", "_context", "_when_s")

    def __init__(
        self,
        callback: Callable[..., object] | None,
        arguments: tuple[Any, ...],
        context: Context | None,
        when_s: float = 0.0,
    ) -> None:
        self._callback = callback
        self._arguments = arguments
        self._context = context
        self._when_s = when_s

    def cancel(self) -> None:
        """It is not to be called any more."""
        self._callback = self._context = None
        self._arguments = ()

    def cancelled(self) -> bool:
        """Whether it was called off."""
        return self._callback is None

    def when(self) -> float:
        """When a timer is due, in its loop's time."""
        return self._when_s

    def run(self) -> None:
        """Calls it, unless it was called off."""
        callback = self._callback
        if callback is None:
            return
        if self._context is None:
            callback(*self._arguments)
        else:
            self._context.run(callback, *self._arguments)


class NumberedTask(asyncio.Task[Any]):
    """A task whose hash is its number and not its address, so that sets of tasks have one order in all runs."""

    def __init__(self, work: Coroutine[Any, Any, Any], *, number: int, **options: Any) -> None:
        self._hash = number
        super().__init__(work, **options)

    def __hash__(self) -> int:
        return self._hash


class Process(asyncio.AbstractEventLoop):
    """One life of one process. Seconds are true ones, but where they are said to be the process' own.

    `name`: p0, p1 …; `life`: 1 for the first process of this name. `is_uvloop`: its ticks are uvloop's, and not
    asyncio's. `pauses`: how likely it is to stand still at each look at its clock, and for how long at the most.
    """

    def __init__(
        self,
        world: World,
        listener: Listener,
        *,
        name: str,
        life: int,
        rate: float = 1.0,
        is_uvloop: bool = False,
        pauses: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.world = world
        self.name, self.life = name, life
        self.is_dead = False
        self.died_at_s = NEVER_S
        self.connections: dict[Connection, None] = {}
        self.cut_off_until_s = 0.0  # no new connection is made until then, and nobody says so
        self.now_s = world.now_s  # the time within a tick
        self.history = 0  # a hash of what it has read, which timers it has run, and in how many ticks, in order
        self._listener = listener
        self._random = world.random(f"{name}.{life}")
        self._rate, self._began_at_s = rate, self._random.uniform(10.0, 100_000.0)
        self._suspended_s = 0.0
        self._is_uvloop = is_uvloop
        self._pause_chance, self._longest_pause_s = pauses
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._timer_number = 0
        self._readable: dict[Connection, None] = {}
        self._is_running = False
        self._tick_at_s: float | None = None
        self._tick_number = 0
        self._frozen_until_s = 0.0
        self._tasks: list[NumberedTask] = []
        self._task_number = 0

    def clock(self) -> Clock:
        """For its Locker."""
        return Clock(
            monotonic_s=self._read_clock,
            timers_s=self.time,
            wall_s=lambda: 1_800_000_000.0 + self.now_s,
            random_bytes=self._random.randbytes,
            uniform=self._random.uniform,
            pid=lambda: 1000 + self.life,
        )

    def own_s(self, true_s: float) -> float:
        """What its monotonic clock shows then."""
        return true_s * self._rate + self._began_at_s

    def true_s(self, own_s: float) -> float:
        """When its monotonic clock shows that."""
        return (own_s - self._began_at_s) / self._rate

    def pause_no_more(self) -> None:
        """From now on it stands still only where a fault says so."""
        self._pause_chance = 0.0

    # What befalls it.

    @property
    def stands_still(self) -> bool:
        """Whether it does nothing just now."""
        return self.world.now_s < max(self._frozen_until_s, self.now_s)

    def freeze(self, for_s: float, *, suspended: bool = False) -> None:
        """It does nothing for a while (SIGSTOP), between two ticks or before the next."""
        from_s = max(self.world.now_s, self.now_s)
        self._frozen_until_s = max(self._frozen_until_s, from_s + for_s)
        self._listener.stood_still(self, from_s, from_s + for_s, suspended=suspended)

    def suspend(self, for_s: float) -> None:
        """As freeze, and the clock by which timers go stands still as well: the machine sleeps."""
        self._suspended_s += for_s * self._rate
        self.freeze(for_s, suspended=True)

    def block(self, for_s: float) -> None:
        """What runs now keeps its loop for so long."""
        self._listener.stood_still(self, self.now_s, self.now_s + for_s)
        self.now_s += for_s

    def die(self, *, tells: bool) -> None:
        """It is killed, and its kernel tells of it by closing its connections; or its machine has no power any more."""
        self.is_dead = True
        self.died_at_s = self.world.now_s  # what it did in a tick that was to last longer was never done
        for connection in list(self.connections):
            if tells:
                connection.close_from_here()
            else:
                connection.cut()
        self._ready.clear()
        self._timers.clear()
        self._readable.clear()
        self._end_tasks()

    # The event loop, as asyncio and the locks use it.

    def time(self) -> float:
        return self.own_s(self.now_s) - self._suspended_s

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        handle = Handle(callback, args, context)
        if not self.is_dead:
            self._ready.append(handle)
            if not self._is_running:
                self.wake(self.world.now_s)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        handle = Handle(callback, args, context, when)
        if not self.is_dead:
            self._timer_number += 1
            heappush(self._timers, (when, self._timer_number, handle))
            if not self._is_running:
                self.wake(max(self.world.now_s, self._due_s(when)))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None, **_: Any) -> Any:
        if self.is_dead:  # closing a task of a dead process runs what it does at its end
            coro.close()
            return self.create_future()
        self._task_number += 1
        task = NumberedTask(coro, number=self._task_number, loop=self, name=name or f"t{self._task_number}")
        self._tasks.append(task)
        if len(self._tasks) > 400:
            self._tasks = [each for each in self._tasks if not each.done()]
        return task

    async def create_connection(  # type: ignore[override]
        self, factory: Any, host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        """By way of `dial`, which the simulation sets."""
        dialed = self.create_future()
        self.dial(self, dialed)
        connection: Connection = await dialed
        connection.begin(factory())
        return connection, connection.protocol

    dial: Callable[[Process, asyncio.Future[Any]], None]

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._is_running

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.is_dead:
            self._listener.unhandled(self, f"{context.get('message')}: {context.get('exception')!r}")

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    # How it runs.

    def start(self, work: Coroutine[Any, Any, Any]) -> NumberedTask:
        """Its main program."""
        task: NumberedTask = self.create_task(work)
        task.add_done_callback(self._look_at_end)
        return task

    def has_arrived(self, connection: Connection) -> None:
        """There is something to read."""
        self._readable[connection] = None
        self.wake(self.world.now_s)

    def saw(self, *what: int) -> None:
        """Something that it has done because of something else."""
        self.history = hash((self.history, what))

    @property
    def unread(self) -> tuple[tuple[int, int], ...]:
        """What has arrived that it has not read: of each connection how much, in their order."""
        return tuple((connection.number, connection.unread) for connection in self._readable)

    def will_run(self, number: int) -> bool:
        """Whether its tick of this number is the one that it waits for."""
        return number == self._tick_number and not self.is_dead

    def wake(self, at_s: float) -> None:
        """It has something to do then."""
        if self.is_dead or (self._tick_at_s is not None and self._tick_at_s <= at_s):
            return
        self._tick_at_s = at_s
        self._tick_number += 1
        self.world.at(at_s, self, self.tick, self._tick_number)

    def _look_at_end(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.call_exception_handler({"message": "its program ended", "exception": task.exception()})

    def tick(self, number: int) -> None:
        """What is ready is called, unless another tick has taken the place of this one."""
        if self.is_dead or number != self._tick_number:
            return
        self._tick_at_s = None
        busy_until_s = max(self._frozen_until_s, self.now_s)
        if self.world.now_s < busy_until_s:
            self.wake(busy_until_s)
            return
        self.now_s = self.world.now_s + self._random.uniform(1e-6, 2e-5)
        self._is_running = True
        _set_running_loop(self)
        try:
            if self._is_uvloop:
                self._run_as_uvloop()
            else:
                self._run_as_asyncio()
        finally:
            _set_running_loop(None)
            self._is_running = False
        self._wake_again()

    def _run_as_asyncio(self) -> None:
        """What was called soon in the last tick, what has arrived, timers: all in one queue."""
        ready = self._ready
        for connection in self._arrived():
            ready.append(Handle(connection.deliver, (), None))
        ready.extend(self._due())
        self._run_ready()

    def _run_as_uvloop(self) -> None:
        """libuv calls what has arrived, and timers, where it finds them; then comes what was called soon meanwhile."""
        for connection in self._arrived():
            self._run(Handle(connection.deliver, (), None))
        for handle in self._due():
            self._run(handle)
        self._run_ready()

    def _run_ready(self) -> None:
        if self._ready:
            self.saw(len(self._ready))
        for _ in range(len(self._ready)):
            if self.is_dead:
                return
            self._run(self._ready.popleft())

    def _run(self, handle: Handle) -> None:
        if self.is_dead or handle.cancelled():
            return
        self.now_s += self._random.random() * CALLBACK_S
        try:
            handle.run()
        except Exception as error:
            self.call_exception_handler({"message": "in a callback", "exception": error})

    def _arrived(self) -> list[Connection]:
        found = list(self._readable)
        self._readable.clear()
        if len(found) > 1:
            self._random.shuffle(found)  # epoll promises no order
        return found

    def _due(self) -> list[Handle]:
        found, end = [], self.time() + 1e-9
        while self._timers and self._timers[0][0] < end:
            _, number, handle = heappop(self._timers)
            if not handle.cancelled():
                self.saw(-number)
                found.append(handle)
        return found

    def _wake_again(self) -> None:
        if self._ready or self._readable:
            self.wake(self.now_s)
            return
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heappop(timers)
        if timers:
            self.wake(max(self.now_s, self._due_s(timers[0][0])) + self._random.random() * TIMEOUT_S)

    def _due_s(self, own_s: float) -> float:
        return self.true_s(own_s + self._suspended_s)

    def _read_clock(self) -> float:
        """Its monotonic clock; it may stand still just before it looks, or just after."""
        self.now_s += READING_S
        if not self._pause_chance:
            return self.own_s(self.now_s)
        self._perhaps_pause()
        shown_s = self.own_s(self.now_s)
        self._perhaps_pause()
        return shown_s

    def _perhaps_pause(self) -> None:
        if self._random.random() >= self._pause_chance:
            return
        for_s = self._random.uniform(0.0, self._longest_pause_s if self._random.random() < 0.5 else 0.03)
        self._listener.stood_still(self, self.now_s, self.now_s + for_s)
        self.now_s += for_s

    def _end_tasks(self) -> None:
        """What a killed process does not do, its `finally` blocks do here: now, deaf and dumb, and not at some garbage
        collection."""
        tasks, self._tasks = self._tasks, []
        _set_running_loop(None)
        _set_running_loop(self)
        try:
            for task in tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    _closed(task.get_coro())
        finally:
            _set_running_loop(None)


def _closed(work: Any) -> None:
    try:
        work.close()
    except BaseException:  # whatever it raises, nobody hears of it
        return
