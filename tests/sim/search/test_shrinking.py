"""What is left of a trial is enough, and nothing of it could be left out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.sim.again import parsed
from tests.sim.search.mutated import in_mutant
from tests.sim.search.shrinking import broken_by, fewest, shrunk
from tests.sim.trial import Trial

SEEDS = 60


@given(st.sets(st.integers(0, 40), max_size=4), st.integers(0, 41))
def test_those_that_are_needed_are_left(needed: set[int], count: int) -> None:
    items = tuple(range(count))
    needed &= set(items)
    assert set(fewest(items, lambda some: needed <= set(some))) == needed


def test_a_trial_that_breaks_nothing_is_left_alone() -> None:
    trial = Trial.of_scene("acquire")
    assert shrunk(trial) == trial


def test_a_mutants_finding_is_shrunk_to_what_it_takes_and_its_command_reproduces_it() -> None:
    trial, shrunk_trial, broken, broken_again = in_mutant("claim-counted-from-hearing", shrink_first)
    assert len(trial.faults) > 3
    assert 1 <= len(shrunk_trial.faults) <= 3
    assert set(shrunk_trial.faults) < set(trial.faults)
    assert shrunk_trial.circumstances.processes <= trial.circumstances.processes
    assert broken[0] == broken_again[0]


def shrink_first() -> tuple[Trial, Trial, list[str], list[str]]:
    """The first trial that breaks something by its faults, what is left of it, what it breaks and what that breaks."""
    for seed in range(1, SEEDS):
        trial = Trial.drawn(seed, lasts_s=4.0)
        if len(trial.faults) > 3 and (broken := broken_by(trial)) and not broken_by(trial.with_faults(())):
            smaller = shrunk(trial)
            return trial, smaller, broken, broken_by(parsed(smaller.command))
    raise AssertionError("nothing found")
