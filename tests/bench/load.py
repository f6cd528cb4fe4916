"""The load: a closed loop of keep-alive connections, cheap enough to share two cores with what it measures.

Each connection has one request in flight. The bytes of every request are made beforehand; of an answer only the status,
the length and the outcome are read. Everything runs in one process on one loop.
"""

from __future__ import annotations

import asyncio
import gc
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

HEAD_END = b"\r\n\r\n"
CREATED = b"201"
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
CHARGED = re.compile(rb'"outcome"[ \t\r\n]*:[ \t\r\n]*"charged"')
WHY_NOT = re.compile(rb'"(?:code|outcome)"[ \t\r\n]*:[ \t\r\n]*"([^"]{1,60})"')
DRAIN_LIMIT_S = 20.0


class LoadError(Exception):
    """The load could not be kept up for the whole window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What the clients saw. `charged_in_all` counts warm-up and drain too, to be held against the database."""

    measured_s: float
    charged: int
    charged_in_all: int
    failures: dict[str, int]
    latencies_s: list[float]
    process_cpu_s: float


async def drive(
    *,
    host: str,
    port: int,
    requests: Sequence[bytes],
    connections: int,
    warm_up_s: float,
    measured_s: float,
    at_boundary: Callable[[], None],
) -> LoadResult:
    """Sends the requests, each once, and calls `at_boundary` as the measured window begins and ends.

    Raises LoadError when a connection breaks, the requests run out, or the last answers do not come.
    """
    load = _Load(requests)
    loop = asyncio.get_running_loop()
    clients = [(await loop.create_connection(lambda: _Client(load), host, port))[1] for _ in range(connections)]
    # A collection in the middle would stop every client at once; there is nothing cyclic to collect.
    gc.collect()
    gc.disable()
    try:
        load.sending = True
        for client in clients:
            client.send()
        await load.unbroken_for(warm_up_s)
        at_boundary()
        began, cpu_began = load.begin_window()
        await load.unbroken_for(measured_s)
        window_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
        latencies_s = load.end_window()
        at_boundary()
        await load.drained()
    finally:
        gc.enable()
        load.closing = True
        for client in clients:
            client.close()
    return LoadResult(
        measured_s=window_s,
        charged=len(latencies_s),
        charged_in_all=load.charged_in_all,
        failures=dict(load.failures),
        latencies_s=latencies_s,
        process_cpu_s=cpu_s,
    )


class _Load:
    """What the clients share."""

    def __init__(self, requests: Sequence[bytes]) -> None:
        self.requests: Iterator[bytes] = iter(requests)
        self.sending = False
        self.closing = False
        self.in_flight = 0
        self.charged_in_all = 0
        self.latencies_s: list[float] = []
        self.failures: Counter[str] = Counter()
        self.broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def unbroken_for(self, seconds: float) -> None:
        done, _ = await asyncio.wait([self.broken], timeout=seconds)
        if done:
            raise LoadError(f"{self.broken.result()}; answers that were no charge so far: {dict(self.failures)}")

    def begin_window(self) -> tuple[float, float]:
        self.charged_in_all += len(self.latencies_s)
        self.latencies_s = []
        return time.perf_counter(), time.process_time()

    def end_window(self) -> list[float]:
        self.sending = False
        measured, self.latencies_s = self.latencies_s, []
        self.charged_in_all += len(measured)
        return measured

    async def drained(self) -> None:
        deadline = time.monotonic() + DRAIN_LIMIT_S
        while self.in_flight:
            if time.monotonic() > deadline:
                raise LoadError(f"{self.in_flight} requests without an answer after {DRAIN_LIMIT_S:g} s")
            await self.unbroken_for(0.01)
        self.charged_in_all += len(self.latencies_s)

    def break_off(self, why: str) -> None:
        self.sending = False
        if not self.broken.done():
            self.broken.set_result(why)


class _Client(asyncio.Protocol):
    """One connection: send, read the answer, send the next."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._buffer = b""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def send(self) -> None:
        request = next(self._load.requests, None)
        if request is None:
            self._load.break_off("the prepared appointments ran out: raise --ceiling")
            return
        self._load.in_flight += 1
        self._sent_at = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        head_end = data.find(HEAD_END)
        if head_end < 0:
            self._buffer = data
            return
        length = LENGTH.search(data, 0, head_end)
        if length is None:
            self._load.break_off(f"an answer without Content-Length: {data[:200]!r}")
            return
        if len(data) < head_end + 4 + int(length[1]):
            self._buffer = data
            return
        self._buffer = b""
        load = self._load
        load.in_flight -= 1
        if data[9:12] == CREATED and CHARGED.search(data, head_end):
            load.latencies_s.append(time.perf_counter() - self._sent_at)
        else:
            load.failures[_why_not(data)] += 1
        if load.sending:
            self.send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._load.closing:
            self._load.break_off(f"the server closed a connection ({error!r})")

    def close(self) -> None:
        self._transport.close()


def _why_not(answer: bytes) -> str:
    found = WHY_NOT.search(answer)
    return f"{answer[9:12].decode('latin-1')} {found[1].decode('latin-1') if found else '(no code)'}"
