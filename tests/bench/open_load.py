"""The open loop: requests are sent when they are due, not when an answer has come, and their latency counts from then.

A server that stalls is thus charged for everything that was due meanwhile: there is no coordinated omission.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from .alarm import alarm
from .connection import CHARGED, Connection, LoadError, connected

LEAD_S = 0.05
DRAIN_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenResult:
    """What the clients saw of the requests that were due in the measured window.

    `sent_late_s` is how late each was sent: the client's own share, and that of waiting for a free connection.
    """

    measured_s: float
    latencies_s: list[float]
    sent_late_s: list[float]
    answers: dict[str, int]
    process_cpu_s: float


def poisson_arrivals_s(*, rate_per_s: float, duration_s: float, seed: int) -> list[float]:
    """When requests are due, from 0 to `duration_s`: as independent callers come. The same seed, the same times."""
    draw = random.Random(seed)
    due_s: list[float] = []
    at_s = draw.expovariate(rate_per_s)
    while at_s < duration_s:
        due_s.append(at_s)
        at_s += draw.expovariate(rate_per_s)
    return due_s


async def drive_open(
    *,
    host: str,
    port: int,
    arrivals_s: Sequence[float],
    requests: Iterable[bytes],
    connections: int,
    warm_up_s: float,
    at_boundary: Callable[[], None],
    wanted: bytes = CHARGED,
) -> OpenResult:
    """Sends one request at each of `arrivals_s`; the measured window begins after `warm_up_s` and ends with the last.

    Calls `at_boundary` at both. Raises LoadError when a connection breaks or the last answers do not come.
    """
    load = _OpenLoad(arrivals_s, requests, measured_from_s=warm_up_s, wanted=wanted)
    async with connected(load, host=host, port=port, connections=connections) as them:
        with load.begun(them):
            await load.goes_on_until(warm_up_s)
            at_boundary()
            began_s, cpu_began_s = time.perf_counter(), time.process_time()
            await load.goes_on_until(arrivals_s[-1])
            window_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_began_s
            at_boundary()
            await load.drained()
    return OpenResult(
        measured_s=window_s,
        latencies_s=load.latencies_s,
        sent_late_s=load.sent_late_s,
        answers={answer.decode("latin-1"): count for answer, count in load.answers.items()},
        process_cpu_s=cpu_s,
    )


class _OpenLoad:
    """What the connections share: the owner of them all. Times are offsets from the start."""

    def __init__(
        self, arrivals_s: Sequence[float], requests: Iterable[bytes], *, measured_from_s: float, wanted: bytes
    ) -> None:
        self.answers: Counter[bytes] = Counter()
        self.latencies_s: list[float] = []
        self.sent_late_s: list[float] = []
        self._arrivals_s = arrivals_s
        self._requests = iter(requests)
        self._measured_from_s = measured_from_s
        self._wanted = wanted
        self._next = 0
        self._idle: list[Connection] = []
        self._waiting: deque[float] = deque()
        self._broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @contextmanager
    def begun(self, connections: list[Connection]) -> Iterator[None]:
        """Sends within the block, and nothing after it."""
        self._connections = len(connections)
        self._idle = connections[::-1]
        self._alarm = alarm(self._send_what_is_due)
        self._began_s = time.perf_counter() + LEAD_S
        self._alarm.set(self._began_s + self._arrivals_s[0])
        try:
            yield
        finally:
            self._alarm.close()

    async def goes_on_until(self, offset_s: float) -> None:
        """Raises LoadError when a connection breaks."""
        await asyncio.wait([self._broken], timeout=max(0.0, self._began_s + offset_s - time.perf_counter()))
        if self._broken.done():
            raise LoadError(f"{self._broken.result()}; answers so far: {dict(self.answers)}")

    async def drained(self) -> None:
        deadline_s = self._arrivals_s[-1] + DRAIN_LIMIT_S
        while (offset_s := time.perf_counter() - self._began_s) < deadline_s:
            if self._next == len(self._arrivals_s) and len(self._idle) == self._connections:
                return
            await self.goes_on_until(offset_s + 0.005)
        raise LoadError(f"{self._connections - len(self._idle)} requests without an answer after {DRAIN_LIMIT_S:g} s")

    def answered(self, connection: Connection, answer: bytes) -> None:
        self.answers[answer] += 1
        if answer == self._wanted and connection.since_s >= self._measured_from_s:
            self.latencies_s.append(time.perf_counter() - self._began_s - connection.since_s)
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)

    def broken(self, why: str) -> None:
        if not self._broken.done():
            self._broken.set_result(why)

    def _send_what_is_due(self) -> None:
        now_s = time.perf_counter() - self._began_s
        while self._next < len(self._arrivals_s):
            due_s = self._arrivals_s[self._next]
            if due_s > now_s:
                self._alarm.set(self._began_s + due_s)
                return
            self._next += 1
            if self._idle:
                self._send(self._idle.pop(), due_s)
            else:
                self._waiting.append(due_s)

    def _send(self, connection: Connection, due_s: float) -> None:
        request = next(self._requests, None)
        if request is None:
            self.broken("there are fewer requests than arrivals")
            return
        connection.since_s = due_s
        connection.send(request)
        if due_s >= self._measured_from_s:
            self.sent_late_s.append(time.perf_counter() - self._began_s - due_s)
