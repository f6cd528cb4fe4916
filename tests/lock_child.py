"""A process that holds and waits for locks as its standard input says; the other side of tests/lock_process.py.

`python -m tests.lock_child URL INSTANCE_ID` reads one JSON command a line and writes one JSON event a line:
{"event": "acquired", "at_s": …, "id": 1, "name": …, "asked_at_s": …, "fencing_token": …}. It ends, releasing nothing,
when its standard input does. What the locker emits to its listener comes as {"event": "emitted", "kind": "Waiting",
"facts": {"name": …}}.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

from locks import Lease, LeaseLost, Locker, LockStoreDown

OUTAGE_WAIT_S = 60.0  # on a busy machine a server that is restarted is away for longer than callers wait by default
Tell = Callable[..., None]


async def main(url: str, instance_id: str) -> None:
    """Connects, says 'up', and carries out commands until standard input ends."""
    tell = _teller()

    def forward(event: Any) -> None:
        tell("emitted", kind=type(event).__name__, facts=_facts(event))

    async with Locker(url, instance_id=instance_id, outage_wait_s=OUTAGE_WAIT_S, listener=forward) as locker:
        tell("up", pid=os.getpid())
        await Attempts(locker).run()


def _facts(event: Any) -> dict[str, Any]:
    facts: dict[str, Any] = event._asdict() if hasattr(event, "_asdict") else dataclasses.asdict(event)
    return facts


class Attempts:
    """Carries out commands; each attempt is a task."""

    def __init__(self, locker: Locker) -> None:
        self._locker = locker
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._released: dict[int, asyncio.Event] = {}

    async def run(self) -> None:
        """Until standard input ends."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            self._carry_out(json.loads(line))
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _carry_out(self, command: dict[str, Any]) -> None:
        handle = command.pop("id")
        match command.pop("command"):
            case "release":
                self._released[handle].set()
            case "cancel":
                self._tasks[handle].cancel()
            case kind:
                tell = _teller(id=handle, name=command["name"], asked_at_s=time.monotonic())
                self._released[handle] = asyncio.Event()
                attempt = self._acquire if kind == "acquire" else self._hold
                task = asyncio.create_task(_tell_how_it_ends(attempt(self._released[handle], tell, **command), tell))
                # Not within the task: one that is cancelled at once never begins.
                task.add_done_callback(lambda task: tell("cancelled") if task.cancelled() else None)
                self._tasks[handle] = task

    async def _acquire(self, released: asyncio.Event, tell: Tell, *, name: str, **how: Any) -> None:
        lease = await self._locker.acquire(name, **how)
        tell("acquired", fencing_token=lease.fencing_token)
        if await _lost_first(lease, released):
            tell("lost", reason=str(lease.loss_reason))
            return
        try:
            tell("released", still_ours=await lease.release())
        except LockStoreDown as error:
            tell("released", still_ours=None, error=str(error))

    async def _hold(self, released: asyncio.Event, tell: Tell, *, name: str, **how: Any) -> None:
        async with self._locker.hold(name, **how) as lease:
            tell("acquired", fencing_token=lease.fencing_token)
            await released.wait()
        tell("released", still_ours=lease.loss_reason is None)


async def _tell_how_it_ends(attempt: Coroutine[None, None, None], tell: Tell) -> None:
    try:
        await attempt
    except LeaseLost as error:
        tell("lost", reason=str(error.reason))
    except Exception as error:
        tell("refused", error=type(error).__name__, message=str(error))


async def _lost_first(lease: Lease, released: asyncio.Event) -> bool:
    """Waits for the loss or the wish to release, and tells whether it was the loss."""
    waits = [asyncio.create_task(event.wait()) for event in (lease.lost, released)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return lease.lost.is_set()


def _teller(**always: object) -> Tell:
    def tell(event: str, **facts: object) -> None:
        line = json.dumps({"event": event, "at_s": time.monotonic(), **always, **facts})
        os.write(1, line.encode() + b"\n")  # one write, so that a kill leaves whole lines

    return tell


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
