"""Processes that contend for locks and tell of it, with every wait and hold as it really was."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from locks import Locker
from locks.contention import Contention
from locks.events import Acquired, LockEvent, Released
from locks.publishing import Publisher
from locks.seen import Seen

LONG_S = 30.0


@dataclass(frozen=True, slots=True)
class Instance:
    """A process' part: its locker, its voice, and every wait and hold as they really were."""

    locker: Locker
    publisher: Publisher
    contention: Contention
    seen: Seen
    waited_s: list[float]
    held_s: list[float]


@asynccontextmanager
async def instance(url: str, instance_id: str, *, interval_s: float = 0.1) -> AsyncIterator[Instance]:
    """One that tells of itself ten times a second, or less often; its window is ten of these."""
    seen, waited_s, held_s = Seen(), list[float](), list[float]()

    def listen(event: LockEvent) -> None:
        seen.on_lock_event(event)
        if isinstance(event, Acquired):
            waited_s.append(event.waited_s)
        elif isinstance(event, Released):
            held_s.append(event.held_s)

    async with Locker.connect(url, instance_id=instance_id, listener=listen) as locker:
        publisher = Publisher(locker, seen, version="1", also_held=lambda: locker.lending.all, interval_s=interval_s)
        await publisher.start()
        yield Instance(locker, publisher, Contention(locker), seen, waited_s, held_s)
        await publisher.stop()
