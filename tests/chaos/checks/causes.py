"""Why two held one lock at once: found in the evidence, or not.

A holder that runs stops by its own clock before its lease is over at the server, whatever else is broken. So an overlap
lasts only while its stale holder's process stands still, or, where its lease was taken away by another cause than time
(the store's data lost, its clock moved, ended by force), until its next renewal tells it: a lease at most. Where the
history has a lease's end by its holder's clock the hold is over there, and standing still explains nothing.
"""

from __future__ import annotations

from tests.chaos.checks.evidence import Evidence
from tests.chaos.checks.holds import Hold, Overlap
from tests.chaos.checks.promises import CLOCK_RATES, MS, RUN_MS

STALLED = "stalled"
RENEWALS_PER_LEASE = 3


def cause_of(overlap: Overlap, evidence: Evidence) -> str | None:
    """The cause, in one word: the fault's kind, `stalled`, `store`, `link`, `clock` or `forced`; None without one."""
    for stale in _stale_holds(overlap):
        cause = _cause(stale, overlap, evidence)
        if cause is not None:
            return cause
    return None


def _stale_holds(overlap: Overlap) -> tuple[Hold, ...]:
    """Whose lease was over: the earlier one's; or the later one's, which heard of it late, if its token is less."""
    earlier, later = overlap.earlier, overlap.later
    if later.fence is None or earlier.fence is None or later.fence < earlier.fence:
        return later, earlier  # beside a program without a token either may have heard late
    return (earlier,)


def _cause(stale: Hold, overlap: Overlap, evidence: Evidence) -> str | None:
    stood_still = evidence.standstills_of(stale.i)
    awake_ns = overlap.ended - overlap.began - stood_still.within(overlap.began, overlap.ended)
    if awake_ns <= evidence.slack.unseen_ns and stale.until is None:
        cause = _lapsed_standing_still(stale, overlap.began, evidence) or _lapsed_cut_off(
            stale, overlap.began, evidence
        )
        if cause is not None:
            return cause
    if awake_ns <= (stale.lease_ns or evidence.lease_ttl_ns) + evidence.slack.unseen_ns:
        return taken_away(stale, overlap.began, evidence)
    return None


def _lapsed_standing_still(stale: Hold, t: int, evidence: Evidence) -> str | None:
    """Its process stood still for so long, since it was last told of a lease, that it could not renew it.

    Renewals are sent each third of a lease: to miss all of them it has to stand still for the other two.
    """
    stood_still = evidence.standstills_of(stale.i)
    told = _told_before(stale, t, evidence)
    least_ns = evidence.lease_ttl_ns * (RENEWALS_PER_LEASE - 1) // RENEWALS_PER_LEASE - evidence.slack.unseen_ns
    if t - told < evidence.lease_ttl_ns - evidence.slack.unseen_ns or stood_still.within(told, t) < least_ns:
        return None
    faults = evidence.faults_by_scope.get(f"instance:{stale.i}", ())
    kinds = [fault.kind for fault in faults if fault.began <= t and fault.ended >= told]
    return kinds[-1] if kinds else STALLED


def _lapsed_cut_off(stale: Hold, t: int, evidence: Evidence) -> str | None:
    """It could not reach the store for a lease."""
    told = _told_before(stale, t, evidence)
    is_cut = evidence.spans_of(f"link:{stale.i}:redis").touch(told, t)
    return "link" if is_cut and t - told >= evidence.lease_ttl_ns - evidence.slack.unseen_ns else None


def _told_before(stale: Hold, t: int, evidence: Evidence) -> int:
    """When it was last told of a lease; what it read after a standstill had been sent before that."""
    told = stale.told_before(t)
    before = evidence.standstills_of(stale.i).begin_before(told, slack=evidence.slack.unseen_ns)
    before = evidence.spans_of(f"link:{stale.i}:redis").begin_before(before, slack=evidence.slack.unseen_ns)
    # What befell its instance before this life of it began explains nothing.
    return max(before, min(told, evidence.births.get((stale.i, stale.life), 0)))


def taken_away(stale: Hold, t: int, evidence: Evidence) -> str | None:
    """Its lease did not lapse, but was taken away between its grant and `t`."""
    granted = granted_after(stale, evidence)
    if was_forced(stale.name, stale.fence, granted, t + evidence.slack.unseen_ns, evidence):
        return "forced"
    if evidence.store_forgot(granted, t):
        return "store"
    return "clock" if evidence.clock_moved(stale.i, granted, t) else None


def granted_after(hold: Hold, evidence: Evidence) -> int:
    """The earliest moment at which the server can have granted it."""
    if not evidence.slack.is_exact:
        return _told_before(hold, hold.began, evidence) - evidence.slack.unseen_ns
    # A turn of a run begins so much later than the run was granted, under a lease that is longer by as much.
    lease_ns = hold.lease_ns or evidence.lease_ttl_ns
    told = min(hold.began, hold.first_until or hold.began) - lease_ns - RUN_MS * MS
    if not hold.waited_ns:
        return told
    stood_still_ns = evidence.standstills_of(hold.i).within(told, hold.began)
    asked = hold.began - round(hold.waited_ns * (1 + CLOCK_RATES)) - evidence.slack.delay_ns - stood_still_ns
    return max(told, asked)


def was_forced(name: str, fence: int | None, begin: int, end: int, evidence: Evidence) -> bool:
    """Whether this lease was ended by force: of a run the server may know an earlier turn's token."""
    turns = evidence.slack.turns
    return any(
        point["name"] == name
        and point["t"] <= end
        and begin <= point["t"]
        and (point["fence"] == fence or 0 <= (fence or 0) - point["fence"] < turns)
        for kind in ("forcing", "forced")
        for point in evidence.points.get(kind, ())
    )
