"""All properties over one history."""

from __future__ import annotations

from collections.abc import Sequence

from tests.chaos.checks.acknowledged import acknowledged_is_there
from tests.chaos.checks.balances import balances_conserved
from tests.chaos.checks.bodies import bodies_end_with_their_leases
from tests.chaos.checks.busy import busy_is_true
from tests.chaos.checks.charges import charged_at_most_once, refused_not_charged, unknown_is_settled
from tests.chaos.checks.deadlocks import no_deadlocks
from tests.chaos.checks.early import leases_end_at_the_holder_first, nobodys_lock_is_given_back
from tests.chaos.checks.entries import entries_match_answers
from tests.chaos.checks.evidence import Event, Evidence
from tests.chaos.checks.fences import fences_rise, row_fence_rises
from tests.chaos.checks.healing import alive_after_healing, nothing_left_behind
from tests.chaos.checks.idle import no_lock_lies_idle
from tests.chaos.checks.losses import losses_have_a_cause
from tests.chaos.checks.moderation import little_is_asked
from tests.chaos.checks.order import order_of_arrival
from tests.chaos.checks.outages import outages_are_told
from tests.chaos.checks.overlap import holders_do_not_overlap, overlaps_are_explained
from tests.chaos.checks.patience import patience_is_kept
from tests.chaos.checks.register import consume_once_linearizable
from tests.chaos.checks.releases import no_foreign_release
from tests.chaos.checks.stray import no_stray_cancellation
from tests.chaos.checks.takeover import takeover_in_time
from tests.chaos.checks.told import told_of_loss_in_time
from tests.chaos.checks.vacuity import not_vacuous
from tests.chaos.checks.verdict import Thresholds, Verdict
from tests.chaos.checks.writes import stale_writes_refused

CHECKERS = (
    charged_at_most_once,
    acknowledged_is_there,
    refused_not_charged,
    unknown_is_settled,
    consume_once_linearizable,
    balances_conserved,
    entries_match_answers,
    holders_do_not_overlap,
    overlaps_are_explained,
    fences_rise,
    row_fence_rises,
    stale_writes_refused,
    no_foreign_release,
    takeover_in_time,
    no_lock_lies_idle,
    order_of_arrival,
    told_of_loss_in_time,
    bodies_end_with_their_leases,
    losses_have_a_cause,
    patience_is_kept,
    outages_are_told,
    busy_is_true,
    little_is_asked,
    leases_end_at_the_holder_first,
    nobodys_lock_is_given_back,
    no_stray_cancellation,
    alive_after_healing,
    nothing_left_behind,
    no_deadlocks,
)

# What a history can tell that has locks only, and no money.
LOCK_CHECKERS = (
    holders_do_not_overlap,
    overlaps_are_explained,
    fences_rise,
    no_foreign_release,
    takeover_in_time,
    no_lock_lies_idle,
    order_of_arrival,
    told_of_loss_in_time,
    bodies_end_with_their_leases,
    losses_have_a_cause,
    patience_is_kept,
    outages_are_told,
    busy_is_true,
    little_is_asked,
    leases_end_at_the_holder_first,
    nobodys_lock_is_given_back,
    no_stray_cancellation,
    nothing_left_behind,
)

_CHECKER_OF = {checker.__name__: checker for checker in CHECKERS}


def judge_one(property_name: str, events: Sequence[Event]) -> Verdict:
    """The verdict on one property, all but not_vacuous. Raises KeyError for another name."""
    return _CHECKER_OF[property_name](Evidence(events))


def judge_locks(events: Sequence[Event]) -> list[Verdict]:
    """A verdict on every property of the locks alone. `events`: in the order of time."""
    evidence = Evidence(events)
    return [checker(evidence) for checker in LOCK_CHECKERS]


def judge(events: Sequence[Event], *, thresholds: Thresholds | None = None) -> list[Verdict]:
    """A verdict on every property. `events`: in the order of time. Raises ValueError, KeyError for no history."""
    evidence = Evidence(events)
    verdicts = [checker(evidence) for checker in CHECKERS]
    return [*verdicts, not_vacuous(evidence, verdicts, thresholds or Thresholds())]
