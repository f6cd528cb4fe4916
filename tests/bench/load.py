"""The load: a closed loop of keep-alive connections, each with one request in flight; one process, one loop."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass

from .connection import CHARGED, Connection, LoadError, connected

__all__ = ["Load", "LoadError", "LoadResult", "drive", "drive_all", "windowed"]

DRAIN_LIMIT_S = 20.0
LEAST_WINDOW = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What the clients saw. `answers` counts warm-up and drain too, to be held against the database."""

    measured_s: float
    latencies_s: list[float]
    answers: dict[str, int]
    process_cpu_s: float

    @property
    def measured(self) -> int:
        """Wanted answers within the window."""
        return len(self.latencies_s)


async def drive(
    *,
    host: str,
    port: int,
    requests: Iterable[bytes],
    connections: int,
    warm_up_s: float,
    measured_s: float,
    at_boundary: Callable[[], None],
    wanted: bytes = CHARGED,
) -> LoadResult:
    """Sends the requests, each once, and calls `at_boundary` as the measured window begins and ends.

    The window ends early when the requests run out. Raises LoadError when they do so before half of it is over, when a
    connection breaks, or when the last answers do not come.
    """
    load = Load(requests, {wanted})
    return await windowed(
        load,
        host=host,
        port=port,
        connections=connections,
        warm_up_s=warm_up_s,
        measured_s=measured_s,
        at_boundary=at_boundary,
    )


async def windowed(
    load: Load,
    *,
    host: str,
    port: int,
    connections: int,
    warm_up_s: float,
    measured_s: float,
    at_boundary: Callable[[], None],
) -> LoadResult:
    """See `drive`."""
    async with connected(load, host=host, port=port, connections=connections) as them:
        load.begin(them)
        await load.goes_on_for(warm_up_s)
        at_boundary()
        began_s, cpu_began_s = load.begin_window()
        await load.goes_on_for(measured_s)
        window_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_began_s
        latencies_s = load.end_window()
        at_boundary()
        await load.drained()
    if window_s < LEAST_WINDOW * measured_s:
        raise LoadError("the prepared appointments ran out: raise --ceiling")
    return _result(load, window_s, latencies_s, cpu_s)


async def drive_all(
    *, host: str, port: int, requests: Iterable[bytes], connections: int, wanted: Set[bytes]
) -> LoadResult:
    """Sends all the requests, however long it takes. Raises LoadError as `drive` does."""
    load = Load(requests, wanted)
    async with connected(load, host=host, port=port, connections=connections) as them:
        began_s, cpu_began_s = load.begin_window()
        load.begin(them)
        await load.goes_on_for(None)
        await load.drained()
    window_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_began_s
    return _result(load, window_s, load.latencies_s, cpu_s)


def _result(load: Load, window_s: float, latencies_s: list[float], cpu_s: float) -> LoadResult:
    answers = {answer.decode("latin-1"): count for answer, count in load.answers.items()}
    return LoadResult(measured_s=window_s, latencies_s=latencies_s, answers=answers, process_cpu_s=cpu_s)


class Load:
    """What the connections share: the owner of them all."""

    def __init__(self, requests: Iterable[bytes], wanted: Set[bytes]) -> None:
        self.answers: Counter[bytes] = Counter()
        self.latencies_s: list[float] = []
        self._requests = iter(requests)
        self._wanted = wanted
        self._sending = False
        self._in_flight = 0
        self._over: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    def begin(self, connections: list[Connection]) -> None:
        """All connections begin to send."""
        self._sending = True
        for connection in connections:
            self._send(connection)

    async def goes_on_for(self, seconds: float | None) -> None:
        """Returns sooner when the requests run out. Raises LoadError when a connection breaks."""
        await asyncio.wait([self._over], timeout=seconds)
        if self._over.done() and (why := self._over.result()) is not None:
            raise LoadError(f"{why}; answers so far: {dict(self.answers)}")

    def begin_window(self) -> tuple[float, float]:
        """Latencies count from now on; the time, and our CPU time."""
        self.latencies_s = []
        return time.perf_counter(), time.process_time()

    def end_window(self) -> list[float]:
        """Nothing more is sent; the latencies within the window."""
        self._sending = False
        measured, self.latencies_s = self.latencies_s, []
        return measured

    async def drained(self) -> None:
        """Every answer is there. Raises LoadError."""
        deadline_s = time.monotonic() + DRAIN_LIMIT_S
        while self._in_flight:
            if time.monotonic() > deadline_s:
                raise LoadError(f"{self._in_flight} requests without an answer after {DRAIN_LIMIT_S:g} s")
            await asyncio.sleep(0.005)
            await self.goes_on_for(0)

    def answered(self, connection: Connection, answer: bytes) -> None:
        """See connection.Owner."""
        self._in_flight -= 1
        self.answers[answer] += 1
        if answer in self._wanted:
            self.latencies_s.append(time.perf_counter() - connection.since_s)
        if self._sending:
            self._send(connection)

    def broken(self, why: str) -> None:
        """See connection.Owner."""
        self._sending = False
        if not self._over.done():
            self._over.set_result(why)

    def _send(self, connection: Connection) -> None:
        request = self.next_request(connection)
        if request is None:
            self._sending = False
            if not self._over.done():
                self._over.set_result(None)
            return
        self._in_flight += 1
        connection.since_s = time.perf_counter()
        connection.send(request)

    def next_request(self, connection: Connection) -> bytes | None:
        """What this connection sends now; None when nothing is left."""
        return next(self._requests, None)
