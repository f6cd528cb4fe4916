"""Every order of what is ready, up to k deviations from first come, first served (delay bounding, Emmi 2011).

A deviation: one event comes later, behind so many others that are on their way to the same actor, the server or a process.
What is on its way to another actor changes nothing for it, so that is not tried.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.sim.search.trials import events_of
from tests.sim.trial import Trial

SMALL = ("acquire", "release", "handoff", "takeover", "extend", "finish")
MOST_PLACES = 2


def trials(scene: str, *, deviations: int) -> Iterator[Trial]:
    """Each of them, those with the fewest deviations first in each branch."""
    own_events = events_of(scene)
    first, last = own_events.start, own_events.stop

    def branch(delays: tuple[tuple[int, int], ...]) -> Iterator[Trial]:
        trial = Trial.of_scene(scene, delays=delays)
        yield trial
        if len(delays) == deviations:
            return
        begin = delays[-1][0] + 1 if delays else first
        for event, places in chances_of(trial, begin, last):
            for behind in range(1, min(places, MOST_PLACES) + 1):
                yield from branch((*delays, (event, behind)))

    yield from branch(())


def chances_of(trial: Trial, first: int, last: int) -> list[tuple[int, int]]:
    """The events of the trial that may be delayed, and behind how many others."""
    simulation = trial.simulation()
    simulation.begin()
    simulation.world.run(until_s=simulation.plan.lasts_s, events=first)
    simulation.world.chances = []
    simulation.world.run(until_s=simulation.plan.lasts_s, events=last)
    simulation.clean_up()
    return [chance for chance in simulation.world.chances if chance[1]]
