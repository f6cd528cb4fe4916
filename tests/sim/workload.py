"""Callers at random: everything that a Locker can, for as long as the run goes on."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from locks import (
    Dismissed,
    HeldByCaller,
    HolderChanged,
    LeaseLost,
    LockBusy,
    LockStoreDown,
    TooManyLeases,
    TooManyWaiters,
)
from locks.lease import Lease
from locks.lending import LeaseOver
from tests.sim.callers import Holding, HoldingMany, acquired, forces
from tests.sim.clients import Client
from tests.sim.shelf import Shelf

if TYPE_CHECKING:
    from tests.sim.simulation import Place, Simulation

WAITS_S = (None, None, None, 0.05, 0.5, 2.0, 8.0)
REFUSALS = (
    LockBusy,
    LockStoreDown,
    Dismissed,
    LeaseLost,
    LeaseOver,
    HolderChanged,
    HeldByCaller,
    TooManyLeases,
    TooManyWaiters,
)
AFTER_OUTAGE_S = 0.05
BLOCKS_S = (0.001, 0.02, 0.4)
LONGEST_LENT_WAIT_S = 2.0


class RandomWork:
    """A plan of callers that draw what they do next."""

    def __init__(self, *, lasts_s: float, lease_s: float) -> None:
        self.lasts_s = lasts_s
        self.lease_s = lease_s
        self.texts: Shelf[str] = Shelf()  # exported leases, for whoever comes first
        self.clients: Shelf[Client] = Shelf()

    def work(self, simulation: Simulation, place: Place) -> Sequence[Coroutine[Any, Any, None]]:
        """Some callers."""
        return [Caller(self, simulation, place, number).run() for number in range(simulation.circumstances.workers)]


class Caller:
    """One caller of a process: one thing after another."""

    def __init__(self, plan: RandomWork, simulation: Simulation, place: Place, number: int) -> None:
        self._plan, self._simulation, self._place = plan, simulation, place
        self._locker = place.locker
        self._circumstances = simulation.circumstances
        self._random = simulation.world.random(f"{place.process.name}.{place.process.life} caller {number}")
        self._operations: list[tuple[float, Callable[[str], Awaitable[None]]]] = [
            (0.46, self._hold),
            (0.13, self._acquire),
            (0.07, self._try),
            (0.12, self._impatient),
            (0.04, self._hold_many),
            (0.03, self._adopt),
            (0.05, self._lend),
            (0.04, self._use_loan),
            (0.02, self._force),
            (0.04, self._inspect),
        ]

    async def run(self) -> None:
        """Until the run stops."""
        numbers = self._random
        shares = [share for share, _ in self._operations]
        while not self._simulation.is_stopping:
            await asyncio.sleep(numbers.expovariate(1 / self._circumstances.think_s))
            if self._simulation.is_stopping:
                return
            name = self._a_name()
            [(_, operation)] = numbers.choices(self._operations, shares)
            try:
                await operation(name)
            except REFUSALS as error:
                await asyncio.sleep(AFTER_OUTAGE_S if isinstance(error, LockStoreDown) else 0.005)
            except asyncio.CancelledError as error:
                if self._place.is_closing or self._place.process.is_dead:
                    raise
                stray(self._simulation, self._place, error)

    # What it does.

    async def _hold(self, name: str) -> None:
        max_hold_s = None if self._random.random() < 0.9 else 2 * self._plan.lease_s
        lease_s, wait_s = self._a_lease_s(), self._random.choice(WAITS_S)
        async with Holding(self._place, name, lease_ttl_s=lease_s, wait_s=wait_s, max_hold_s=max_hold_s) as lease:
            await self._body()
            if self._random.random() < 0.03:
                lease.finish()

    async def _acquire(self, name: str) -> None:
        keeps, lease_s, wait_s = self._random.random() < 0.5, self._a_lease_s(), self._random.choice(WAITS_S)
        lease = await acquired(self._place, name, lease_ttl_s=lease_s, wait_s=wait_s, keep_extended=keeps)
        await self._use(lease)

    async def _try(self, name: str) -> None:
        await self._use(await acquired(self._place, name, lease_ttl_s=self._a_lease_s(), wait_s=0))

    async def _impatient(self, name: str) -> None:
        """Is cancelled in the middle: after a time, or after so many ticks."""
        work = self._random.choice((self._hold, self._acquire, self._hold_many, self._lend))
        task = asyncio.create_task(_quietly(work, name))
        if self._random.random() < 0.5:
            await asyncio.wait([task], timeout=self._random.expovariate(1 / (self._circumstances.held_s + 0.02)))
        else:
            for _ in range(self._random.randrange(12)):
                await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    async def _hold_many(self, name: str) -> None:
        names = self._random.sample(self._circumstances.names, min(2, len(self._circumstances.names)))
        lease_s, wait_s = self._a_lease_s(), self._random.choice(WAITS_S)
        async with HoldingMany(self._place, names, lease_ttl_s=lease_s, wait_s=wait_s):
            await self._body()

    async def _adopt(self, name: str) -> None:
        texts = self._plan.texts.seen_by(self._place.process)
        if texts:
            self._plan.texts.take(texts[0])
            keeps = self._random.random() < 0.5
            await self._use(await self._locker.adopt(texts[0], keep_extended=keeps))

    async def _lend(self, name: str) -> None:
        wait_s, lease_s = self._random.choice((0.0, 0.05, 0.5, LONGEST_LENT_WAIT_S)), self._a_lease_s()
        where = self._simulation, self._place, name
        if self._random.random() < 0.5:
            client = await Client.lent(*where, lease_ttl_s=lease_s, wait_s=wait_s)
        else:
            lease_id = self._random.randbytes(16).hex()
            client = await Client.lent_as(*where, lease_id, lease_ttl_s=lease_s, wait_s=wait_s)
        self._plan.clients.leave(self._place.process, client)

    async def _use_loan(self, name: str) -> None:
        """Somebody outside extends a lease or gives it back, through this process."""
        clients = self._plan.clients.seen_by(self._place.process)
        if not clients:
            return
        client = self._random.choice(clients)
        self._plan.clients.take(client)
        for _ in range(self._random.choice((0, 1, 1, 2))):
            await client.extend(self._place)
            await asyncio.sleep(self._random.uniform(0.0, client.loan.lease_ttl_s))
        if self._random.random() < 0.8:
            await client.release(self._place)

    async def _force(self, name: str) -> None:
        await forces(self._place, name)

    async def _inspect(self, name: str) -> None:
        await self._locker.inspect(name)

    # How.

    async def _use(self, lease: Lease) -> None:
        """What is done under a lease, and how it ends."""
        numbers, lease_s = self._random, lease.lease_ttl_s
        try:
            await self._body()
            if numbers.random() < 0.2:
                await lease.extend(self._a_lease_s())
            how = numbers.random()
            if how < 0.15:
                lease.finish()
            elif (
                how < 0.3 and lease.lease_ttl_s >= lease_s
            ):  # Redis takes no time away, so else it outlasts what it says
                self._plan.texts.leave(self._place.process, lease.export())
            elif how > 0.35 or lease.keep_extended:
                await lease.release()
            # Else it is forgotten, and runs out.
        except BaseException:
            self._locker.drop(lease)
            raise

    async def _body(self) -> None:
        numbers = self._random
        if numbers.random() < 0.02:
            self._place.process.block(numbers.choice(BLOCKS_S) * numbers.random())
        held_s = numbers.expovariate(1 / self._circumstances.held_s)
        if numbers.random() < 0.05:
            held_s = numbers.uniform(0, 1.5 * self._plan.lease_s)
        if held_s > 1e-4 or numbers.random() < 0.5:
            await asyncio.sleep(held_s)

    def _a_name(self) -> str:
        names = self._circumstances.names
        return names[0] if self._random.random() < 0.4 else self._random.choice(names)

    def _a_lease_s(self) -> float:
        return self._random.choice(self._circumstances.leases_s)


def stray(simulation: Simulation, place: Place, error: BaseException) -> None:
    """A cancellation that nobody has sent has come out of something."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
    process = place.process
    simulation.recording.write("stray_cancel", process.now_s, i=process.name, life=process.life, where=where)
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


async def _quietly(work: Callable[[str], Awaitable[None]], name: str) -> None:
    with contextlib.suppress(*REFUSALS):
        await work(name)
