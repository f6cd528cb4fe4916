"""What processes do in a scene: each act once, at its time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from locks import HolderChanged, LeaseLost, LockStoreDown
from tests.sim.callers import Holding, acquired, forces
from tests.sim.clients import Client
from tests.sim.faults import Fault, strike
from tests.sim.recording import CHOSEN
from tests.sim.shelf import Shelf

if TYPE_CHECKING:
    from tests.sim.simulation import Place, Simulation

LOCK = "n:0"
LEASE_S, SHORT_S, LASTING_S, LONG_S = 0.5, 0.1, 4.0, 12.0
MOMENT_S = 0.0002
PLANNED = 100  # the number of a fault that is part of a scene

Act = Callable[["Stage"], Awaitable[None]]


class Stage:
    """What an act has to do with: its process, the Locker there, and what others have left for it."""

    def __init__(self, simulation: Simulation, place: Place, texts: Shelf[str]) -> None:
        """`texts`: what others have left for it."""
        self.simulation, self.place = simulation, place
        self.locker = place.locker
        self.texts = texts

    async def hold(self, held_s: float, *, lease_s: float = LEASE_S, wait_s: float | None = None) -> None:
        """The lock for so long."""
        async with Holding(self.place, LOCK, lease_ttl_s=lease_s, wait_s=wait_s):
            await asyncio.sleep(held_s)


def holds(held_s: float, *, lease_s: float = LEASE_S, wait_s: float | None = None) -> Act:
    async def act(stage: Stage) -> None:
        await stage.hold(held_s, lease_s=lease_s, wait_s=wait_s)

    return act


async def acquires_and_releases(stage: Stage) -> None:
    lease = await acquired(stage.place, LOCK, lease_ttl_s=LEASE_S)
    await asyncio.sleep(0.01)
    await lease.release()


async def tries(stage: Stage) -> None:
    lease = await acquired(stage.place, LOCK, lease_ttl_s=LEASE_S, wait_s=0)
    await asyncio.sleep(0.01)
    await lease.release()


async def extends(stage: Stage) -> None:
    lease = await acquired(stage.place, LOCK, lease_ttl_s=LEASE_S)
    for _ in range(2):
        await asyncio.sleep(0.02)
        await lease.extend(LEASE_S)
    await lease.release()


async def lapses(stage: Stage) -> None:
    """Has it to the end of its lease, and does not give it back, four times."""
    for _ in range(4):
        await acquired(stage.place, LOCK, lease_ttl_s=SHORT_S, keep_extended=False)
        await asyncio.sleep(SHORT_S)


async def forgets(stage: Stage) -> None:
    """Lets its lease run out."""
    lease = await acquired(stage.place, LOCK, lease_ttl_s=LEASE_S, keep_extended=False)
    await lease.lost.wait()


def strikes(kind: str) -> Act:
    """A fault of this kind, at the process itself or at the server."""

    async def act(stage: Stage) -> None:
        fault = Fault(kind, stage.place.index, number=PLANNED)
        stage.simulation.world.at(
            stage.place.process.now_s + MOMENT_S, stage.simulation, strike, stage.simulation, fault
        )

    return act


def uses_up(lease_s: float, *, asks_after_s: float) -> Act:
    """Asks for more time once, and has the lock to the end of what it gets."""

    async def act(stage: Stage) -> None:
        lease = await acquired(stage.place, LOCK, lease_ttl_s=lease_s)
        await asyncio.sleep(asks_after_s)
        with contextlib.suppress(LockStoreDown, LeaseLost):
            await lease.extend(lease_s)
        await lease.lost.wait()

    return act


async def extends_by_more(stage: Stage) -> None:
    """Asks for more time, which may be carried out late, for it is cut off; then for much more, on a new connection."""
    lease = await acquired(stage.place, LOCK, lease_ttl_s=LEASE_S)
    await strikes("late")(stage)
    with contextlib.suppress(LockStoreDown):
        await lease.extend(LEASE_S)
    while lease.lease_ttl_s < LASTING_S:
        with contextlib.suppress(LockStoreDown):
            await lease.extend(LASTING_S)
        await asyncio.sleep(0.01)
    await lease.lost.wait()


async def inspects(stage: Stage) -> None:
    await stage.locker.inspect(LOCK)


async def forces_out(stage: Stage) -> None:
    with contextlib.suppress(HolderChanged):
        await forces(stage.place, LOCK)


async def finishes(stage: Stage) -> None:
    async with Holding(stage.place, LOCK, lease_ttl_s=LEASE_S) as lease:
        await asyncio.sleep(0.03)
        lease.finish()


def gives_up(after_s: float = 0.02, *, lease_s: float = LEASE_S) -> Act:
    """Is cancelled while it waits."""

    async def act(stage: Stage) -> None:
        task = asyncio.create_task(stage.hold(0.01, lease_s=lease_s))
        await asyncio.sleep(after_s)
        task.cancel()
        await asyncio.wait([task])

    return act


def stops_asking(after_s: float, *, lease_s: float) -> Act:
    """Is cancelled while it asks for a lease, or has just got it, and then gives it back."""

    async def act(stage: Stage) -> None:
        task = asyncio.create_task(acquired(stage.place, LOCK, lease_ttl_s=lease_s))
        await asyncio.sleep(after_s)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            await task.result().release()

    return act


def hands_over(lease_s: float = LEASE_S) -> Act:
    async def act(stage: Stage) -> None:
        lease = await acquired(stage.place, LOCK, lease_ttl_s=lease_s)
        await asyncio.sleep(0.01)
        stage.texts.leave(stage.place.process, lease.export())

    return act


async def takes_over(stage: Stage) -> None:
    for text in stage.texts.seen_by(stage.place.process):
        lease = await stage.locker.adopt(text)
        await asyncio.sleep(0.01)
        await lease.release()


async def takes_over_late(stage: Stage) -> None:
    """Tries again and again, however often it is told that the lease is over."""
    for _ in range(30):
        with contextlib.suppress(LeaseLost):
            await takes_over(stage)
        await asyncio.sleep(0.03)


async def lends(stage: Stage) -> None:
    client = await Client.lent(stage.simulation, stage.place, LOCK, lease_ttl_s=LEASE_S, wait_s=1.0)
    await asyncio.sleep(0.01)
    await client.extend(stage.place)
    await client.release(stage.place)


def lends_to(clients: Shelf[Client]) -> Act:
    async def act(stage: Stage) -> None:
        client = await Client.lent(stage.simulation, stage.place, LOCK, lease_ttl_s=LEASE_S, wait_s=1.0)
        clients.leave(stage.place.process, client)

    return act


def keeps_on_for(clients: Shelf[Client], *, for_s: float) -> Act:
    """A client of another process asks this one for more time again and again, and gives the lease back here."""

    async def act(stage: Stage) -> None:
        process, ends_s = stage.place.process, stage.place.process.now_s + for_s
        for client in clients.seen_by(process):
            while process.now_s < ends_s:
                await client.extend(stage.place)
                await asyncio.sleep(LEASE_S / 2)
            await client.release(stage.place)

    return act


def chooses(lease_id: str) -> Act:
    """A client that asks again where it is told that nobody knows whether it has the lock."""

    async def act(stage: Stage) -> None:
        for _ in range(10):
            with contextlib.suppress(LockStoreDown):
                client = await Client.lent_as(
                    stage.simulation, stage.place, LOCK, lease_id, lease_ttl_s=LEASE_S, wait_s=0.1
                )
                break
            await asyncio.sleep(0.01)
        else:
            return
        await asyncio.sleep(0.01)
        await client.release(stage.place)

    return act


def hangs_up(lease_id: str) -> Act:
    """A client that hangs up while it is being given the lock, and asks another process: see asks_again."""

    async def act(stage: Stage) -> None:
        asking = Client.lent_as(stage.simulation, stage.place, LOCK, lease_id, lease_ttl_s=LEASE_S, wait_s=1.0)
        task = asyncio.create_task(asking)
        while not task.done() and not _has_it_for_a_client(stage):  # noqa: ASYNC110  # a simulated loop waits for free
            await asyncio.sleep(MOMENT_S)
        await asyncio.sleep(0.001 * stage.simulation.world.random(lease_id).random())
        task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            stage.texts.leave(stage.place.process, lease_id)
        else:
            await asyncio.sleep(0.01)
            await task.result().release(stage.place)

    return act


def _has_it_for_a_client(stage: Stage) -> bool:
    return any(lease.request_id == CHOSEN for lease in stage.locker.held)


async def asks_again(stage: Stage) -> None:
    """The client that has hung up elsewhere, if it does soon."""
    for _ in range(200):
        for lease_id in stage.texts.seen_by(stage.place.process):
            stage.texts.take(lease_id)
            await chooses(lease_id)(stage)
        await asyncio.sleep(MOMENT_S)
