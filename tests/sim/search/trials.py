"""The trials of each search."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

from tests.sim.faults import KINDS, Fault
from tests.sim.scenes import BEGINS_S, IN_SCENES, LASTS_S, SCENES
from tests.sim.search.states import history_of, is_over
from tests.sim.trial import Trial

ALIKE = (None, None, True, False)  # a pair of any faults, or of such that forget, or of others


def at_random(first_seed: int, count: int | None, *, lasts_s: float) -> Iterator[Trial]:
    """Callers at random under dense faults, a trial for each seed."""
    for seed in itertools.count(first_seed) if count is None else range(first_seed, first_seed + count):
        yield Trial.drawn(seed, lasts_s=lasts_s)


def at_each_event(scene: str, *, kinds: tuple[str, ...] = tuple(KINDS), seed: int = 1) -> Iterator[Trial]:
    """One fault: every kind, at every event of the scene, for every process."""
    for at_event in events_of(scene, seed=seed):
        for kind in kinds:
            for who in (0,) if KINDS[kind].of_server else range(IN_SCENES.processes):
                yield Trial.of_scene(scene, Fault(kind, who, at_event=at_event, number=at_event), seed=seed)


def at_some_events(first_seed: int) -> Iterator[Trial]:
    """One fault: some of at_each_event's, of all scenes, drawn without end."""
    return _drawn(first_seed, None, "single", faults=1, scenes=sorted(SCENES))


def pairs(first_seed: int, count: int | None, *, scenes: Sequence[str] = tuple(sorted(SCENES))) -> Iterator[Trial]:
    """Two faults at two events of one of these scenes, all drawn."""
    return _drawn(first_seed, count, "pair", faults=2, scenes=scenes)


def _drawn(first_seed: int, count: int | None, what: str, *, faults: int, scenes: Sequence[str]) -> Iterator[Trial]:
    kinds = tuple(KINDS)
    events = {scene: events_of(scene) for scene in scenes}
    for seed in itertools.count(first_seed) if count is None else range(first_seed, first_seed + count):
        numbers = random.Random(f"{seed}/{what}")
        scene = numbers.choice(scenes)
        alike = numbers.choice(ALIKE)
        pool = [kind for kind in kinds if alike is None or KINDS[kind].forgets is alike]
        struck = [
            Fault(
                numbers.choice(pool),
                numbers.randrange(IN_SCENES.processes),
                at_event=numbers.choice(events[scene]),
                number=number,
            )
            for number in range(faults)
        ]
        yield Trial.of_scene(scene, *struck, seed=seed)


def events_of(scene: str, *, seed: int = 1) -> list[int]:
    """After how many events a scene's own calls have got further; a fault later on, before the next, is the same."""
    simulation = Trial.of_scene(scene, seed=seed).simulation()
    world, events, history = simulation.world, [], 0
    simulation.begin()
    world.run(until_s=BEGINS_S)
    while not is_over(simulation):
        if (now := history_of(simulation)) != history:
            history = now
            events.append(world.events)
        world.run(until_s=LASTS_S, events=world.events + 1)
    simulation.clean_up()
    return events
