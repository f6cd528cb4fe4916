"""Hand-written histories of who is told of a loss, and of what came out that nobody sent. The lease is 600 ms."""

from __future__ import annotations

from tests.chaos.checks.cases import Case
from tests.chaos.checks.cases_exact import JOB, OVERLAP, exact, loses, stands_still
from tests.chaos.checks.cases_locks import FENCES, STRAY, TOLD
from tests.chaos.checks.histories import MS, HandWritten


def lapses(lost_ms: float) -> HandWritten:
    """Its lease is over at 603."""
    return loses("p0", 5, from_ms=10, until_ms=603, lost_ms=lost_ms)


def never_told() -> HandWritten:
    """Its lease is over at 603, and it says nothing more."""
    return exact().point("acquired", "p0", at_ms=10, name=JOB, fence=5, queued=False, waited_s=0.001, until=603 * MS)


def twice_at_once(fence: int) -> HandWritten:
    """It has the lock once more when its lease is over at 603, and is heard of one of the two only."""
    return never_told().leased("p0", JOB, fence, from_ms=650, to_ms=700, until_ms=1240)


def again(*, lost_ms: float) -> HandWritten:
    """It has the lock once more, with the same token, after its lease was over at 603."""
    return lapses(lost_ms).leased("p0", JOB, 5, from_ms=650, to_ms=700, until_ms=1240)


def forced(lost_ms: float, *, at_ms: float = 100, fence: int = 5, name: str = JOB) -> HandWritten:
    """Its lease is ended by force at 100, and it is told then."""
    return lapses(lost_ms).point("forced", "p2", at_ms=at_ms, name=name, fence=fence)


TOLD_CASES = (
    Case("told as the lease is over", lapses(603)),
    Case("told before", lapses(250)),
    Case("told at the last moment", lapses(608)),
    Case("told too late", lapses(608.1), {TOLD}),
    Case("never told", never_told(), {TOLD}),
    Case("it died before its lease was over", never_told().event("died", at_ms=600, i="p0", life=1, held=[])),
    Case("it died after its lease was over", never_told().event("died", at_ms=650, i="p0", life=1, held=[]), {TOLD}),
    Case(
        "it died with a lease that had been confirmed meanwhile",
        never_told().event(
            "died", at_ms=650, i="p0", life=1, held=[{"name": JOB, "fence": 5, "left_ms": 100, "waiters": 0}]
        ),
    ),
    Case(
        "it died with another lease",
        never_told().event(
            "died", at_ms=650, i="p0", life=1, held=[{"name": JOB, "fence": 6, "left_ms": 100, "waiters": 0}]
        ),
        {TOLD},
    ),
    Case("it was being closed", never_told().event("closing", at_ms=500, i="p0", life=1)),
    Case("it was closed after that", never_told().event("closing", at_ms=650, i="p0", life=1), {TOLD}),
    Case("it released what it had no more", exact().leased("p0", JOB, 5, from_ms=10, to_ms=700, until_ms=603), {TOLD}),
    Case("told as it went on", stands_still(lapses(905), "p0", from_ms=500, to_ms=901)),
    Case("told some time after it went on", stands_still(lapses(907), "p0", from_ms=500, to_ms=901), {TOLD}),
    Case("another one stood still", stands_still(lapses(905), "p1", from_ms=500, to_ms=901), {TOLD}),
    Case(
        "its machine was suspended, so timers were late",
        stands_still(lapses(1005), "p0", from_ms=500, to_ms=901, suspended=True),
    ),
    Case(
        "its machine was suspended, and it looked at no clock",
        stands_still(lapses(1007), "p0", from_ms=500, to_ms=901, suspended=True),
        {TOLD},
    ),
    Case(
        "a fault suspended its machine",
        lapses(1005).fault(1, "suspend", "instance:p0", from_ms=500, to_ms=901, forgets=False),
    ),
    Case("a fault stopped it", lapses(1005).fault(1, "freeze", "instance:p0", from_ms=500, to_ms=901), {TOLD}),
    Case(
        "told of the loss of what it had released",
        exact()
        .leased("p0", JOB, 5, from_ms=10, to_ms=20, until_ms=603)
        .point("lost", "p0", at_ms=30, name=JOB, fence=5, until=603 * MS),
        {TOLD},
    ),
    Case("its token came again while it had not told of its end", twice_at_once(5), {*OVERLAP, FENCES}),
    Case("another one came while it had not told of its end", twice_at_once(6), {TOLD}),
    Case("its token came again when it had told of its end", again(lost_ms=603), {FENCES}),
    Case("its token came again when it had told too late of its end", again(lost_ms=609), {FENCES, TOLD}),
    Case("told at the last moment of its end by force", forced(106)),
    Case("told too late of its end by force", forced(106.1), {TOLD}),
    Case("another lease was ended by force, untold", forced(300, fence=4)),
    Case("another lock's lease was ended by force, untold", forced(300, name="n:1")),
    Case("a lease was ended by force before it began", forced(300, at_ms=9)),
    Case(
        "not told of its end by force, for it stood still",
        stands_still(forced(300), "p0", from_ms=101, to_ms=299),
    ),
    Case(
        "not told of its end by force, while another one stood still",
        stands_still(forced(300), "p1", from_ms=101, to_ms=299),
        {TOLD},
    ),
    Case(
        "not told of its end by force, for it was cut off",
        forced(300).fault(1, "cut", "link:p0:redis", from_ms=20, to_ms=30, forgets=False),
    ),
    Case(
        "not told of its end by force, for it died",
        never_told()
        .point("forced", "p2", at_ms=100, name=JOB, fence=5)
        .event("died", at_ms=106, i="p0", life=1, held=[]),
    ),
    Case(
        "its lease has an end that nobody knows, in a history that is not exact",
        HandWritten()
        .point("acquired", "http-1", at_ms=10, name=JOB, fence=5, until=603 * MS)
        .event("end", at_ms=5000, why="time"),
    ),
)

STRAY_CASES = (
    Case("a cancellation that nobody sent", exact().event("stray_cancel", i="p0", where="hold"), {STRAY}),
    Case("an error in a script", exact().event("failed", i="p0", error="ERR attempt to index"), {STRAY}),
    Case("an error in a callback", exact().event("unhandled", i="p0", error="KeyError()"), {STRAY}),
)
