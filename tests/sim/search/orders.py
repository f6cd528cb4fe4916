"""Every order of what is ready, up to k deviations from first come, first served (delay bounding, Emmi 2011).

A deviation: one event comes later, just behind another that is on its way to the same actor, the server or a process. What
is on its way to another actor changes nothing for it, so that is not tried; nor is what has no effect by its place.

Where a run comes into a state in which the search has been before with as many deviations left, or more, everything
further was tried from there: it goes on to its end and is judged, and no more of it is delayed. That is sound, times
apart: equal states (states.state_of) have the same futures, and those who were there first had at least the same choices.
What is apart, a few times by some ms or less, and random ids, is what seeds are for. Runs are looked at by the number of
their deviations, so that the first in a state has the most left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.sim.scenes import BEGINS_S
from tests.sim.search.states import is_over, matters, state_of
from tests.sim.simulation import Simulation
from tests.sim.trial import Trial
from tests.sim.world import Entry

SMALL = ("acquire", "release", "handoff", "takeover", "extend", "finish")

Delay = tuple[int, int]


def trials(scene: str, *, deviations: int) -> Iterator[Trial]:
    """Each of them, those with the fewest deviations first."""
    been: set[int] = set()
    level = [Trial.of_scene(scene)]
    yield from level
    for _ in range(deviations):
        delayed = [
            replace(trial, delays=(*trial.delays, delay)) for trial in level for delay in new_delays(trial, been)
        ]
        yield from delayed
        level = delayed


def new_delays(trial: Trial, been: set[int]) -> list[Delay]:
    """What may be delayed once more in the trial, until it comes into a state where the search has been."""
    delays: list[Delay] = []
    simulation = trial.simulation()
    world = simulation.world
    own: set[int] = set()
    is_old = False

    def watch(entry: Entry) -> None:
        nonlocal is_old
        if world.delays or is_old or entry[0] < BEGINS_S or not matters(simulation, entry):
            return
        state = state_of(simulation, entry)
        is_old = state in been and state not in own
        been.add(state)
        own.add(state)
        if not is_old:
            delays.extend((world.events, places) for places in _places(simulation, entry))

    world.watch = watch
    simulation.begin()
    while not is_old and not is_over(simulation):
        world.run(until_s=simulation.plan.lasts_s, events=world.events + 1)
    simulation.clean_up()
    return delays


def _places(simulation: Simulation, entry: Entry) -> Iterator[int]:
    for places, other in enumerate(simulation.world.behind(entry), 1):
        if matters(simulation, other) and other[3] != entry[3]:
            yield places
