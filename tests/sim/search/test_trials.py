"""What the searches try: each once, and nothing twice."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from tests.sim.faults import KINDS
from tests.sim.scenes import BEGINS_S, IN_SCENES, LASTS_S, SCENES, tasks_of
from tests.sim.search import trials
from tests.sim.search.states import history_of, is_over
from tests.sim.trial import Trial


@pytest.mark.parametrize("scene", ["acquire", "takeover"])
def test_a_fault_of_each_kind_at_each_event_for_each_process_is_tried_once(scene: str) -> None:
    tried = Counter(
        (fault.at_event, fault.kind, fault.who) for trial in trials.at_each_event(scene) for fault in trial.faults
    )
    assert tried == Counter(
        (event, name, who)
        for event in trials.events_of(scene)
        for name, kind in KINDS.items()
        for who in ([0] if kind.of_server else range(IN_SCENES.processes))
    )


@pytest.mark.parametrize("scene", sorted(SCENES))
def test_nothing_is_seen_between_the_events_of_a_scene(scene: str) -> None:
    events = trials.events_of(scene)
    simulation = Trial.of_scene(scene).simulation()
    simulation.begin()
    simulation.world.run(until_s=BEGINS_S)
    begins, history = simulation.world.events, history_of(simulation)
    changed = [begins]
    while not is_over(simulation):
        simulation.world.run(until_s=LASTS_S, events=simulation.world.events + 1)
        if history_of(simulation) != history and not is_over(simulation):
            changed.append(simulation.world.events)
        history = history_of(simulation)
    simulation.clean_up()
    assert events == changed
    assert len(events) < simulation.world.events - begins  # there are quiet ones, which are left out


def test_the_quiet_before_and_after_a_scene_is_no_event_of_it() -> None:
    simulation = Trial.of_scene("release").simulation()
    simulation.begin()
    world, events = simulation.world, trials.events_of("release")
    world.run(until_s=10.0, events=events[0])
    began_s = world.now_s
    world.run(until_s=10.0, events=events[-1])
    ends_s = world.now_s
    world.run(until_s=ends_s + 0.01)
    assert all(task.done() for place in simulation.places.values() for task in tasks_of(place))
    simulation.clean_up()
    assert began_s <= BEGINS_S + 0.001
    assert ends_s < 0.2


def test_pairs_are_drawn_from_all_scenes_kinds_and_processes_and_are_the_same_for_each_seed() -> None:
    drawn = list(trials.pairs(1, 400))
    assert drawn == list(trials.pairs(1, 400))
    assert list(trials.pairs(11, 5)) == drawn[10:15]
    assert {trial.scene for trial in drawn} == set(SCENES)
    assert {fault.kind for trial in drawn for fault in trial.faults} == set(KINDS)
    assert {fault.who for trial in drawn for fault in trial.faults} == set(range(IN_SCENES.processes))
    for trial in drawn:
        assert trial.scene is not None
        assert [fault.number for fault in trial.faults] == [0, 1]


def test_single_faults_are_drawn_without_end() -> None:
    assert [len(trial.faults) for trial in itertools.islice(trials.at_some_events(1), 50)] == [1] * 50
