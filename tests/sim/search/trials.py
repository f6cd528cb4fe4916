"""The trials of each search."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from tests.sim.faults import KINDS, Fault
from tests.sim.scenes import IN_SCENES, SCENES
from tests.sim.trial import Trial

ALIKE = (None, None, True, False)  # a pair of any faults, or of such that forget, or of others
SCENE_ENDS_S = 1.2  # what happens later in a scene is the quiet after it


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


def pairs(
    first_seed: int,
    count: int | None,
    *,
    kinds: tuple[str, ...] = tuple(KINDS),
    scenes: Sequence[str] = tuple(sorted(SCENES)),
) -> Iterator[Trial]:
    """Two faults at two events of one of these scenes, all drawn."""
    ranges = {scene: events_of(scene) for scene in scenes}
    seed = first_seed
    while count is None or seed < first_seed + count:
        numbers = random.Random(f"{seed}/pair")
        scene = numbers.choice(scenes)
        alike = numbers.choice(ALIKE)
        pool = [kind for kind in kinds if alike is None or KINDS[kind].forgets is alike] or kinds
        struck = [
            Fault(
                numbers.choice(pool),
                numbers.randrange(IN_SCENES.processes),
                at_event=numbers.choice(ranges[scene]),
                number=number,
            )
            for number in range(2)
        ]
        yield Trial.of_scene(scene, *struck, seed=seed)
        seed += 1


def events_of(scene: str, *, seed: int = 1) -> range:
    """The numbers of the scene's own events: from the first call to the quiet after it."""
    simulation = Trial.of_scene(scene, seed=seed).simulation()
    simulation.begin()
    world = simulation.world
    first = 0
    while world.now_s < SCENE_ENDS_S:
        world.run(until_s=SCENE_ENDS_S, events=world.events + 1)
        if not first and any(place.tasks for place in simulation.places.values()):
            first = world.events
    simulation.clean_up()
    return range(first, world.events)
