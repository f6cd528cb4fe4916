"""The trials of each search."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.sim.faults import KINDS, Fault
from tests.sim.scenes import BEGINS_S, IN_SCENES, LASTS_S, SCENES
from tests.sim.search.states import history_of, is_over
from tests.sim.trial import Trial


def at_random(first_seed: int, count: int | None, *, lasts_s: float) -> Iterator[Trial]:
    """Callers at random under dense faults, a trial for each seed."""
    seed = first_seed
    while count is None or seed < first_seed + count:
        yield Trial.drawn(seed, lasts_s=lasts_s)
        seed += 1


def at_each_event(scene: str, *, kinds: tuple[str, ...] = tuple(KINDS), seed: int = 1) -> Iterator[Trial]:
    """One fault: every kind, at every event of the scene, for every process."""
    for at_event in events_of(scene, seed=seed):
        for kind in kinds:
            for who in (0,) if KINDS[kind].of_server else range(IN_SCENES.processes):
                yield Trial.of_scene(scene, Fault(kind, who, at_event=at_event, number=at_event), seed=seed)


def pairs(first_seed: int, count: int | None, *, kinds: tuple[str, ...] = tuple(KINDS)) -> Iterator[Trial]:
    """Two faults at two events of a scene, all drawn."""
    events = {scene: events_of(scene) for scene in SCENES}
    seed = first_seed
    while count is None or seed < first_seed + count:
        numbers = random.Random(f"{seed}/pair")
        scene = numbers.choice(sorted(SCENES))
        struck = [
            Fault(
                numbers.choice(kinds),
                numbers.randrange(IN_SCENES.processes),
                at_event=numbers.choice(events[scene]),
                number=number,
            )
            for number in range(2)
        ]
        yield Trial.of_scene(scene, *struck, seed=seed)
        seed += 1


def events_of(scene: str, *, seed: int = 1) -> list[int]:
    """After how many events a scene's own calls have got further: a fault between two of them is one after the first."""
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
