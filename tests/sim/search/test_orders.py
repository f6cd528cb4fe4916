"""The search of orders leaves out what is no other order, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from tests.sim.scenes import BEGINS_S
from tests.sim.search import orders
from tests.sim.search.mutated import in_mutant
from tests.sim.search.states import history_of, is_over
from tests.sim.trial import Trial
from tests.sim.world import SOON_S, Entry, World


@dataclass(frozen=True)
class Seen:
    """What a run was: who has seen what in which order, how many delays made another order, what could be delayed."""

    history: int
    reordered: int
    events: tuple[int, ...]


def seen_in(trial: Trial) -> Seen:
    """By brute force: whatever matters at all may be delayed."""
    simulation = trial.simulation()
    world, events, reordered = simulation.world, [], 0
    let_go = world._let_go

    def count(after: Entry) -> None:
        nonlocal reordered
        kept_back = len(world._late)
        let_go(after)
        reordered += kept_back - len(world._late)

    def watch(entry: Entry) -> None:
        if not world.delays and entry[0] >= BEGINS_S and simulation.matters(entry):
            events.append(world.events)

    world.watch, world._let_go = watch, count  # type: ignore[method-assign]
    simulation.begin()
    while not is_over(simulation):
        world.run(until_s=10.0, events=world.events + 1)
    simulation.clean_up()
    return Seen(history_of(simulation), reordered, tuple(events))


@pytest.mark.parametrize("scene", ["acquire", "takeover"])
def test_one_deviation_finds_the_orders_that_brute_force_finds(scene: str) -> None:
    first = Trial.of_scene(scene)
    brute = {seen_in(first).history}
    for event in seen_in(first).events:
        seen = seen_in(replace(first, delays=(event,)))
        if seen.reordered:
            brute.add(seen.history)
    tried = list(orders.trials(scene, deviations=1))
    assert {seen_in(trial).history for trial in tried} == brute
    assert len(tried) < len(seen_in(first).events) / 2  # and it did not take as much


def test_two_deviations_find_every_order_that_brute_force_finds() -> None:
    level, brute = [Trial.of_scene("acquire")], set()
    for deviations in range(3):
        seen = {trial: seen_in(trial) for trial in level}
        kept = {trial: each for trial, each in seen.items() if each.reordered == deviations}
        brute |= {each.history for each in kept.values()}
        level = [replace(trial, delays=(*trial.delays, event)) for trial, each in kept.items() for event in each.events]
    assert brute <= {seen_in(trial).history for trial in orders.trials("acquire", deviations=2)}


def test_no_order_is_tried_twice() -> None:
    tried = list(orders.trials("finish", deviations=2))
    assert len(set(tried)) == len(tried)
    assert [len(trial.delays) for trial in tried] == sorted(len(trial.delays) for trial in tried)


def test_a_mutant_that_only_another_order_shows_is_found_in_one_deviation() -> None:
    assert not in_mutant("foreign-release", broken_in, "handoff", 0)
    assert "holders_do_not_overlap" in in_mutant("foreign-release", broken_in, "handoff", 1)


def broken_in(scene: str, deviations: int) -> set[str]:
    """What any of the orders breaks."""
    every = orders.trials(scene, deviations=deviations)
    return {name for trial in every for name, _ in trial.run().violations}


class Log:
    """An actor that writes down what happens to it, and sends it on."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.lines: list[str] = []

    def first(self, what: str) -> None:
        self.lines.append(what)

    def second(self, what: str) -> None:
        self.lines.append(what)


def test_what_is_delayed_comes_just_behind_the_next_of_its_actor_from_elsewhere() -> None:
    world = World(1)
    world.delays = (0,)
    log, other = Log(world), Log(world)
    world.at(0.001, log, log.first, "a")
    world.at(0.002, other, other.second, "b")
    world.at(0.003, log, log.first, "c")
    world.at(0.004, log, log.second, "d")
    world.at(0.005, log, log.second, "e")
    world.run(until_s=1.0)
    assert log.lines == ["c", "d", "a", "e"]


def test_what_is_delayed_comes_after_a_while_where_nothing_else_does() -> None:
    world = World(1)
    world.delays = (0,)
    log = Log(world)
    world.at(0.001, log, log.first, "a")
    world.run(until_s=SOON_S)
    assert log.lines == []
    world.run(until_s=1.0)
    assert log.lines == ["a"]


def test_what_is_delayed_again_and_again_comes_behind_any_number() -> None:
    world = World(1)
    world.delays = (0, 1)
    log = Log(world)
    world.at(0.001, log, log.first, "a")
    world.at(0.002, log, log.second, "b")
    world.at(0.003, log, log.second, "c")
    world.run(until_s=1.0)
    assert log.lines == ["b", "c", "a"]


def test_two_may_be_delayed_at_once() -> None:
    world = World(1)
    world.delays = (0, 0)
    log, other = Log(world), Log(world)
    world.at(0.001, log, log.first, "a")
    world.at(0.002, other, other.first, "b")
    world.at(0.003, log, log.second, "c")
    world.at(0.004, other, other.second, "d")
    world.run(until_s=1.0)
    assert (log.lines, other.lines) == (["c", "a"], ["d", "b"])
