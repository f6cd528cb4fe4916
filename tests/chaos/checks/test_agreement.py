"""The checkers against other ways to know: an exhaustive search, lies planted in good histories, plain counting."""

from __future__ import annotations

from random import Random

import pytest

from tests.chaos.checks.canary import canaries, plant
from tests.chaos.checks.cross_check import cross_check, has_some_order, small_history
from tests.chaos.checks.generated import generated
from tests.chaos.checks.generated_locks import generated_locks
from tests.chaos.checks.histories import HandWritten
from tests.chaos.checks.holds import Hold, overlaps_of
from tests.chaos.checks.judging import judge, judge_locks, judge_one
from tests.chaos.checks.lies import LIES
from tests.chaos.checks.spans import Spans

OF_LOCKS = {"two_holders", "cause_hidden", "fences_swapped", "foreign_release", "late_takeover"}


def test_the_linearizability_checker_agrees_with_an_exhaustive_search() -> None:
    result = cross_check(20_000, seed=7)

    assert result.disagreements == []
    assert 0.2 < result.linearizable / result.histories < 0.8  # both kinds occur


def test_the_search_knows_right_from_wrong() -> None:
    found = {has_some_order(small_history(Random(seed))) for seed in range(50)}

    assert found == {True, False}


def test_every_lie_that_is_planted_is_caught() -> None:
    of_chaos = canaries(generated(3, operations=2500), Random(3))
    exact = canaries(generated_locks(3, events=2500), Random(3))

    assert of_chaos.missed == exact.missed == []
    assert set(of_chaos.impossible) == {
        "overtaken",
        "told_late",
        "body_went_on",
        "lost_for_nothing",
        "waited_on",
        "told_nothing",
        "told_busy",
        "asked_too_much",
        "taken_early",
        "kept_by_nobody",
        "cancelled_by_nobody",
    }
    assert set(exact.caught) >= set(of_chaos.impossible) | OF_LOCKS
    assert {*of_chaos.caught, *exact.caught} == {lie.__name__ for lie, _ in LIES}


def test_a_lie_breaks_a_history_that_was_good_and_leaves_the_original_as_it_was() -> None:
    events = generated(4, operations=600)
    for seed in range(20):
        planted, broken = plant(events, Random(seed))
        assert judge_one(broken, planted).holds is False
        assert judge_one(broken, events).holds is not False


def test_an_empty_history_has_no_place_for_a_lie() -> None:
    result = canaries(HandWritten().events, Random(1))

    assert (result.caught, result.missed) == ([], [])


@pytest.mark.parametrize("seed", range(5))
def test_a_generated_history_is_good(seed: int) -> None:
    assert [verdict for verdict in judge(generated(seed, operations=500)) if verdict.holds is False] == []


@pytest.mark.parametrize("seed", range(20))
def test_a_generated_exact_history_is_good_in_all_that_it_tells(seed: int) -> None:
    verdicts = judge_locks(generated_locks(seed, events=4000))

    assert [verdict for verdict in verdicts if verdict.holds is False] == []
    assert [verdict.property for verdict in verdicts if verdict.holds is None] == ["nothing_left_behind"]


@pytest.mark.parametrize("seed", range(3))
def test_the_locks_alone_are_judged_as_with_all_the_rest(seed: int) -> None:
    for events in (generated_locks(seed, events=300), generated(seed, operations=300)):
        verdicts = {verdict.property: verdict for verdict in judge(events)}
        of_locks = judge_locks(events)
        assert of_locks == [verdicts[verdict.property] for verdict in of_locks]


def test_overlaps_are_those_that_every_pair_compared_finds() -> None:
    rng = Random(1)
    for _ in range(300):
        holds = [hold(rng.randrange(20), rng.randrange(20)) for _ in range(rng.randrange(8))]
        holds.sort(key=lambda it: it.began)
        pairs = {(id(overlap.earlier), id(overlap.later)) for overlap in overlaps_of(holds)}
        expected = {
            (id(one), id(other))
            for place, one in enumerate(holds)
            for other in holds[place + 1 :]
            if min(one.ended, other.ended) > max(one.began, other.began)
        }
        assert pairs == expected


def test_spans_cover_what_their_moments_cover() -> None:
    rng = Random(1)
    for _ in range(300):
        given = [tuple(sorted((rng.randrange(30), rng.randrange(30)))) for _ in range(rng.randrange(6))]
        spans = Spans((begin, end) for begin, end in given)
        begin, end = sorted((rng.randrange(30), rng.randrange(30)))
        covered = {moment for first, last in given for moment in range(first, last)}
        assert spans.within(begin, end) == len(covered & set(range(begin, end)))
        assert spans.touch(begin, end) == any(first <= end and last >= begin for first, last in given)


def hold(one: int, other: int) -> Hold:
    """A hold between two moments."""
    made = Hold("appointment:1", 1, 1, 1, min(one, other), 0)
    made.ended = max(one, other)
    return made
