"""The lies that can be planted in a good history: each is one small thing, and breaks its property."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from tests.chaos.checks.draft import CannotPlant, Draft, Row
from tests.chaos.checks.evidence import ALREADY_CHARGED, CHARGED, FOREVER, OK, REFUSED, Charge, Evidence, Operation
from tests.chaos.checks.fences import is_excused
from tests.chaos.checks.healing import HEALED_WITHIN_LEASES
from tests.chaos.checks.holds import Hold
from tests.chaos.checks.idle import EVERYBODY, excuses_of
from tests.chaos.checks.lies_exact import (
    asked_too_much,
    body_went_on,
    cancelled_by_nobody,
    kept_by_nobody,
    lost_for_nothing,
    overtaken,
    taken_early,
    told_busy,
    told_late,
    told_nothing,
    waited_on,
)
from tests.chaos.checks.spans import Spans
from tests.chaos.checks.takeover import takeovers_of

Lie = Callable[[Draft], None]


def charged_twice(draft: Draft) -> None:
    """An appointment has a second charge."""
    charge = draft.one_of(draft.evidence.charges or [])
    draft.add_row("user_consume", id=-1, appointment_id=charge.appointment, user_id=charge.payer, count=1)


def told_twice(draft: Draft) -> None:
    """A second operation was told that it charged."""
    charged = {operation.appointment for operation in _told(draft, CHARGED)}
    operation = draft.one_of([it for it in _told(draft, ALREADY_CHARGED) if it.appointment in charged])
    assert operation.answer is not None
    draft.replace(operation.answer, outcome=CHARGED)


def lost_charge(draft: Draft) -> None:
    """A charge that was told of is not there."""
    operation = draft.one_of(_told(draft, CHARGED))
    draft.change_rows("user_consume", lambda row: None if row["appointment_id"] == operation.appointment else row)


def other_charge(draft: Draft) -> None:
    """A charge has another count than was told."""
    told = [operation for operation in _told(draft, CHARGED) if (operation.answer or {}).get("count") is not None]
    appointment = draft.one_of(told).appointment
    draft.change_rows(
        "user_consume",
        lambda row: {**row, "count": row["count"] + 1} if row["appointment_id"] == appointment else row,
    )


def flag_not_set(draft: Draft) -> None:
    """A charged appointment is not marked as consumed."""
    charged = draft.one_of(draft.evidence.charges or []).appointment
    if draft.evidence.rows("appointment_info", "id") is None:
        raise CannotPlant
    draft.change_rows("appointment_info", lambda row: {**row, "is_consume": False} if row["id"] == charged else row)


def refused_but_entered(draft: Draft) -> None:
    """A refused operation has left an ENTER row."""
    settled = [answers for answers in draft.evidence.answers.values() if not answers.unknown]
    operation = draft.one_of([answers.refused[0] for answers in settled if answers.refused])
    draft.add_row("appointment_action", appointment_id=operation.appointment, user_id=operation.user)


def half_committed(draft: Draft) -> None:
    """An unknown operation has charged, and left no ENTER row."""
    charge = draft.one_of(_charged_by_unknown(draft))
    pair = (charge.appointment, charge.payer)
    kept = len(draft.evidence.answers[pair].let_in)

    def leave(row: Row) -> Row | None:
        nonlocal kept
        if (row["appointment_id"], row["user_id"]) != pair:
            return row
        kept -= 1
        return row if kept >= 0 else None

    draft.change_rows("appointment_action", leave)


def charged_before_asked(draft: Draft) -> None:
    """Somebody found an appointment charged before anybody had asked to enter it."""
    operation = draft.one_of(_told(draft, CHARGED))
    first = min(it.invoked for it in draft.evidence.enters if it.appointment == operation.appointment)
    asked = {"op": "lie", "f": "enter", "appointment": operation.appointment, "user": operation.user}
    draft.add("invoke", first - 2, **asked)
    draft.add("ok", first - 1, op="lie", status=200, outcome=ALREADY_CHARGED)


def coupon_too_many(draft: Draft) -> None:
    """One snapshot has a coupon too many."""
    snapshot = draft.one_of(draft.evidence.by_kind["snapshot"])
    draft.replace(snapshot, left=snapshot["left"] + 1)


def coupon_lost(draft: Draft) -> None:
    """At the end a user has a coupon too few."""
    user = draft.one_of(draft.evidence.rows("user_coupon", "user_id") or [])[0]
    draft.change_rows("user_coupon", lambda row: {**row, "count": row["count"] - (row["user_id"] == user)})


def entry_lost(draft: Draft) -> None:
    """The ENTER rows of somebody who was let in are gone."""
    let_in = [pair for pair, answers in draft.evidence.answers.items() if answers.let_in]
    appointment, user = draft.one_of(let_in)
    draft.change_rows(
        "appointment_action",
        lambda row: None if row["appointment_id"] == appointment and row["user_id"] == user else row,
    )


def entry_too_many(draft: Draft) -> None:
    """An ENTER row of which nobody has asked."""
    charge = draft.one_of(draft.evidence.charges or [])
    draft.add_row("appointment_action", appointment_id=charge.appointment, user_id=-1)


def two_holders(draft: Draft) -> None:
    """A client had a lock as well, while its holder was in its best health."""
    holds = [it for it in draft.evidence.holds if it.how == "releasing" and it.ended - it.began > 2]
    hold = draft.one_of([it for it in holds if it.fence is not None and _is_healthy(it, draft.evidence)])
    middle = (hold.began + hold.ended) // 2
    facts = {"i": "liar", "life": 1, "name": hold.name, "fence": (hold.fence or 0) + 1, "until": hold.ended}
    draft.add("point", middle, p="acquired", queued=False, **facts)


def cause_hidden(draft: Draft) -> None:
    """The faults and standstills that explain overlaps are not in the history."""
    if not draft.evidence.overlaps:
        raise CannotPlant
    draft.remove(lambda event: event["e"] in ("fault", "healed", "stall") or event.get("p") == "forced")


def fences_swapped(draft: Draft) -> None:
    """Two holds of one lock have each other's token."""
    pairs = [
        (before, after)
        for holds in draft.evidence.holds_by_name.values()
        for before, after in pairwise(holds)
        if before.ended < after.began and before.fence is not None and after.fence is not None
        if not is_excused(before, after, draft.evidence)
    ]
    before, after = draft.one_of(pairs)
    draft.swap_fences(before, after)


def fence_of_nobody(draft: Draft) -> None:
    """The token of a charge is nobody's."""
    fenced = [charge for charge in draft.evidence.charges or () if charge.fence is not None]
    if not draft.evidence.holds:
        raise CannotPlant
    appointment = draft.one_of(fenced).appointment
    draft.change_rows(
        "user_consume", lambda row: {**row, "lock_fence": -1} if row["appointment_id"] == appointment else row
    )


def stale_write_accepted(draft: Draft) -> None:
    """A write that was refused as stale was accepted."""
    log = draft.evidence.rows("chaos_register_log", "n", "name", "fence", "accepted") or []
    greatest: dict[str, int] = {}
    stale = []
    for n, name, fence, accepted in sorted(log):
        if accepted:
            greatest[name] = max(fence, greatest.get(name, 0))
        elif fence < greatest.get(name, 0):
            stale.append(n)
    lie = draft.one_of(stale)
    draft.change_rows("chaos_register_log", lambda row: {**row, "accepted": row["accepted"] or row["n"] == lie})


def foreign_release(draft: Draft) -> None:
    """A stale holder's release was answered with "still yours"."""
    overlaps = [
        overlap.earlier
        for overlap in draft.evidence.overlaps
        if overlap.earlier.still_ours is False and (overlap.earlier.fence or 0) < (overlap.later.fence or 0)
    ]
    draft.change_hold(draft.one_of(overlaps), still_ours=True)


def late_takeover(draft: Draft) -> None:
    """Less was left of a dead holder's lease than the next one waited."""
    takeover = draft.one_of([it for it in takeovers_of(draft.evidence)[0] if it.took_ms is not None])
    death = next(event for event in draft.evidence.by_kind["died"] if event["t"] == takeover.died)
    left_ms = (takeover.took_ms or 0) - takeover.grace_ms - 1
    held = [{**lock, "left_ms": left_ms} if lock["name"] == takeover.name else lock for lock in death["held"]]
    draft.replace(death, held=held)


def lock_forgotten(draft: Draft) -> None:
    """Somebody waited in vain, for a lease, for a lock that nobody had."""
    lease_ns = draft.evidence.lease_ttl_ns
    broken = excuses_of(draft.evidence).get(EVERYBODY, Spans(()))
    deaths = {(death["i"], death["life"]): death["t"] for death in draft.evidence.by_kind["died"]}
    began = draft.one_of(
        [
            point
            for point in draft.evidence.points.get("waiting", ())
            if not broken.touch(point["t"], point["t"] + lease_ns)
            and deaths.get((point["i"], point["life"]), FOREVER) > point["t"] + lease_ns
        ]
    )
    who = {"i": began["i"], "life": began["life"], "name": "appointment:0"}
    draft.add("point", began["t"], p="waiting", **who)
    draft.add("point", began["t"] + lease_ns, p="gave_up", outcome="busy", queued=True, **who)


def locked_out(draft: Draft) -> None:
    """Somebody was turned away long after all faults were over."""
    healing = draft.one_of(draft.evidence.by_kind["healing"])["t"]
    settled = healing + HEALED_WITHIN_LEASES * draft.evidence.lease_ttl_ns
    late = [it for it in draft.evidence.enters if it.invoked >= settled and it.result == OK]
    answer = draft.one_of(late).answer
    assert answer is not None
    draft.replace(answer, e=REFUSED, code="overloaded", charged=False)


def something_left(draft: Draft) -> None:
    """A key is left behind."""
    draft.replace(draft.one_of(draft.evidence.by_kind["left"][-1:]), keys=["lock:{appointment:1}"])


LIES: tuple[tuple[Lie, str], ...] = (
    (charged_twice, "charged_at_most_once"),
    (told_twice, "charged_at_most_once"),
    (lost_charge, "acknowledged_is_there"),
    (other_charge, "acknowledged_is_there"),
    (flag_not_set, "acknowledged_is_there"),
    (refused_but_entered, "refused_not_charged"),
    (half_committed, "unknown_is_settled"),
    (charged_before_asked, "consume_once_linearizable"),
    (coupon_too_many, "balances_conserved"),
    (coupon_lost, "balances_conserved"),
    (entry_lost, "entries_match_answers"),
    (entry_too_many, "entries_match_answers"),
    (two_holders, "holders_do_not_overlap"),
    (cause_hidden, "overlaps_are_explained"),
    (fences_swapped, "fences_rise"),
    (fence_of_nobody, "row_fence_rises"),
    (stale_write_accepted, "stale_writes_refused"),
    (foreign_release, "no_foreign_release"),
    (late_takeover, "takeover_in_time"),
    (lock_forgotten, "no_lock_lies_idle"),
    (overtaken, "order_of_arrival"),
    (told_late, "told_of_loss_in_time"),
    (body_went_on, "bodies_end_with_their_leases"),
    (lost_for_nothing, "losses_have_a_cause"),
    (waited_on, "patience_is_kept"),
    (told_nothing, "outages_are_told"),
    (told_busy, "busy_is_true"),
    (asked_too_much, "little_is_asked"),
    (taken_early, "leases_end_at_the_holder_first"),
    (kept_by_nobody, "nobodys_lock_is_given_back"),
    (cancelled_by_nobody, "no_stray_cancellation"),
    (locked_out, "alive_after_healing"),
    (something_left, "nothing_left_behind"),
)


def _told(draft: Draft, outcome: str) -> list[Operation]:
    charges = draft.evidence.charges_by_appointment
    return [it for it in draft.evidence.enters if it.outcome == outcome and it.appointment in charges]


def _charged_by_unknown(draft: Draft) -> list[Charge]:
    evidence = draft.evidence
    told = {operation.appointment for operation in evidence.enters if operation.outcome == CHARGED}
    untold = [charge for charge in evidence.charges or () if charge.appointment not in told]
    return [charge for charge in untold if evidence.answers[charge.appointment, charge.payer].unknown]


def _is_healthy(hold: Hold, evidence: Evidence) -> bool:
    """Whether nothing had befallen its holder or the store for some leases."""
    since = hold.began - 3 * evidence.lease_ttl_ns
    scopes = [it for it in evidence.fault_spans if it in ("redis", f"link:{hold.i}:redis") or it.startswith("clock:")]
    spans = [evidence.standstills_of(hold.i), *(evidence.spans_of(scope) for scope in scopes)]
    return not any(it.touch(since, hold.ended) for it in spans)
