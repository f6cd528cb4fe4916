"""`python -m tests.bench.pressure.hostile_caller`: one address that asks for more than its share, cheaply.

A process of its own, so that what it costs is told apart. It reads an Attack as one line of JSON, says `ready` when it
has tried every connection once, goes on until standard input ends, and prints how it was answered as JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import uvloop

HOST = "127.0.0.1"
AT_ONCE = 50  # connections that are being made
READY_WITHIN_S, TOLD_WITHIN_S = 60.0, 20.0
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
CODE = re.compile(rb'"code"[ \t]*:[ \t]*"([^"]{1,60})"')
LAST_CHUNK = b"\r\n0\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """Each connection sends the next of `requests` once it is answered and `pause_s` are over.

    A request without an end keeps its connection. One that is closed is opened again after `reopen_s`.
    """

    port: int
    source: str
    connections: int
    requests: list[str]
    pause_s: float
    reopen_s: float = 2.0


class _Connection(asyncio.Protocol):
    def __init__(self, caller: _Caller) -> None:
        self._caller = caller
        self._left: int | None = None  # bytes of the answer; None: not known, or none begun

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def _send(self) -> None:
        if not self._transport.is_closing():
            self._left, self._is_answered = None, False
            self._transport.write(next(self._caller.requests))

    def data_received(self, data: bytes) -> None:
        if not self._is_answered:
            self._is_answered = True
            code = CODE.search(data)
            self._caller.answers[f"{data[9:12].decode('latin-1')} {code[1].decode() if code else ''}".strip()] += 1
            head = data.find(b"\r\n\r\n") + 4
            length = LENGTH.search(data, 0, head)
            self._left = int(length[1]) + head if length else None
        if self._left is not None:
            self._left -= len(data)
        if self._left == 0 or (self._left is None and data.endswith(LAST_CHUNK)):
            self._caller.loop.call_later(self._caller.attack.pause_s, self._send)

    def connection_lost(self, error: Exception | None) -> None:
        self._caller.answers["closed"] += 1
        self._caller.open_again()


class _Caller:
    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self.answers: Counter[str] = Counter()
        self.requests: Iterator[bytes] = itertools.cycle([each.encode("latin-1") for each in attack.requests])
        self.loop = asyncio.get_running_loop()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._opening: set[asyncio.Task[None]] = set()

    async def begin(self) -> None:
        await asyncio.gather(*[self._open() for _ in range(self.attack.connections)])

    def open_again(self) -> None:
        self.loop.call_later(self.attack.reopen_s, self._open_in_background)

    def _open_in_background(self) -> None:
        task = self.loop.create_task(self._open())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self) -> None:
        async with self._turns:
            try:
                await self.loop.create_connection(
                    lambda: _Connection(self), HOST, self.attack.port, local_addr=(self.attack.source, 0)
                )
            except OSError:
                self.answers["refused"] += 1
                self.open_again()


class Hostile:
    """One at work in a process, seen from outside."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    async def ended(self) -> dict[str, int]:
        """How it was answered, by status and code; it is gone afterwards."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.stdout is not None
        told = await asyncio.wait_for(self._process.stdout.readline(), TOLD_WITHIN_S)
        answers: dict[str, int] = json.loads(told)
        return answers


@asynccontextmanager
async def at_work(attack: Attack) -> AsyncIterator[Hostile]:
    """It has tried every connection once. Gone with the block. Raises TimeoutError."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.pressure.hostile_caller"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asdict(attack)).encode() + b"\n")
        await asyncio.wait_for(process.stdout.readline(), READY_WITHIN_S)
        yield Hostile(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _attack(attack: Attack) -> None:
    caller = _Caller(attack)
    await caller.begin()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print(json.dumps(caller.answers), flush=True)


if __name__ == "__main__":
    uvloop.run(_attack(Attack(**json.loads(sys.stdin.readline()))))
