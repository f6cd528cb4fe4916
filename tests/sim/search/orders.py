"""Every order of what is ready, up to k deviations from first come, first served (delay bounding, Emmi 2011).

A deviation: an event comes just behind its next rival, one at the same actor (the server, or a process) that it has not
caused itself. Again and again, it comes behind any number. What happens at another actor changes nothing for it.

Where a run comes into a state in which the search has been before with as many deviations left, or more, everything
further was tried from there: it goes on to its end and is judged, and no more of it is delayed. That is sound, times
apart: equal states (states.state_of) have equal futures, and who was there first had at least as many choices, since
runs are looked at by the number of their deviations. What may differ, times by some ms, is what seeds are for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tests.sim.scenes import BEGINS_S, LASTS_S
from tests.sim.search.states import is_over, state_of
from tests.sim.trial import Trial
from tests.sim.world import SOON_S, Entry

SMALL = ("acquire", "release", "handoff", "takeover", "extend", "finish")


def trials(scene: str, *, deviations: int) -> Iterator[Trial]:
    """Each of them, those with the fewest deviations first."""
    been: set[int] = set()
    level = [Trial.of_scene(scene)]
    yield from level
    for _ in range(deviations):
        before, level = level, []
        for trial in before:
            for event in Looking(trial, been).delays():
                level.append(replace(trial, delays=(*trial.delays, event)))
                yield level[-1]


@dataclass(slots=True)
class Looking:
    """A run of a trial that looks for what else may be delayed in it. `been`: the states where the search has been."""

    trial: Trial
    been: set[int]
    own: set[int] = field(default_factory=set)
    announced: list[int] = field(default_factory=list)  # by event: how many had been announced before
    happened: list[Entry] = field(default_factory=list)  # by event
    that_matter: list[int] = field(default_factory=list)
    with_rivals: list[int] = field(default_factory=list)  # behind which something is to come already
    last: int | None = None  # from this event on the search has been there before

    def delays(self) -> list[int]:
        """The numbers of the events that may be delayed, until it comes into a state where the search has been."""
        simulation = self.trial.simulation()
        world = simulation.world

        def watch(entry: Entry) -> None:
            del self.announced[world.events :], self.happened[world.events :]
            self.announced.append(world.announced)
            self.happened.append(entry)
            if not world.delays and entry[0] >= BEGINS_S and simulation.matters(entry):
                self.that_matter.append(world.events)
                if any(_are_rivals(entry, other) and simulation.matters(other) for other in world.soon(entry[0])):
                    self.with_rivals.append(world.events)
                if self.last is None and self._is_old(state_of(simulation, entry)):
                    self.last = world.events

        world.watch = watch
        simulation.begin()
        while not is_over(simulation):
            world.run(until_s=LASTS_S, events=world.events + 1)
        simulation.clean_up()
        last = world.events if self.last is None else self.last
        return [event for event in self.that_matter if event < last and self._has_rival(event)]

    def _is_old(self, state: int) -> bool:
        if state in self.own:
            return False
        is_old = state in self.been
        self.been.add(state)
        self.own.add(state)
        return is_old

    def _has_rival(self, event: int) -> bool:
        """Whether another one comes to the same actor soon after, which this one has not caused."""
        if event in self.with_rivals:
            return True
        entry = self.happened[event]
        for number in self.that_matter:
            other = self.happened[number]
            if other[0] > entry[0] + SOON_S:
                return False
            if number > event and _are_rivals(entry, other) and not self._has_caused(event, other):
                return True
        return False

    def _has_caused(self, event: int, entry: Entry) -> bool:
        cause = self._cause(entry)
        while cause > event:
            cause = self._cause(self.happened[cause])
        return cause == event

    def _cause(self, entry: Entry) -> int:
        """The number of the event in which it was announced."""
        return bisect_right(self.announced, entry[1] - 1) - 1


def _are_rivals(entry: Entry, other: Entry) -> bool:
    """Whether they come to the same actor, and not on the same way."""
    return entry[2] is other[2] and entry[3] != other[3]
