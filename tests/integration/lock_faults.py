"""What the lock's fault tests share: events with their times, a lock seen from outside, a lease's end in Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from locks import Locker
from locks.clock import SYSTEM
from locks.events import Acquired, LockEvent, WakeSource
from tests.harness import PATIENCE_S, wait_until_async
from tests.integration.test_locker import Heard, Keys, locking
from tests.lock_process import LockProcess
from tests.proxy import Proxy

SOON_S = 15.0  # for what takes milliseconds, and must not take the 20 s of a heartbeat or the 60 s of a lease
SILENT_S = 0.5  # when a connection behind a proxy counts as silent
LONG_MS = 60_000  # as alive_ms it makes a heartbeat of 20 s, so that only a wake-up explains an early lease


class Timed(Heard):
    """A listener that also remembers when."""

    def __init__(self) -> None:
        super().__init__()
        self.times_s: list[float] = []

    def __call__(self, event: LockEvent) -> None:
        self.times_s.append(SYSTEM.monotonic_s())
        super().__call__(event)

    def last_at_s(self, kind: type[LockEvent]) -> float:
        """When the last one of this kind came."""
        return [at_s for at_s, event in zip(self.times_s, self.events, strict=True) if isinstance(event, kind)][-1]

    def wake_source(self) -> WakeSource:
        """What made the last one who got the lock look."""
        return self.all(Acquired)[-1].wake_source


def url_of(proxy: Proxy) -> str:
    """The Redis behind a proxy."""
    return f"redis://127.0.0.1:{proxy.port}/0"


@contextmanager
def keys_at(url: str, name: str) -> Iterator[Keys]:
    """The lock's keys on any server."""
    keys = Keys(url, name)
    try:
        yield keys
    finally:
        keys.client.close()


@contextmanager
def explained(keys: Keys, processes: Sequence[LockProcess]) -> Iterator[None]:
    """A failure within shows what each process has told, by time, and how the lock and its line stand."""
    try:
        yield
    except BaseException as error:
        told = sorted(
            (event["at_s"], number, event) for number, process in enumerate(processes) for event in list(process.events)
        )
        for at_s, number, event in told:
            error.add_note(f"{at_s:.4f} process {number}: {event}")
        for key in (keys.lock, keys.queue, keys.waiters, keys.grant):
            error.add_note(f"{key}: {keys.content(key)}")
        raise


async def stand(keys: Keys, count: int) -> None:
    """Waits until so many processes stand in line at the server."""

    async def enough() -> bool:
        return keys.queued() >= count

    await wait_until_async(enough, what=f"{count} in line for {keys.name}")


async def stand_and_listen(keys: Keys, count: int) -> None:
    """The same, and until all of them can be told; a process that comes back stands a moment before it listens, and is
    passed over by a release within that moment."""
    await stand(keys, count)

    async def heard() -> bool:
        channels = keys.client.zrange(keys.queue, 0, -1)
        return all(listeners > 0 for _, listeners in keys.client.pubsub_numsub(*channels))

    await wait_until_async(heard, what=f"{count} who listen for {keys.name}")


def head_channel(keys: Keys) -> str:
    """The channel of the first process in line."""
    (channel,) = keys.client.zrange(keys.queue, 0, 0)
    assert isinstance(channel, str)
    return channel


async def nobody_listens(keys: Keys, channel: str) -> None:
    """Waits until the server has found out that the process behind this channel is gone."""

    async def unheard() -> bool:
        return keys.client.pubsub_numsub(channel)[0][1] == 0

    await wait_until_async(unheard, what=f"nobody at {channel}")


def lease_end_s(keys: Keys) -> float | None:
    """When the lease ends in Redis, by our monotonic clock and at the earliest; None when it has ended."""
    asked_at_s = SYSTEM.monotonic_s()
    remaining_ms = int(keys.client.pttl(keys.lock))
    return asked_at_s + remaining_ms / 1000 if remaining_ms >= 0 else None


@asynccontextmanager
async def locking_through(proxy: Proxy, heard: Heard | None = None, alive_ms: int = LONG_MS) -> AsyncIterator[Locker]:
    """A locker whose connections lead through the proxy."""
    url = f"redis://127.0.0.1:{proxy.port}/0"
    async with locking(url, heard=heard, command_timeout_s=SILENT_S, alive_ms=alive_ms) as locker:
        # Commands that fail are asked again for as long as a slow machine needs.
        locker._lines.outage_wait_s = PATIENCE_S
        yield locker
