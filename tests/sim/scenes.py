"""Small scenes of three processes on one lock: where each fault is tried at each event, and each order of events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tests.sim.acts import (
    LASTING_S,
    LEASE_S,
    LOCK,
    LONG_S,
    SHORT_S,
    Act,
    Stage,
    acquires_and_releases,
    asks_again,
    chooses,
    extends,
    extends_by_more,
    finishes,
    forces_out,
    forgets,
    gives_up,
    hands_over,
    hangs_up,
    holds,
    inspects,
    keeps_on_for,
    lapses,
    lends,
    lends_to,
    stops_asking,
    strikes,
    takes_over,
    takes_over_late,
    tries,
    uses_up,
)
from tests.sim.circumstances import Circumstances
from tests.sim.network import Weather
from tests.sim.shelf import Shelf
from tests.sim.workload import REFUSALS, stray

if TYPE_CHECKING:
    from tests.sim.clients import Client
    from tests.sim.simulation import Place, Simulation

LAST_TRY_S = 1.3
LASTS_S = 3.0
BEGINS_S = 0.05  # by then every process has greeted the server
IN_SCENES = Circumstances(processes=3, workers=0)
CIRCUMSTANCES = {
    "short": replace(IN_SCENES, weather=Weather(slow_share=0.06, slowest_s=0.9)),
    "adopt-late": replace(IN_SCENES, weather=Weather(slow_share=0.04, slowest_s=1.2)),
    "lapse": replace(IN_SCENES, pauses=0.01),
    "give-up": replace(IN_SCENES, pauses=0.01),
    "extend-once": replace(IN_SCENES, weather=Weather(slow_share=0.3, slowest_s=0.2)),
    "extend-late": replace(IN_SCENES, weather=Weather(slow_share=0.1, slowest_s=1.0)),
    "beside": replace(IN_SCENES, programs=2, names=(LOCK,), extensions=2),
    "beside-impatient": replace(IN_SCENES, programs=1, names=(LOCK,), extensions=1),
    "beside-silent": replace(IN_SCENES, programs=1, names=(LOCK,), extensions=4),
}


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
        stage = Stage(simulation, place, self.texts)
        # The last one is no task of tasks_of().
        acts = (*self._acts[place.index], (LAST_TRY_S + 0.05 * place.index, tries))
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


def cycle(at_s: float, act: Act) -> list[tuple[float, Act]]:
    """The act, some times."""
    return [(0.4 * number + at_s, act) for number in range(6)]


def _lent_on(clients: Shelf[Client]) -> Scene:
    return Scene(
        [[(0.0, lends_to(clients)), (0.3, strikes("black-hole"))], [(0.2, keeps_on_for(clients, for_s=3.0))], []]
    )


SCENES: dict[str, Callable[[], Scene]] = {
    # Nobody is there before.
    "acquire": lambda: Scene([[(0.0, acquires_and_releases)], [(0.0, tries)], []]),
    # Two ask at once, and each has its turn.
    "release": lambda: Scene([[(0.0, acquires_and_releases)], [(0.0, acquires_and_releases)], []]),
    # A crowd: two who wait in each of two processes, so that there are handoffs, claims and runs.
    "handoff": lambda: Scene(
        [
            [(0.0, holds(0.06)), (0.02, holds(0.005))],
            [(0.01, holds(0.01)), (0.012, holds(0.2))],
            [(0.02, holds(0.0)), (0.021, holds(0.02))],
        ]
    ),
    # Longer than a lease, so that it is extended; whoever dies, or is cut off, is followed by those who wait.
    "takeover": lambda: Scene([[(0.0, holds(0.7))], [(0.02, holds(0.02))], [(0.04, holds(0.02))]]),
    "extend": lambda: Scene([[(0.0, extends)], [(0.01, holds(0.01))], [(0.015, extends)]]),
    "finish": lambda: Scene([[(0.0, finishes)], [(0.01, holds(0.01))], [(0.015, finishes), (0.02, holds(0.0))]]),
    "cancel": lambda: Scene([[(0.0, holds(0.04))], [(0.01, gives_up()), (0.02, holds(0.0))], [(0.015, gives_up())]]),
    "adopt": lambda: Scene([[(0.0, hands_over())], [(0.03, takes_over), (0.04, holds(0.0))], [(0.02, holds(0.01))]]),
    # Long after the lease was over, and others have had the lock.
    "adopt-late": lambda: Scene(
        [
            [(0.0, holds(0.33, lease_s=0.2)), (0.46, holds(0.02))],
            [(0.01, hands_over(SHORT_S))],
            [(0.5, takes_over_late), (0.45, holds(0.0))],
        ]
    ),
    # The same; and the connection ends on which the lease was asked for first, which so is done late.
    "adopt-nobodys": lambda: Scene(
        [
            [(0.0, holds(0.1)), (0.23, holds(0.02))],
            [(0.01, hands_over(SHORT_S)), (0.01, strikes("late"))],
            [(0.26, takes_over_late), (0.22, holds(0.0))],
        ]
    ),
    "lend": lambda: Scene([[(0.0, lends)], [(0.005, lends)], [(0.01, holds(0.01))]]),
    # A client goes on through another process while its keeper is cut off.
    "lend-on": lambda: _lent_on(Shelf()),
    # Callers who hear nothing, of a lock that nobody has.
    "silence": lambda: Scene(
        [[(0.0, strikes("black-hole")), *((0.06 * number, holds(0.0, wait_s=0.05)) for number in range(6))], [], []]
    ),
    "choose": lambda: Scene(
        [
            [(0.0, holds(0.03))],
            [(0.01, chooses("a" * 32)), (0.012, holds(0.2)), (0.013, holds(0.0))],
            [(0.015, chooses("b" * 32))],
        ]
    ),
    "hang-up": lambda: Scene(
        [
            [(0.0, holds(0.03)), (0.01, hangs_up("c" * 32)), (0.013, holds(0.2)), (0.014, holds(0.0))],
            [(0.03, asks_again)],
            [],
        ]
    ),
    # What is left of a long lease is given back, or everybody waits for long.
    "long": lambda: Scene(
        [
            [(0.0, holds(0.04, lease_s=LONG_S)), (0.1, gives_up(0.002, lease_s=LONG_S))],
            [(0.01, gives_up(0.03, lease_s=LONG_S)), (0.02, holds(0.01, lease_s=LONG_S))],
            [(0.015, gives_up(0.02, lease_s=LONG_S)), (0.05, holds(0.0, lease_s=LONG_S))],
        ],
        lease_s=LONG_S,
    ),
    # Claims that are over before a message is there, while others hold it for longer.
    "short": lambda: Scene(
        [
            [
                (0.4 * index, holds(0.03)),
                (0.4 * index + 0.005, holds(0.35)),
                *((0.4 * other + 0.002 + 0.001 * index, holds(0.01, lease_s=SHORT_S)) for other in others),
            ]
            for index, others in enumerate(((1, 2), (0, 2), (0, 1)))
        ]
    ),
    # Leases that run out, in processes that stand still now and then.
    "lapse": lambda: Scene([[(0.0, lapses), (0.01, lapses)], [(0.005, lapses)], [(0.008, lapses)]]),
    # Callers whose time is over as their process stands still now and then.
    "give-up": lambda: Scene([[(0.0, holds(0.5))], [(0.01, holds(0.01, wait_s=0.2))] * 16]),
    # Whoever stands first dies, or sleeps, while the lock is held; and it is given back, or not.
    "forget": lambda: Scene([[(0.0, forgets)], [(0.01, holds(0.02)), (0.2, strikes("kill"))], [(0.02, holds(0.02))]]),
    "dead-head": lambda: Scene(
        [[(0.0, holds(0.4))], [(0.01, holds(0.02)), (0.2, strikes("kill"))], [(0.02, holds(0.02))]]
    ),
    "deaf-head": lambda: Scene(
        [[(0.0, holds(1.15))], [(0.01, holds(0.02)), (0.05, strikes("suspend"))], [(0.02, holds(0.02))]]
    ),
    # More time is asked for, once, and the answer is slow.
    "extend-once": lambda: Scene([[(0.01 * who, uses_up(LEASE_S, asks_after_s=0.2))] for who in range(3)]),
    # The same when little is left of a lease that is long enough to be missed.
    "extend-late": lambda: Scene(
        [[(0.01 * who, uses_up(LASTING_S, asks_after_s=0.95 * LASTING_S))] for who in range(3)], lease_s=LASTING_S
    ),
    # Much more time is asked for, and what was asked for before may be carried out after that.
    "extend-by-more": lambda: Scene([[(0.0, extends_by_more)], [(0.02, holds(0.02))], []], lease_s=LASTING_S),
    # Somebody looks at the line again and again.
    "inspect": lambda: Scene(
        [
            [(at_s, holds(0.12)) for at_s in (0.0, 0.4, 0.8)],
            [(at_s + 0.01, holds(0.01)) for at_s in (0.0, 0.4, 0.8)],
            [
                *((at_s + 0.05, holds(0.01)) for at_s in (0.0, 0.4, 0.8)),
                *((at_s + 0.1, inspects) for at_s in (0.0, 0.4, 0.8)),
            ],
        ]
    ),
    # Programs with python-redis-lock, and SafeLock, which ask for more time and then give the lock back.
    "beside": lambda: Scene([[(0.3 * i + 0.01 * who, holds(0.01)) for i in range(4)] for who in range(3)]),
    # Whoever stands first leaves, with all of its process or but for a later caller, while a program holds the lock.
    "beside-impatient": lambda: Scene(
        [
            [*cycle(0.002, holds(0.01, wait_s=0.05)), *cycle(0.01, holds(0.01, wait_s=2.0))],
            cycle(0.005, holds(0.01)),
            cycle(0.0, holds(0.01, wait_s=0.08)),
        ]
    ),
    # Whoever has it is forced out, and so is the next one, who has only begun to ask, and hears late of both.
    "force": lambda: Scene(
        [
            [
                *cycle(0.0, holds(0.05)),
                *(act for number in range(4) for act in cycle(0.01 + 0.0004 * number, forces_out)),
            ],
            cycle(0.01, holds(0.01)),
            [act for number in range(4) for act in cycle(0.0098 + 0.0003 * number, forces_out)],
        ]
    ),
    # Whoever stands first dies, and nobody is told; the program frees the lock when the dead one counts as dead.
    "beside-silent": lambda: Scene([[(0.24, holds(0.01))], [(0.0, holds(0.01)), (0.36, strikes("power"))], []]),
    # Callers who give up one after another, so that their process looks again and again, and hears late.
    "impatient": lambda: Scene(
        [
            [(0.0, holds(0.03))],
            [
                *((0.01, holds(0.01, lease_s=SHORT_S, wait_s=0.15 + 0.03 * number)) for number in range(16)),
                (0.028, strikes("stall")),
            ],
            [(0.02, holds(0.6))],
        ]
    ),
    # The server forgets its scripts just before a long lease is handed to somebody who is about to leave.
    "scripts-long": lambda: Scene(
        [
            [(0.1 * number, holds(0.04, lease_s=LONG_S)) for number in range(6)],
            [(0.1 * number + 0.01, stops_asking(0.0305 + 0.0005 * number, lease_s=LONG_S)) for number in range(6)],
            [(0.1 * number + 0.03, strikes("script-flush")) for number in range(6)],
        ],
        lease_s=LONG_S,
    ),
    # The server forgets its scripts just before a run.
    "scripts": lambda: Scene(
        [
            [
                *((at_s, holds(0.08)) for at_s in (0.0, 0.3, 0.6)),
                *((at_s + 0.01, holds(0.0)) for at_s in (0.0, 0.3, 0.6)),
                *((at_s + 0.011, acquires_and_releases) for at_s in (0.0, 0.3, 0.6)),
            ],
            [(at_s + 0.03, holds(0.02)) for at_s in (0.0, 0.3, 0.6)],
            [(at_s + 0.07, strikes("script-flush")) for at_s in (0.0, 0.3, 0.6)],
        ]
    ),
    "crowd": lambda: Scene(
        [
            [(0.0, holds(0.10)), (0.04, holds(0.01)), (0.2, holds(0.01))],
            [(0.03, holds(0.02)), (0.032, holds(0.6)), (0.25, holds(0.0))],
            [(0.05, holds(0.01)), (0.051, holds(0.03)), (0.26, holds(0.0))],
        ]
    ),
}
