"""Each broken variant of the locks is found by the simulation, and by the same searches nothing in the whole one."""

from __future__ import annotations

import itertools

import pytest

from tests.chaos.checks import PROPERTIES
from tests.sim.mutants import SHOWS_IN, SIM_MUTANTS
from tests.sim.scenes import SCENES
from tests.sim.search.hunting import hunts, mixed
from tests.sim.search.running import judged

CPU_S = 60.0
WHOLE_RUNS = 60


@pytest.mark.parametrize("mutant", sorted(SIM_MUTANTS))
def test_what_a_mutant_replaces_is_in_the_product(mutant: str) -> None:
    for edit in SIM_MUTANTS[mutant].edits:
        edit.check()


def test_mutants_name_properties_and_scenes_that_there_are() -> None:
    assert {name for mutant in SIM_MUTANTS.values() for name in mutant.caught_by} <= set(PROPERTIES)
    assert {scene for scenes in SHOWS_IN.values() for scene in scenes} <= set(SCENES)
    assert set(SHOWS_IN) <= set(SIM_MUTANTS)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", sorted(SIM_MUTANTS))
def test_a_mutant_is_found_by_what_it_breaks(mutant: str) -> None:
    [found] = hunts(mutant, [0], cpu_s=CPU_S)
    assert found.by, f"not within {found.runs} runs"


@pytest.mark.parametrize("shows_in", sorted({(), *SHOWS_IN.values()}))
def test_the_whole_product_is_found_whole(shows_in: tuple[str, ...]) -> None:
    _, findings = judged(itertools.islice(mixed(0, shows_in), WHOLE_RUNS))
    assert not findings, "\n".join(map(str, findings))
