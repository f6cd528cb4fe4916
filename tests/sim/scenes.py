"""Small scenes of three processes on one lock: where each fault is tried at each event, and each order of events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from locks import LeaseLost, LockStoreDown
from tests.sim.circumstances import Circumstances
from tests.sim.clients import Client
from tests.sim.network import Weather
from tests.sim.shelf import Shelf
from tests.sim.workload import REFUSALS, stray

if TYPE_CHECKING:
    from tests.sim.simulation import Place, Simulation

LOCK = "n:0"
LEASE_S, SHORT_S, LONG_S = 0.5, 0.1, 12.0
LAST_TRY_S = 1.3
LASTS_S = 3.0
BEGINS_S = 0.05  # by then every process has greeted the server
IN_SCENES = Circumstances(processes=3, workers=0)
CIRCUMSTANCES = {
    "short": replace(IN_SCENES, weather=Weather(slow_share=0.06, slowest_s=0.9)),
    "adopt-late": replace(IN_SCENES, weather=Weather(slow_share=0.04, slowest_s=1.2)),
    "lapse": replace(IN_SCENES, pauses=0.01),
}

Act = Callable[["Stage"], Awaitable[None]]


class Stage:
    """What an act has to do with: its process, the Locker there, and what others have left for it."""

    def __init__(self, scene: Scene, simulation: Simulation, place: Place) -> None:
        self.simulation, self.place = simulation, place
        self.locker = place.locker
        self.texts = scene.texts

    async def hold(self, held_s: float, *, lease_s: float = LEASE_S, wait_s: float | None = None) -> None:
        """The lock for so long."""
        self.place.invokes(LOCK)
        async with self.locker.hold(LOCK, lease_ttl_s=lease_s, wait_s=wait_s):
            await asyncio.sleep(held_s)


class Scene:
    """Acts by process: after how many seconds, and what. A plan, for one run."""

    lasts_s = LASTS_S

    def __init__(self, acts: Sequence[Sequence[tuple[float, Act]]], *, lease_s: float = LEASE_S) -> None:
        """`lease_s`: the longest lease."""
        self.lease_s = lease_s
        self._acts = acts
        self.texts: Shelf[str] = Shelf()

    def work(self, simulation: Simulation, place: Place) -> Sequence[Coroutine[Any, Any, None]]:
        """The acts of one process, and a last try whether all is well; one that was born again has none of them."""
        if place.process.life > len(self._acts):
            return []
        stage = Stage(self, simulation, place)
        # The last one is no task of tasks_of().
        acts = (*self._acts[place.index], (LAST_TRY_S + 0.05 * place.index, _tries))
        return [self._play(simulation, place, stage, after_s, act) for after_s, act in acts]

    async def _play(self, simulation: Simulation, place: Place, stage: Stage, after_s: float, act: Act) -> None:
        try:
            await asyncio.sleep(BEGINS_S - simulation.world.now_s + after_s)
            await act(stage)
        except REFUSALS:
            return
        except asyncio.CancelledError as error:
            if place.is_closing or place.process.is_dead:
                raise
            stray(simulation, place, error)


def tasks_of(place: Place) -> list[asyncio.Task[Any]]:
    """Its acts, without the last try."""
    return place.tasks[:-1]


def _holds(held_s: float, *, lease_s: float = LEASE_S, wait_s: float | None = None) -> Act:
    async def act(stage: Stage) -> None:
        await stage.hold(held_s, lease_s=lease_s, wait_s=wait_s)

    return act


async def _acquires_and_releases(stage: Stage) -> None:
    stage.place.invokes(LOCK)
    lease = await stage.locker.acquire(LOCK, lease_ttl_s=LEASE_S)
    await asyncio.sleep(0.01)
    await lease.release()


async def _tries(stage: Stage) -> None:
    stage.place.invokes(LOCK)
    lease = await stage.locker.acquire(LOCK, lease_ttl_s=LEASE_S, wait_s=0)
    await asyncio.sleep(0.01)
    await lease.release()


async def _extends(stage: Stage) -> None:
    stage.place.invokes(LOCK)
    lease = await stage.locker.acquire(LOCK, lease_ttl_s=LEASE_S)
    for _ in range(2):
        await asyncio.sleep(0.02)
        await lease.extend(LEASE_S)
    await lease.release()


async def _lapses(stage: Stage) -> None:
    """Has it to the end of its lease, and does not give it back, four times."""
    for _ in range(4):
        stage.place.invokes(LOCK)
        await stage.locker.acquire(LOCK, lease_ttl_s=SHORT_S, keep_extended=False)
        await asyncio.sleep(SHORT_S)


async def _finishes(stage: Stage) -> None:
    stage.place.invokes(LOCK)
    async with stage.locker.hold(LOCK, lease_ttl_s=LEASE_S) as lease:
        await asyncio.sleep(0.03)
        lease.finish()


def _gives_up(after_s: float = 0.02, *, lease_s: float = LEASE_S) -> Act:
    """Is cancelled while it waits."""

    async def act(stage: Stage) -> None:
        task = asyncio.create_task(stage.hold(0.01, lease_s=lease_s))
        await asyncio.sleep(after_s)
        task.cancel()
        await asyncio.wait([task])

    return act


def _hands_over(lease_s: float = LEASE_S) -> Act:
    async def act(stage: Stage) -> None:
        stage.place.invokes(LOCK)
        lease = await stage.locker.acquire(LOCK, lease_ttl_s=lease_s)
        await asyncio.sleep(0.01)
        stage.texts.leave(stage.place.process, lease.export())

    return act


async def _takes_over(stage: Stage) -> None:
    for text in stage.texts.seen_by(stage.place.process):
        lease = await stage.locker.adopt(text)
        await asyncio.sleep(0.01)
        await lease.release()


async def _takes_over_late(stage: Stage) -> None:
    """Tries again and again, however often it is told that the lease is over."""
    for _ in range(30):
        with contextlib.suppress(LeaseLost):
            await _takes_over(stage)
        await asyncio.sleep(0.03)


async def _lends(stage: Stage) -> None:
    client = await Client.lent(stage.simulation, stage.place, LOCK, lease_ttl_s=LEASE_S, wait_s=1.0)
    await asyncio.sleep(0.01)
    await client.extend(stage.place)
    await client.release(stage.place)


def _chooses(lease_id: str) -> Act:
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


def _chooses_twice(lease_id: str) -> Act:
    """A client that hangs up while it is being given the lock, and asks again."""

    async def act(stage: Stage) -> None:
        def asking() -> Coroutine[Any, Any, Client]:
            return Client.lent_as(stage.simulation, stage.place, LOCK, lease_id, lease_ttl_s=LEASE_S, wait_s=1.0)

        task = asyncio.create_task(asking())
        while not task.done() and not stage.place.held:  # noqa: ASYNC110  # a simulated loop waits for free
            await asyncio.sleep(0.0002)
        await asyncio.sleep(0.001 * stage.simulation.world.random(lease_id).random())
        task.cancel()
        await asyncio.wait([task])
        client = await asking() if task.cancelled() else task.result()
        await asyncio.sleep(0.01)
        await client.release(stage.place)

    return act


SCENES: dict[str, Callable[[], Scene]] = {
    # Nobody is there before.
    "acquire": lambda: Scene([[(0.0, _acquires_and_releases)], [(0.0, _tries)], []]),
    # Two ask at once, and each has its turn.
    "release": lambda: Scene([[(0.0, _acquires_and_releases)], [(0.0, _acquires_and_releases)], []]),
    # A crowd: two who wait in each of two processes, so that there are handoffs, claims and runs.
    "handoff": lambda: Scene(
        [
            [(0.0, _holds(0.06)), (0.02, _holds(0.005))],
            [(0.01, _holds(0.01)), (0.012, _holds(0.2))],
            [(0.02, _holds(0.0)), (0.021, _holds(0.02))],
        ]
    ),
    # Longer than a lease, so that it is extended; whoever dies, or is cut off, is followed by those who wait.
    "takeover": lambda: Scene([[(0.0, _holds(0.7))], [(0.02, _holds(0.02))], [(0.04, _holds(0.02))]]),
    "extend": lambda: Scene([[(0.0, _extends)], [(0.01, _holds(0.01))], [(0.015, _extends)]]),
    "finish": lambda: Scene([[(0.0, _finishes)], [(0.01, _holds(0.01))], [(0.015, _finishes), (0.02, _holds(0.0))]]),
    "cancel": lambda: Scene(
        [[(0.0, _holds(0.04))], [(0.01, _gives_up()), (0.02, _holds(0.0))], [(0.015, _gives_up())]]
    ),
    "adopt": lambda: Scene(
        [[(0.0, _hands_over())], [(0.03, _takes_over), (0.04, _holds(0.0))], [(0.02, _holds(0.01))]]
    ),
    # Long after the lease was over, and others have had the lock.
    "adopt-late": lambda: Scene(
        [
            [(0.0, _holds(0.33, lease_s=0.2)), (0.46, _holds(0.02))],
            [(0.01, _hands_over(SHORT_S))],
            [(0.5, _takes_over_late), (0.45, _holds(0.0))],
        ]
    ),
    "lend": lambda: Scene([[(0.0, _lends)], [(0.005, _lends)], [(0.01, _holds(0.01))]]),
    "choose": lambda: Scene(
        [
            [(0.0, _holds(0.03))],
            [(0.01, _chooses("a" * 32)), (0.012, _holds(0.2)), (0.013, _holds(0.0))],
            [(0.015, _chooses("b" * 32))],
        ]
    ),
    "choose-twice": lambda: Scene(
        [[(0.0, _holds(0.03))], [(0.01, _chooses_twice("c" * 32)), (0.0101, _holds(0.2)), (0.0102, _holds(0.0))], []]
    ),
    # What is left of a long lease is given back, or everybody waits for long.
    "long": lambda: Scene(
        [
            [(0.0, _holds(0.04, lease_s=LONG_S)), (0.1, _gives_up(0.002, lease_s=LONG_S))],
            [(0.01, _gives_up(0.03, lease_s=LONG_S)), (0.02, _holds(0.01, lease_s=LONG_S))],
            [(0.015, _gives_up(0.02, lease_s=LONG_S)), (0.05, _holds(0.0, lease_s=LONG_S))],
        ],
        lease_s=LONG_S,
    ),
    # Claims that are over before a message is there, while others hold it for longer.
    "short": lambda: Scene(
        [
            [
                (0.4 * index, _holds(0.03)),
                (0.4 * index + 0.005, _holds(0.35)),
                *((0.4 * other + 0.002 + 0.001 * index, _holds(0.01, lease_s=SHORT_S)) for other in others),
            ]
            for index, others in enumerate(((1, 2), (0, 2), (0, 1)))
        ]
    ),
    # Leases that run out, in processes that stand still now and then.
    "lapse": lambda: Scene([[(0.0, _lapses), (0.01, _lapses)], [(0.005, _lapses)], [(0.008, _lapses)]]),
    "crowd": lambda: Scene(
        [
            [(0.0, _holds(0.10)), (0.04, _holds(0.01)), (0.2, _holds(0.01))],
            [(0.03, _holds(0.02)), (0.032, _holds(0.6)), (0.25, _holds(0.0))],
            [(0.05, _holds(0.01)), (0.051, _holds(0.03)), (0.26, _holds(0.0))],
        ]
    ),
}
