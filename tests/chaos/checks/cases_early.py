"""Hand-written histories of leases of 600 ms that were over too early at the server, and of locks that ran out."""

from __future__ import annotations

from typing import Any

from tests.chaos.checks.cases import Case
from tests.chaos.checks.cases_exact import FLUSH, JOB, exact
from tests.chaos.checks.cases_locks import EARLY, NOBODYS
from tests.chaos.checks.histories import MS, HandWritten

WHO = {"i": "p0", "life": 1, "name": JOB}


def early(*, at_ms: float = 400, fence: int = 5, from_ms: float = 10) -> HandWritten:
    """p0 has the lock to 500, and its lease is over at the server before."""
    history = exact().leased("p0", JOB, 5, from_ms=from_ms, to_ms=500, until_ms=603)
    return history.event("ended_early", at_ms=at_ms, fence=fence, why="expired", early_ms=203.0, **WHO)


def ran_out(**granted: Any) -> HandWritten:
    """A lock that p0 had been given at 20 runs out at 4000."""
    history = exact().leased("p1", JOB, 5, from_ms=5, to_ms=10, until_ms=603)
    facts = {"granted": 20 * MS, **WHO, **granted}
    return history.event("ran_out", at_ms=4000, **facts)


EARLY_CASES = (
    Case("early: a lease is over at the server first", early(), {EARLY}),
    Case("early: the store was emptied", early().fault(1, **{**FLUSH, "from_ms": 400, "to_ms": 400})),
    Case(
        "early: the store was emptied afterwards", early().fault(1, **{**FLUSH, "from_ms": 401, "to_ms": 401}), {EARLY}
    ),
    Case("early: it was ended by force", early().point("forcing", "p2", at_ms=399, name=JOB, fence=5)),
    Case(
        "early: another lease was ended by force", early().point("forcing", "p2", at_ms=399, name=JOB, fence=6), {EARLY}
    ),
    Case("early: a lease that nobody has", early(fence=7).fault(1, **FLUSH), {EARLY}),
    Case(
        "early: the store was emptied just before its holder heard of its lease",
        early(at_ms=9, from_ms=10).fault(1, **{**FLUSH, "from_ms": 9, "to_ms": 9}),
    ),
)

NOBODYS_CASES = (
    Case("nobody's: it runs out, and nothing is amiss", ran_out(), {NOBODYS}),
    Case("nobody's: given shortly before", ran_out(granted=2100 * MS)),
    Case("nobody's: given long enough before", ran_out(granted=1999 * MS), {NOBODYS}),
    Case(
        "nobody's: it was had until shortly before",
        ran_out().leased("p0", JOB, 6, from_ms=20, to_ms=2500, until_ms=2600),
    ),
    Case(
        "nobody's: another process had it until shortly before",
        ran_out().leased("p1", JOB, 6, from_ms=20, to_ms=2500, until_ms=2600),
        {NOBODYS},
    ),
    Case(
        "nobody's: its link was away", ran_out().fault(1, "cut", "link:p0:redis", from_ms=15, to_ms=900, forgets=False)
    ),
    Case(
        "nobody's: another one's link was away",
        ran_out().fault(1, "cut", "link:p1:redis", from_ms=15, to_ms=900, forgets=False),
        {NOBODYS},
    ),
    Case("nobody's: the store was away", ran_out().fault(1, "pause", "redis", from_ms=900, to_ms=1900, forgets=False)),
    Case(
        "nobody's: its link was away early on",
        ran_out().fault(1, "cut", "link:p0:redis", from_ms=-700, to_ms=-200, forgets=False),
        {NOBODYS},
    ),
)
