"""A lease that is kept extended is lost only where something has befallen its process, the store, or the lease; and
whoever loses one is told the reason that it was."""

from __future__ import annotations

from tests.chaos.checks.bodies import Body, bodies_of
from tests.chaos.checks.causes import granted_after, taken_away, was_forced
from tests.chaos.checks.evidence import Event, Evidence
from tests.chaos.checks.holds import Hold, Lease
from tests.chaos.checks.promises import CLAIM_MS, CLOCK_RATES, MS, SLOT_MS
from tests.chaos.checks.quiet import is_disturbed
from tests.chaos.checks.verdict import Example, Verdict, found

NAME = "losses_have_a_cause"
DELAYS = 4  # a shorter lease may be over before an answer is there: its two last thirds are less than three delays
LEAST_LEFT_MS = 1  # the server counts in whole ones
FORCED, DELETED = "forced", "deleted"
OVER = frozenset({"expired", "unreachable"})
LEAST_CLAIM_NS = CLAIM_MS * MS // 3  # nobody begins under what is left of one when it is less


def losses_have_a_cause(evidence: Evidence) -> Verdict:
    """No body of a hold was told of a loss if nobody had used force, and nothing was amiss for as long as a lease.

    Nor was anybody told of a reason that it cannot have been, or that a lease is over which it has lent, and which is
    held.
    """
    if not evidence.slack.is_exact:
        return found(NAME, [], checked=0, missing="the history does not tell of bodies")
    bodies = [body for body in bodies_of(evidence) if _is_kept(body, evidence)]
    lost = [body for body in bodies if body.lost is not None and body.is_clear]
    violations = [
        Example(f"{body} was told of a loss that has no cause", body.lost)
        for body in lost
        if not _has_cause(body, evidence)
    ]
    violations += [
        Example(f"{hold}: told that it is {hold.loss_reason}, which it was not", hold.left)
        for hold in evidence.holds
        if not _is_named(hold, evidence)
    ]
    lent = {(hold.name, hold.fence): hold.began for hold in evidence.holds if hold.is_outside}
    violations += [
        Example(
            f"{it['i']} was told of the loss of {it['name']}, lent under token {it['fence']}, which is held", it["t"]
        )
        for it in evidence.points.get("keeper_lost", ())
        if _is_held(it, lent, evidence)
    ]
    missing = None if bodies else "the history has no body of a hold that is kept"
    return found(NAME, violations, checked=len(bodies), counts={"lost": len(lost)}, missing=missing)


def _is_kept(body: Body, evidence: Evidence) -> bool:
    """Whether its lease was extended for as long as it lasted, and was long enough for that; a claim is so at first."""
    if body.kept_ns is None:
        return False
    is_claim = body.lost is not None and body.lost - body.began < CLAIM_MS * MS
    return min(body.kept_ns, LEAST_CLAIM_NS if is_claim else body.kept_ns) > DELAYS * evidence.slack.delay_ns


def _has_cause(body: Body, evidence: Evidence) -> bool:
    i, _, name, fence = body.key
    assert body.lost is not None
    assert body.kept_ns is not None
    since = body.lost - body.kept_ns
    return is_disturbed(evidence, i, since, body.lost) or was_forced(name, fence, since, body.lost, evidence)


def _is_held(loss: Event, lent: dict[Lease, int], evidence: Evidence) -> bool:
    """Whether a lease that a client has goes on at the server, of which its keeper was told that it is lost.

    `lent`: when each was (ns).
    """
    lease_ns, t = evidence.lease_ttl_ns, loss["t"]
    forgot = evidence.store_forgot(t - lease_ns, t) or evidence.clock_moved(loss["i"], t - lease_ns, t)
    lent_at = lent.get((loss["name"], loss["fence"]), t)
    return lent_at < t and loss["left_ms"] > LEAST_LEFT_MS and not forgot


def _is_named(hold: Hold, evidence: Evidence) -> bool:
    """Whether it was told how its lease was lost as that can have been."""
    reason, left = hold.loss_reason, hold.left
    if reason is None or left is None or hold.until is None:
        return True
    granted, slot_ns = granted_after(hold, evidence), round(SLOT_MS * MS * (1 + CLOCK_RATES))
    is_over = left >= hold.until - slot_ns
    forced = was_forced(hold.name, hold.fence, granted, left, evidence)
    if reason == FORCED:
        return forced
    if reason in OVER:
        return is_over
    if forced and reason == DELETED and not is_disturbed(evidence, hold.i, granted, left):
        return is_over
    return is_over or taken_away(hold, left, evidence) is not None
