"""Hand-written histories of holds that overlap, or do not. The lease is 600 ms; times are in ms."""

from __future__ import annotations

from tests.chaos.checks.cases import Case
from tests.chaos.checks.cases_locks import ALONE, EXPLAINED, LOCK, RELEASE, died, held
from tests.chaos.checks.histories import MS, HandWritten


def lost(i: int, fence: int, *, from_ms: float, to_ms: float) -> HandWritten:
    """A hold whose holder finds out that its lease is gone, and releases nothing."""
    history = HandWritten().point("acquired", i, at_ms=from_ms, name=LOCK, fence=fence, queued=False)
    return history.point("lost", i, at_ms=to_ms, name=LOCK, fence=fence, reason="expired")


def stalled(history: HandWritten, i: int, *, from_ms: float, to_ms: float) -> HandWritten:
    """The process notices that its loop did not run."""
    return history.event("stall", at_ms=to_ms, i=i, life=1, **{"from": round(from_ms * MS), "to": round(to_ms * MS)})


def client(who: str, fence: int | None, *, from_ms: float, until_ms: float, name: str = LOCK) -> HandWritten:
    """A client holds a lease until it is over."""
    until = round(until_ms * MS)
    return HandWritten().point("acquired", who, at_ms=from_ms, name=name, fence=fence, until=until)


FROZEN = lost(1, 5, from_ms=10, to_ms=912).hold(2, LOCK, 6, from_ms=615, to_ms=700)

OVERLAP_CASES = (
    Case("one after the other", held((1, 5, 10, 20), (2, 6, 21, 30))),
    Case("one begins as the other ends", held((1, 5, 10, 20), (2, 6, 20, 30))),
    Case("two locks at once", held((1, 5, 10, 20)).hold(2, "appointment:8", 6, from_ms=15, to_ms=30)),
    Case("two at once for no reason", held((1, 5, 10, 20), (2, 6, 15, 30)), {ALONE, EXPLAINED, RELEASE}),
    Case(
        "one inside the other, a third after the first two",
        held((1, 5, 10, 90), (2, 6, 15, 20)).hold(3, LOCK, 7, from_ms=60, to_ms=70),
        {ALONE, EXPLAINED, RELEASE},
    ),
    Case("no lease, and no process stood still", FROZEN, {ALONE, EXPLAINED}),
    Case(
        "frozen past its lease",
        lost(1, 5, from_ms=10, to_ms=912)
        .hold(2, LOCK, 6, from_ms=615, to_ms=700)
        .fault(1, "freeze", "instance:1", from_ms=30, to_ms=910, point="decided"),
    ),
    Case(
        "stalled past its lease",
        stalled(lost(1, 5, from_ms=10, to_ms=912).hold(2, LOCK, 6, from_ms=615, to_ms=700), 1, from_ms=20, to_ms=911),
    ),
    Case(
        "it had a moment between two standstills, in which it heard of a grant of long ago",
        stalled(
            stalled(
                lost(1, 5, from_ms=906, to_ms=1150).hold(2, LOCK, 6, from_ms=912, to_ms=1200),
                1,
                from_ms=40,
                to_ms=905,
            ),
            1,
            from_ms=905.1,
            to_ms=1149,
        ),
    ),
    Case(
        "another instance was frozen",
        lost(1, 5, from_ms=10, to_ms=912)
        .hold(2, LOCK, 6, from_ms=615, to_ms=700)
        .fault(1, "freeze", "instance:3", from_ms=30, to_ms=910),
        {ALONE, EXPLAINED},
    ),
    Case(
        "frozen for less than a lease can lapse in",
        lost(1, 5, from_ms=10, to_ms=312)
        .hold(2, LOCK, 6, from_ms=215, to_ms=280)
        .fault(1, "delay", "instance:1", from_ms=30, to_ms=310),
        {ALONE, EXPLAINED},
    ),
    Case(
        "renewed while it is said to have been frozen for a moment",
        lost(1, 5, from_ms=10, to_ms=912)
        .point("extended", 1, at_ms=500, name=LOCK, fence=5)
        .hold(2, LOCK, 6, from_ms=615, to_ms=700)
        .fault(1, "delay", "instance:1", from_ms=550, to_ms=910),
        {ALONE, EXPLAINED},
    ),
    Case(
        "went on holding long after it was thawed",
        lost(1, 5, from_ms=10, to_ms=1500)
        .hold(2, LOCK, 6, from_ms=615, to_ms=1400)
        .fault(1, "freeze", "instance:1", from_ms=30, to_ms=910),
        {ALONE, EXPLAINED},
    ),
    Case(
        "frozen, and renewed since",
        lost(1, 5, from_ms=10, to_ms=712)
        .fault(1, "delay", "instance:1", from_ms=30, to_ms=330)
        .point("extended", 1, at_ms=490, name=LOCK, fence=5)
        .hold(2, LOCK, 6, from_ms=615, to_ms=700),
        {ALONE, EXPLAINED},
    ),
    Case(
        "thawed, and went on beside the one after the next",
        lost(1, 5, from_ms=10, to_ms=1500)
        .hold(2, LOCK, 6, from_ms=615, to_ms=700)
        .hold(3, LOCK, 7, from_ms=950, to_ms=1400)
        .fault(1, "freeze", "instance:1", from_ms=30, to_ms=910),
        {ALONE, EXPLAINED},
    ),
    Case("an instance overlaps itself", held((1, 5, 10, 20), (1, 6, 15, 30)), {ALONE, EXPLAINED, RELEASE}),
    Case(
        "only the life before had been killed",
        HandWritten()
        .fault(1, "die_later", "instance:1", from_ms=10, to_ms=700)
        .event("born", at_ms=695, i=1, life=2, pid=9)
        .point("acquired", 1, at_ms=720, life=2, name=LOCK, fence=5, queued=False)
        .point("lost", 1, at_ms=850, life=2, name=LOCK, fence=5, reason="expired")
        .hold(2, LOCK, 6, from_ms=760, to_ms=800),
        {ALONE, EXPLAINED},
    ),
    Case(
        "the store was emptied",
        lost(1, 5, from_ms=10, to_ms=200)
        .hold(2, LOCK, 6, from_ms=60, to_ms=100)
        .fault(1, "flush", "redis", from_ms=50, to_ms=55),
    ),
    Case(
        "the store was emptied before",
        lost(1, 5, from_ms=510, to_ms=700)
        .hold(2, LOCK, 6, from_ms=560, to_ms=600)
        .fault(1, "flush", "redis", from_ms=50, to_ms=55),
        {ALONE, EXPLAINED},
    ),
    Case(
        "a lease long after the store was emptied",
        lost(1, 5, from_ms=10, to_ms=2000)
        .hold(2, LOCK, 6, from_ms=60, to_ms=1900)
        .fault(1, "flush", "redis", from_ms=50, to_ms=55),
        {ALONE, EXPLAINED},
    ),
    Case(
        "cut off from the store, and went on",
        lost(1, 5, from_ms=10, to_ms=2000)
        .hold(2, LOCK, 6, from_ms=660, to_ms=1900)
        .fault(1, "cut", "link:1:redis", from_ms=30, to_ms=2500),
        {ALONE, EXPLAINED},
    ),
    Case(
        "cut off from the store, and a moment too late",
        lost(1, 5, from_ms=10, to_ms=700)
        .hold(2, LOCK, 6, from_ms=660, to_ms=900)
        .fault(1, "cut", "link:1:redis", from_ms=30, to_ms=2500),
    ),
    Case(
        "ended by force",
        lost(1, 5, from_ms=10, to_ms=200)
        .point("forced", 3, at_ms=50, name=LOCK, fence=5)
        .hold(2, LOCK, 6, from_ms=60, to_ms=100),
    ),
    Case(
        "another hold was ended by force",
        lost(1, 5, from_ms=10, to_ms=200)
        .point("forced", 3, at_ms=50, name=LOCK, fence=4)
        .hold(2, LOCK, 6, from_ms=60, to_ms=100),
        {ALONE, EXPLAINED},
    ),
    Case(
        "a clock was set forward",
        lost(1, 5, from_ms=10, to_ms=200)
        .fault(1, "clock_jump", "clock:redis", from_ms=50, to_ms=55)
        .hold(2, LOCK, 6, from_ms=60, to_ms=100),
    ),
    Case(
        "it died, and another had it while it still lived",
        died(took_ms=None, waits_from_ms=None).hold(3, LOCK, 6, from_ms=60, to_ms=80),
        {ALONE, EXPLAINED},
    ),
    Case(
        "a client's lease was over",
        client("sync-1", None, from_ms=10, until_ms=300).hold(1, LOCK, 5, from_ms=301, to_ms=310),
    ),
    Case(
        "a client's lease was not over",
        client("sync-1", None, from_ms=10, until_ms=300).hold(1, LOCK, 5, from_ms=299, to_ms=310),
        {ALONE, EXPLAINED},
    ),
    Case(
        "a client's lease had been extended",
        client("http-1", 4, from_ms=10, until_ms=300)
        .point("extended", "http-1", at_ms=200, name=LOCK, fence=4, until=500 * MS)
        .hold(1, LOCK, 5, from_ms=301, to_ms=310),
        {ALONE, EXPLAINED},
    ),
    Case(
        "an instance holds for its clients",
        HandWritten().hold(1, "job:1", 5, from_ms=10, to_ms=20).hold(2, "job:1", 6, from_ms=15, to_ms=30),
    ),
)
