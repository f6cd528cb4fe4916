"""Hand-written histories with exact times: overlaps, tokens, releases. The lease is 600 ms; times are in ms.

Each excuse has a pair: a history that it excuses, and one that differs from it in that alone, and is broken.
"""

from __future__ import annotations

from typing import Any

from tests.chaos.checks.cases import Case
from tests.chaos.checks.cases_locks import ALONE, EXPLAINED, FENCES, RELEASE
from tests.chaos.checks.histories import MS, HandWritten

JOB = "n:0"
END_MS = 5000.0
FLUSH: dict[str, Any] = {"kind": "flush", "scope": "redis", "from_ms": 50, "to_ms": 50, "forgets": True}
OVERLAP = {ALONE, EXPLAINED}


def exact(**run: Any) -> HandWritten:
    """An exact history that goes on for long enough."""
    return HandWritten(exact=True, **run).event("end", at_ms=END_MS, why="time")


def stands_still(history: HandWritten, i: str, *, from_ms: float, to_ms: float, **more: Any) -> HandWritten:
    """The process does not run."""
    span = {"from": round(from_ms * MS), "to": round(to_ms * MS)}
    return history.event("stall", at_ms=to_ms, i=i, life=1, **span, **more)


def loses(i: str, fence: int, *, from_ms: float, until_ms: float, lost_ms: float, **acquired: Any) -> HandWritten:
    """A holder is told that its lease is gone."""
    facts: dict[str, Any] = {"name": JOB, "fence": fence, "until": round(until_ms * MS)}
    history = exact().point("acquired", i, at_ms=from_ms, **facts, **{"queued": False, "waited_s": 0.001, **acquired})
    return history.point("lost", i, at_ms=lost_ms, **facts)


def second(history: HandWritten, fence: int = 6, *, from_ms: float = 60, to_ms: float = 100) -> HandWritten:
    """Another process has the lock as well."""
    return history.leased("p1", JOB, fence, from_ms=from_ms, to_ms=to_ms, until_ms=from_ms + 590)


def robbed(lost_ms: float = 200, **fault: Any) -> HandWritten:
    """p0 has the lock from 10 to 200; p1 gets it at 60."""
    history = second(loses("p0", 5, from_ms=10, until_ms=603, lost_ms=lost_ms))
    return history.fault(1, **{**FLUSH, **fault}) if fault else history


def forced(*, at_ms: float, fence: int, p: str = "forcing") -> HandWritten:
    """p2 ends by force whatever has this token."""
    return robbed().point(p, "p2", at_ms=at_ms, name=JOB, fence=fence)


def beside_a_program(history: HandWritten) -> HandWritten:
    """A program without a token has the lock from 60 to 100; p0 hears at 70 of what it was granted after 50."""
    history.point("acquired", "p1", at_ms=60, name=JOB, fence=None, until=1060 * MS, outside=True)
    history.point("releasing", "p1", at_ms=100, name=JOB, fence=None)
    return history.leased("p0", JOB, 5, from_ms=70, to_ms=90, until_ms=640, waited_s=0.02)


def one_after_another(first: int, then: int, *, then_ms: float = 210, **run: Any) -> HandWritten:
    """Two holds with these tokens."""
    history = exact(**run).leased("p0", JOB, first, from_ms=110, to_ms=200, until_ms=700, waited_s=0.099)
    return history.leased("p1", JOB, then, from_ms=then_ms, to_ms=then_ms + 10, until_ms=then_ms + 590, waited_s=0.15)


def set_back(history: HandWritten, at_ms: float, **more: Any) -> HandWritten:
    """The server's clock is set back for good."""
    facts: dict[str, Any] = {"kind": "clock_back", "scope": "clock:redis", "forgets": True, **more}
    return history.fault(7, from_ms=at_ms, to_ms=facts.pop("to_ms", at_ms), **facts)


def forgotten(first: int, then: int, *, before: str = JOB, p: str = "acquired", **more: Any) -> HandWritten:
    """p0 has a lock, then the server forgets all and its clock is set back, then p0 has JOB, asked for at 209."""
    history = set_back(exact(), 130).fault(1, **{**FLUSH, "from_ms": 205, "to_ms": 205})
    history.leased("p0", before, first, from_ms=110, to_ms=200, until_ms=700)
    facts = {"life": 1, "queued": False, "waited_s": 0.001, **more}
    return history.point(p, "p0", at_ms=211, name=JOB, fence=then, until=800 * MS, **facts).point(
        "releasing", "p0", at_ms=220, life=facts["life"], name=JOB, fence=then, until=800 * MS
    )


def released_late(**fault: Any) -> HandWritten:
    """p0's release at 200 finds its lock, which p1 had got at 60, still its own."""
    history = exact().leased("p0", JOB, 5, from_ms=10, to_ms=200, until_ms=603)
    return second(history, to_ms=300).fault(1, **{**FLUSH, **fault})


def larger_and_older(*, set_back_ms: float | None = 100) -> HandWritten:
    """p1 is granted the lock at 190, and hears of it at 250; a flush at 205 has given it to p0, from 210 to 300."""
    history = exact().leased("p0", JOB, 6, from_ms=210, to_ms=300, until_ms=800, waited_s=0.01)
    history.fault(1, **{**FLUSH, "from_ms": 205, "to_ms": 205})
    facts: dict[str, Any] = {"name": JOB, "fence": 7, "until": 780 * MS}
    history.point("acquired", "p1", at_ms=250, queued=False, waited_s=0.06, **facts)
    history.point("lost", "p1", at_ms=260, **facts)
    return history if set_back_ms is None else set_back(history, set_back_ms)


def heard_late_outside(**lease: Any) -> HandWritten:
    """A program hears at 1500 of the lock that it was given before a flush at 100; p0 has had it from 700 on."""
    history = exact().fault(1, **{**FLUSH, "from_ms": 100, "to_ms": 100})
    history.leased("p0", JOB, 6, from_ms=700, to_ms=800, until_ms=1290)
    facts: dict[str, Any] = {"name": JOB, "fence": 5, "until": 2000 * MS, "outside": True}
    return history.point("acquired", "p1", at_ms=1500, **facts, **lease).point(
        "releasing", "p1", at_ms=1510, name=JOB, fence=5
    )


def robbed_outside(**lease: Any) -> HandWritten:
    """A program has the lock from 10 to 1500, and a flush at 50 has given it to p1, which has it from 60 on."""
    history = exact().fault(1, **FLUSH).leased("p1", JOB, 6, from_ms=60, to_ms=1600, until_ms=1990)
    facts: dict[str, Any] = {"name": JOB, "until": 1990 * MS, "outside": True}
    return history.point("acquired", "p0", at_ms=10, **facts, **lease).point("releasing", "p0", at_ms=1500, name=JOB)


def passed_on(i: str = "p0", fence: int = 6, *, from_ms: float = 200.1, **fault: Any) -> HandWritten:
    """p0 passes its lock on at 200 within its process, which it has till 210; p1 has had it from 60 on, until 300."""
    history = exact().leased("p0", JOB, 5, from_ms=10, to_ms=200, until_ms=603)
    second(history, 9, to_ms=300).fault(1, **{**FLUSH, **fault})
    return history.leased(i, JOB, fence, from_ms=from_ms, to_ms=210, until_ms=603, waited_s=0.18, queued=True)


OVERLAP_CASES = (
    Case("exact: one after the other", one_after_another(5, 6)),
    Case("exact: two at once for no reason", robbed(), OVERLAP),
    Case(
        "exact: two at once for a microsecond",
        second(loses("p0", 5, from_ms=10, until_ms=60.001, lost_ms=60.001)),
        OVERLAP,
    ),
    Case(
        "exact: it stood still past its lease, which ends what it holds",
        stands_still(
            second(loses("p0", 5, from_ms=10, until_ms=603, lost_ms=912), from_ms=604, to_ms=700),
            "p0",
            from_ms=20,
            to_ms=911,
        ),
    ),
    Case(
        "exact: it stood still, and another had the lock before its lease was over",
        stands_still(
            second(loses("p0", 5, from_ms=10, until_ms=603, lost_ms=912), from_ms=602, to_ms=700),
            "p0",
            from_ms=20,
            to_ms=911,
        ),
        OVERLAP,
    ),
    Case(
        "exact: it was cut off, and another had the lock before its lease was over",
        second(loses("p0", 5, from_ms=10, until_ms=603, lost_ms=603), from_ms=602, to_ms=700).fault(
            1, "cut", "link:p0:redis", from_ms=20, to_ms=900, forgets=False
        ),
        OVERLAP,
    ),
    Case(
        "exact: a lease that was extended",
        second(
            loses("p0", 5, from_ms=10, until_ms=1000, lost_ms=1000).point(
                "extended", "p0", at_ms=220, name=JOB, fence=5, until=1000 * MS
            ),
            from_ms=999,
            to_ms=1100,
        ),
        OVERLAP,
    ),
    Case(
        "exact: the last word on a lease is said as it ends",
        second(exact(), from_ms=700, to_ms=800)
        .point("acquired", "p0", at_ms=10, name=JOB, fence=5, queued=False, waited_s=0.001, until=603 * MS)
        .point("releasing", "p0", at_ms=720, name=JOB, fence=5, until=900 * MS),
        {*OVERLAP},
    ),
    Case(
        "exact: it dies beyond its lease",
        second(exact(), from_ms=604, to_ms=700)
        .point("acquired", "p0", at_ms=10, name=JOB, fence=5, queued=False, waited_s=0.001, until=603 * MS)
        .event("stall", at_ms=720, i="p0", life=1, **{"from": 20 * MS, "to": 720 * MS})
        .event("died", at_ms=720, i="p0", life=1, held=[]),
    ),
    Case("exact: the store was emptied", robbed(**FLUSH)),
    Case("exact: a fault that lost nothing", robbed(kind="pause", forgets=False), OVERLAP),
    Case("exact: the store was emptied before it was asked", robbed(from_ms=1, to_ms=7), OVERLAP),
    Case("exact: the store was emptied after the second one had it", robbed(from_ms=61, to_ms=61), OVERLAP),
    Case("exact: its own clock was moved", robbed(kind="clock", scope="clock:p0")),
    Case("exact: another one's clock was moved", robbed(kind="clock", scope="clock:p3"), OVERLAP),
    Case(
        "exact: the store was emptied, and it was extended for longer than a lease",
        loses("p0", 5, from_ms=10, until_ms=1500, lost_ms=700)
        .leased("p1", JOB, 6, from_ms=60, to_ms=690, until_ms=1200)
        .point("extended", "p0", at_ms=300, name=JOB, fence=5, until=1500 * MS)
        .fault(1, **FLUSH),
        OVERLAP,
    ),
    Case("exact: ended by force", forced(at_ms=40, fence=5)),
    Case("exact: ended by force, of a run of which the server knew the first turn", forced(at_ms=40, fence=3)),
    Case("exact: another lease was ended by force", forced(at_ms=40, fence=6), OVERLAP),
    Case("exact: a run that is long over was ended by force", forced(at_ms=40, fence=-11), OVERLAP),
    Case("exact: force was used too late", forced(at_ms=61, fence=5), OVERLAP),
    Case("exact: force was used before it had the lock", forced(at_ms=7, fence=5), OVERLAP),
    Case(
        "exact: ended by force before it was heard of, and a program has it",
        beside_a_program(exact().point("forcing", "p2", at_ms=55, name=JOB, fence=5)),
    ),
    Case("exact: heard of late, while a program has it", beside_a_program(exact()), OVERLAP),
)

TOKEN_CASES = (
    Case("exact: a token that falls", one_after_another(6, 5), {FENCES}),
    Case("exact: a token that falls after a flush", one_after_another(6, 5).fault(1, **FLUSH), {FENCES}),
    Case(
        "exact: a token that is heard of after a flush, and was given before it",
        one_after_another(6, 5).fault(1, **{**FLUSH, "from_ms": 105, "to_ms": 105}),
    ),
    Case(
        "exact: a token that is heard of after a pause",
        one_after_another(6, 5).fault(1, **{**FLUSH, "from_ms": 105, "to_ms": 105, "forgets": False}),
        {FENCES},
    ),
    Case(
        "exact: a token of a lease that was over as it was heard of",
        exact()
        .leased("p0", JOB, 6, from_ms=700, to_ms=800, until_ms=1290)
        .point("acquired", "p1", at_ms=900, name=JOB, fence=5, queued=True, waited_s=0.85, until=650 * MS)
        .point("lost", "p1", at_ms=901, name=JOB, fence=5, until=650 * MS)
        .event("stall", at_ms=899, i="p1", life=1, **{"from": 60 * MS, "to": 899 * MS}),
    ),
    Case(
        "exact: data lost, and the server's clock was set back",
        set_back(one_after_another(6, 5), 130).fault(1, **{**FLUSH, "from_ms": 150, "to_ms": 150}),
    ),
    Case("exact: the server's clock was set back, and nothing lost", set_back(one_after_another(6, 5), 130), {FENCES}),
    Case(
        "exact: data lost, and the server's clock was set back later",
        set_back(one_after_another(6, 5), 211).fault(1, **{**FLUSH, "from_ms": 150, "to_ms": 150}),
        {FENCES},
    ),
    Case(
        "exact: the server's clock was set back, and forward again", set_back(one_after_another(6, 5), 130, to_ms=160)
    ),
    Case(
        "exact: the server's clock was set back, and the lock not used for long",
        set_back(one_after_another(6, 5, then_ms=10_200), 130),
    ),
    Case(
        "exact: a token comes twice",
        one_after_another(5, 5),
        {FENCES},
    ),
    Case(
        "exact: an adopted lease keeps its token",
        exact()
        .point("acquired", "p0", at_ms=10, name=JOB, fence=5, queued=False, waited_s=0.001, until=603 * MS)
        .point("exported", "p0", at_ms=20, name=JOB, fence=5, until=603 * MS)
        .point("adopted", "p1", at_ms=30, name=JOB, fence=5, until=620 * MS)
        .point("releasing", "p1", at_ms=40, name=JOB, fence=5, until=620 * MS),
    ),
    Case(
        "exact: a lease that is adopted while another has the lock",
        exact()
        .point("acquired", "p0", at_ms=10, name=JOB, fence=5, queued=False, waited_s=0.001, until=603 * MS)
        .point("exported", "p0", at_ms=20, name=JOB, fence=5, until=603 * MS)
        .point("adopted", "p1", at_ms=30, name=JOB, fence=5, until=620 * MS)
        .leased("p2", JOB, 6, from_ms=35, to_ms=50, until_ms=625)
        .point("releasing", "p1", at_ms=40, name=JOB, fence=5, until=620 * MS),
        OVERLAP,
    ),
    Case(
        "exact: data lost and the clock set back, and a process that had held it gets a smaller token",
        forgotten(6, 5),
        {FENCES},
    ),
    Case(
        "exact: data lost and the clock set back, and a process that had held another lock gets a smaller token",
        forgotten(6, 5, before="n:1"),
        {FENCES},
    ),
    Case("exact: data lost and the clock set back, and a process gets a larger token", forgotten(5, 6)),
    Case(
        "exact: a process that has died had held it, another life of it gets a smaller token", forgotten(6, 5, life=2)
    ),
    Case("exact: somebody hands over what he got with a smaller token", forgotten(6, 5, queued=True)),
    Case("exact: it had asked before it had the larger token", forgotten(6, 5, before="n:1", waited_s=0.102)),
    Case(
        "exact: it had asked before it had the larger token, and stood still",
        stands_still(forgotten(6, 5), "p0", from_ms=100, to_ms=210),
    ),
    Case(
        "exact: it had asked just before it had the larger token, and then stood still",
        stands_still(forgotten(6, 5), "p0", from_ms=111, to_ms=210.9),
    ),
    Case(
        "exact: it had asked just after it had the larger token, and then stood still",
        stands_still(forgotten(6, 5), "p0", from_ms=113, to_ms=210.9),
        {FENCES},
    ),
    Case(
        "exact: a token that came again, and was released as its own",
        second(loses("p0", 5, from_ms=10, until_ms=603, lost_ms=200), from_ms=190, to_ms=300)
        .point("forcing", "p2", at_ms=185, name=JOB, fence=5)
        .leased("p0", JOB, 5, from_ms=700, to_ms=710, until_ms=1290),
        {FENCES},
    ),
    Case("exact: what it adopts has an older token", forgotten(6, 5, p="adopted")),
    Case("exact: a program was robbed, and its lease is longer than others'", robbed_outside(lease_s=2.0)),
    Case("exact: a program was robbed, and goes on for longer than a lease", robbed_outside(), OVERLAP),
    Case("exact: a program heard late, and its lease is longer than others'", heard_late_outside(lease_s=2.0)),
    Case("exact: a program heard late of a lease that it cannot have had so long", heard_late_outside(), {FENCES}),
    Case("exact: a client outside has seen no token", forgotten(6, 5, outside=True)),
    Case("exact: released as its own, though the store was emptied", released_late(), {RELEASE}),
    Case("exact: released as its own, which a larger token was forgotten for", larger_and_older()),
    Case("exact: released as its own after a larger token", larger_and_older(set_back_ms=None), {RELEASE}),
    Case("exact: a server came back that knew an older state", released_late(kind="failover")),
    Case("exact: passed on within its run, though the store was emptied", passed_on()),
    Case("exact: passed on, and nothing was lost", passed_on(forgets=False), {RELEASE, *OVERLAP}),
    Case("exact: another process had the next token", passed_on("p2"), {RELEASE}),
    Case("exact: it had another token than the next turn", passed_on(fence=7), {RELEASE}),
    Case("exact: it began again once its release was answered", passed_on(from_ms=201), {RELEASE}),
    Case("exact: a failover that lost nothing", released_late(kind="failover", forgets=False), {RELEASE, *OVERLAP}),
)

EXACT_CASES = (*OVERLAP_CASES, *TOKEN_CASES)
