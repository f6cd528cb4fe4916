"""One fault of a world at a time, against plain clients and no instances: what it does, before a run relies on it."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psycopg2

from locks import LeaseLost, LockBusy, Locker, LockStoreDown
from tests.chaos.proxy import ChaosProxy
from tests.chaos.worlds.special_ground import SpecialGround
from tests.chaos.worlds.world import World
from tests.harness import PATIENCE_S, wait_until_async

LEASE_TTL_S = 0.6
PAUSE_S = 0.005
CONNECT_WAIT_S = 2


@dataclass(slots=True)
class PlainInstance:
    """What a fault may know of an instance that is none."""

    number: int
    pid: int
    database: ChaosProxy


@dataclass(slots=True)
class Rehearsal:
    """What faults may lay hands on."""

    world: World
    ground: Any
    database: ChaosProxy  # what leads to Postgres, whichever it is
    lease_ttl_s: float = LEASE_TTL_S
    instances: dict[int, PlainInstance] = field(default_factory=dict)
    rng: Random = field(default_factory=lambda: Random(1))

    def hot_appointments(self) -> list[int]:
        """The one whose lock Leases takes."""
        return [1]

    @property
    def database_url(self) -> str:
        """Postgres by the proxy."""
        return f"postgresql://chargeonce@127.0.0.1:{self.database.port}/chargeonce"

    async def fire(self, kind: str, **given: Any) -> float:
        """One fault, drawn but for what is given, from its beginning until it is healed; how many seconds that took."""
        (found,) = [each for each in self.world.kinds if each.name == kind]
        fault = {**found.draw(self.rng, self.lease_ttl_s), **given}
        begun_at_s = time.monotonic()
        await found.run(self, fault, self.instances[1])
        return time.monotonic() - begun_at_s


OpenWorld = Callable[..., AbstractAsyncContextManager[Rehearsal]]  # by name, and with settings of Postgres


@asynccontextmanager
async def rehearsing(world: World, folder: Path, **postgres_settings: str) -> AsyncIterator[Rehearsal]:
    """The world, open, with one instance's proxy to its Postgres."""
    with world.open(folder, postgres_settings=postgres_settings) as ground:
        assert isinstance(ground, SpecialGround)
        proxy = await ChaosProxy.start("127.0.0.1", ground.postgres.port)
        try:
            yield Rehearsal(world, ground, proxy, instances={1: PlainInstance(1, 0, proxy)})
        finally:
            await proxy.close()


class Ledger:
    """Numbers that several sessions write by the proxy, as fast as they can, each in a transaction of its own."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self.acknowledged: set[int] = set()
        self._rehearsal = rehearsal
        self._numbers = itertools.count(1)
        self._over = threading.Event()
        with self._looking() as cursor:
            # The table itself is to stay, whatever the server's settings are.
            cursor.execute("SET synchronous_commit = on")
            cursor.execute("DROP TABLE IF EXISTS ledger; CREATE TABLE ledger (number bigint PRIMARY KEY)")

    @asynccontextmanager
    async def written(self, *, sessions: int = 3) -> AsyncIterator[None]:
        """By so many sessions, which come again after each error."""
        threads = [threading.Thread(target=self._write, daemon=True) for _ in range(sessions)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                await asyncio.to_thread(thread.join)

    async def more(self, count: int) -> None:
        """Returns once so many more are acknowledged."""
        wanted = len(self.acknowledged) + count

        async def enough() -> bool:
            return len(self.acknowledged) >= wanted

        await wait_until_async(enough, what=f"{count} more acknowledged writes")

    def lost(self) -> set[int]:
        """Those that were acknowledged and are not there. Call it after `written`."""
        with self._looking() as cursor:
            cursor.execute("SELECT number FROM ledger")
            return self.acknowledged - {number for (number,) in cursor.fetchall()}

    @contextmanager
    def _looking(self) -> Iterator[Any]:
        """Past the proxy, which stands still while its loop's thread waits for an answer."""
        with closing(psycopg2.connect(self._rehearsal.ground.database_url)) as session, session:
            yield session.cursor()

    def _write(self) -> None:
        while not self._over.is_set():
            try:
                with closing(psycopg2.connect(self._rehearsal.database_url, connect_timeout=CONNECT_WAIT_S)) as session:
                    session.autocommit = True
                    with session.cursor() as cursor:
                        self._write_in(cursor)
            except psycopg2.Error:
                time.sleep(PAUSE_S)

    def _write_in(self, cursor: Any) -> None:
        while not self._over.is_set():
            number = next(self._numbers)
            cursor.execute("INSERT INTO ledger VALUES (%s)", (number,))
            self.acknowledged.add(number)


class Leases:
    """Leases of one lock that two lockers take in turn, for as long as it is open."""

    NAME = "appointment:1"

    def __init__(self, url: str) -> None:
        self.tokens: list[int] = []  # in the order in which they were had
        self.refusals: list[str] = []
        self._url = url

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """By two lockers, which come again after each refusal."""
        async with locker_at(self._url) as one, locker_at(self._url) as other:
            tasks = [asyncio.create_task(self._take(each)) for each in (one, other)]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def more(self, count: int) -> None:
        """Returns once so many more were had."""
        wanted = len(self.tokens) + count

        async def enough() -> bool:
            return len(self.tokens) >= wanted

        await wait_until_async(enough, what=f"{count} more leases after {self.refusals[-3:]}")

    async def _take(self, locker: Locker) -> None:
        while True:
            try:
                await self._take_one(locker)
            except (LockStoreDown, LockBusy, LeaseLost) as refusal:
                self.refusals.append(repr(refusal))
                await asyncio.sleep(PAUSE_S)

    async def _take_one(self, locker: Locker) -> None:
        lease = await locker.acquire(self.NAME, lease_ttl_s=LEASE_TTL_S, wait_s=PATIENCE_S)
        self.tokens.append(lease.fencing_token)
        await asyncio.sleep(PAUSE_S)
        await lease.release()


class Holds(Leases):
    """The same by hold(), whose body begins as soon as the lock is handed over."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.inside = 0
        self.most_inside = 0

    async def _take_one(self, locker: Locker) -> None:
        async with locker.hold(self.NAME, lease_ttl_s=LEASE_TTL_S, wait_s=PATIENCE_S) as lease:
            self.tokens.append(lease.fencing_token)
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
            try:
                await asyncio.sleep(PAUSE_S)
            finally:
                self.inside -= 1


@asynccontextmanager
async def locker_at(url: str) -> AsyncIterator[Locker]:
    """A locker, connected."""
    async with Locker.connect(url, instance_id="rehearsal") as locker:
        yield locker
