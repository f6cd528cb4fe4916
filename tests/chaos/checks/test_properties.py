"""Each property on hand-written histories, good and bad."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.checks import PROPERTIES, Thresholds, Verdict, exit_code, in_words, judge, worst_of
from tests.chaos.checks.all_cases import CASES
from tests.chaos.checks.breaking import Broken, exposed_by
from tests.chaos.checks.broken import BROKEN
from tests.chaos.checks.cases import Case
from tests.chaos.checks.cases_charges import charged_and_repeated, order
from tests.chaos.checks.cases_locks import LOCK, died, held
from tests.chaos.checks.cases_overlaps import lost
from tests.chaos.checks.generated import generated
from tests.chaos.checks.histories import HandWritten

# Of which a chaos history does not tell.
OF_EXACT_HISTORIES = {
    "order_of_arrival",
    "told_of_loss_in_time",
    "bodies_end_with_their_leases",
    "losses_have_a_cause",
    "patience_is_kept",
    "outages_are_told",
    "busy_is_true",
    "little_is_asked",
    "leases_end_at_the_holder_first",
    "nobodys_lock_is_given_back",
    "no_stray_cancellation",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hand_written_history_breaks_what_it_is_meant_to_break_and_nothing_else(case: Case) -> None:
    assert case.found_broken() == case.breaks


def test_there_is_a_bad_history_for_each_property() -> None:
    assert frozenset().union(*(case.breaks for case in CASES)) == set(PROPERTIES) - {"not_vacuous"}


def test_no_name_is_given_twice() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert len({broken.name for broken in BROKEN}) == len(BROKEN)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_a_broken_checker_is_exposed_by_some_hand_written_history(broken: Broken) -> None:
    assert exposed_by(broken) is not None


def test_a_history_of_nothing_is_unknown_and_nothing_is_broken() -> None:
    verdicts = judge([])

    assert [verdict.property for verdict in verdicts] == list(PROPERTIES)
    assert {verdict.property for verdict in verdicts if verdict.holds is not None} == {"not_vacuous"}
    assert exit_code(verdicts) == 2


def test_a_whole_good_run_is_found_good() -> None:
    verdicts = judge(generated(1, operations=3000))

    assert {verdict.property for verdict in verdicts if not verdict.holds} == OF_EXACT_HISTORIES
    assert exit_code(verdicts) == 0


def test_without_the_final_tables_what_they_would_tell_is_unknown() -> None:
    events = [event for event in generated(1, operations=300) if event["e"] != "rows"]

    unknown = {verdict.property for verdict in judge(events) if verdict.holds is None}
    assert {"charged_at_most_once", "acknowledged_is_there", "refused_not_charged", "unknown_is_settled"} <= unknown
    assert {"balances_conserved", "entries_match_answers", "row_fence_rises"} <= unknown


def test_a_broken_property_shows_the_operations() -> None:
    verdict = judged("consume_once_linearizable", order("a", "a=charged", "b", "b=insufficient-coupons"))

    assert verdict.examples[0].ops == ("a", "b")
    assert "appointment 7" in verdict.examples[0].text


def test_unknown_operations_that_had_committed_are_counted() -> None:
    history = charged_and_repeated().entry_rows((7, 2), (8, 1))
    history.enter("c", 7, 2).unknown("c").enter("d", 8, 1).unknown("d").enter("e", 8, 2).unknown("e")

    verdict = judged("unknown_is_settled", history)
    assert (verdict.counts["unknowns"], verdict.counts["committed"], verdict.counts["charged"]) == (3, 2, 0)


def test_overlaps_are_counted_by_cause_with_the_longest() -> None:
    history = lost(1, 5, from_ms=10, to_ms=912).hold(2, LOCK, 6, from_ms=615, to_ms=700)
    history.fault(1, "freeze", "instance:1", from_ms=30, to_ms=910, point="decided")

    counts = judged("overlaps_are_explained", history).counts
    assert counts["by_freeze"] == 1
    assert counts["longest_ms_by_freeze"] == pytest.approx(85)


def test_the_excess_of_takeovers_is_measured_and_the_others_are_counted_by_reason() -> None:
    verdict = judged("takeover_in_time", died(left_ms=500, took_ms=520))
    assert verdict.counts["excess_ms_max"] == pytest.approx(20)

    away = died(took_ms=900).fault(1, "redis_restart", "redis", from_ms=300, to_ms=900)
    verdict = judged("takeover_in_time", away)
    assert (verdict.holds, verdict.counts["excluded_store_fault"]) == (None, 1)


def test_a_takeover_that_nothing_asked_for_does_not_spoil_a_run_but_a_threshold_does() -> None:
    events = [event for event in generated(1, operations=300) if event["e"] != "died"]
    without = [verdict for verdict in judge(events) if verdict.property == "takeover_in_time"]
    wanted = judge(events, thresholds=Thresholds(takeovers=1))[-1:]

    assert (without[0].holds, exit_code(without)) == (None, 0)
    assert (wanted[0].holds, exit_code(wanted)) == (None, 2)
    assert wanted[0].examples[0].text == "takeovers: 0, wanted 1"


def test_the_sentence_counts_what_held_and_names_what_is_broken_or_unknown() -> None:
    good = judge(generated(1, operations=3000))
    verdicts = {verdict.property: replace(verdict, holds=True) for verdict in good}
    unknown = {name: replace(verdict, holds=None) for name, verdict in verdicts.items()}
    broken = replace(verdicts["fences_rise"], holds=False)

    def told(**changed: Verdict) -> str:
        return in_words(list((verdicts | changed).values()))

    count = len(PROPERTIES)
    assert told() == f"{count} held"
    without_occasion = {name: unknown[name] for name in ("takeover_in_time", "no_deadlocks")}
    assert told(**without_occasion) == (
        f"{count - 2} held, 2 unknown; unknown for want of an occasion: takeover_in_time, no_deadlocks"
    )
    assert told(not_vacuous=unknown["not_vacuous"], no_deadlocks=unknown["no_deadlocks"], fences_rise=broken) == (
        f"{count - 3} held, 1 broken, 2 unknown; broken: fences_rise; unknown: not_vacuous;"
        " unknown for want of an occasion: no_deadlocks"
    )


def test_of_several_runs_the_worst_counts_wherever_it_stood() -> None:
    assert [worst_of(codes) for codes in ([], [0, 0], [2, 0], [0, 1, 2], [2, 1, 0])] == [0, 0, 2, 1, 1]


def test_a_cell_that_was_not_hit_is_named() -> None:
    history = HandWritten().fault(1, "die", "instance:1", from_ms=10, to_ms=20, point="decided")
    history.fault(2, "freeze", "instance:1", from_ms=30, to_ms=40)
    cells = frozenset({("decided", "die"), ("decided", "freeze")})

    verdict = judge(history.events, thresholds=Thresholds(cells=cells))[-1]
    assert verdict.holds is None
    assert [example.text for example in verdict.examples] == ["the cell decided × freeze was not hit"]


def test_each_threshold_can_be_missed_and_reached() -> None:
    events = generated(1, operations=300)
    seen = judge(events)[-1].counts
    for name, there in seen.items():
        if name in Thresholds.__dataclass_fields__ and name != "cells":
            assert judge_vacuity(events, **{name: there}) is True, name
            assert judge_vacuity(events, **{name: there + 1}) is None, name


def test_a_broken_property_outweighs_an_unknown_one() -> None:
    verdicts = judge(held((1, 5, 10, 20), (2, 6, 15, 30)).events)

    assert any(verdict.holds is None for verdict in verdicts)
    assert exit_code(verdicts) == 1


def test_an_unknown_property_that_nobody_asked_for_is_no_failure() -> None:
    verdicts = judge(held((1, 5, 10, 20)).events)

    assert exit_code(verdicts, asked={"holders_do_not_overlap", "fences_rise"}) == 0


def judged(property_name: str, history: HandWritten) -> Verdict:
    """The verdict on one property."""
    return next(verdict for verdict in judge(history.events) if verdict.property == property_name)


def judge_vacuity(events: list[dict[str, object]], **least: float) -> bool | None:
    """Whether the history meets these thresholds."""
    return judge(events, thresholds=Thresholds(**least))[-1].holds  # type: ignore[arg-type]
