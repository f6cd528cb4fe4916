"""Hand-written histories of holds and their tokens. The lease is 600 ms; times are in ms."""

from __future__ import annotations

from typing import Any

from tests.chaos.checks.cases import Case
from tests.chaos.checks.histories import HandWritten

ALONE = "holders_do_not_overlap"
EXPLAINED = "overlaps_are_explained"
FENCES = "fences_rise"
ROW_FENCE = "row_fence_rises"
WRITES = "stale_writes_refused"
RELEASE = "no_foreign_release"
TAKEOVER = "takeover_in_time"
IDLE = "no_lock_lies_idle"
ORDER = "order_of_arrival"
TOLD = "told_of_loss_in_time"
BODIES = "bodies_end_with_their_leases"
LOSSES = "losses_have_a_cause"
PATIENCE = "patience_is_kept"
OUTAGES = "outages_are_told"
BUSY = "busy_is_true"
ASKED = "little_is_asked"
EARLY = "leases_end_at_the_holder_first"
NOBODYS = "nobodys_lock_is_given_back"
STRAY = "no_stray_cancellation"
LOCK = "appointment:7"


def held(*holds: tuple[int, int, float, float]) -> HandWritten:
    """Holds of one lock: instance, fence, from, to."""
    history = HandWritten()
    for i, fence, from_ms, to_ms in holds:
        history.hold(i, LOCK, fence, from_ms=from_ms, to_ms=to_ms)
    return history


def died(*, left_ms: float | None = 500, took_ms: float | None = 520, waits_from_ms: float | None = 50) -> HandWritten:
    """Instance 1 dies at 100 holding the lock; instance 2 waits, and has it `took_ms` after the death."""
    history = HandWritten().point("acquired", 1, at_ms=10, name=LOCK, fence=5, queued=False)
    if waits_from_ms is not None:
        history.point("waiting", 2, at_ms=waits_from_ms, name=LOCK)
    lock = {"name": LOCK, "fence": 5, "left_ms": left_ms, "waiters": 1}
    history.event("died", at_ms=100, i=1, life=1, pid=9, held=[lock])
    if took_ms is not None:
        acquired: dict[str, Any] = {"queued": True, "takeover": True, "waited_s": (50 + took_ms) / 1000}
        history.point("acquired", 2, at_ms=100 + took_ms, name=LOCK, fence=6, **acquired)
        history.point("releasing", 2, at_ms=101 + took_ms, name=LOCK, fence=6)
    return history.event("end", at_ms=5000, why="time")


def written(*log: list[Any]) -> HandWritten:
    """The register's log: n, name, fence, op, accepted."""
    return HandWritten().table("chaos_register_log", *log)


def heard_after(*, flushed: bool) -> HandWritten:
    """Instance 1 stands still from 100 to 500 and then hears of a grant, under which token 6 had followed."""
    history = HandWritten().point("waiting", 1, at_ms=60, name=LOCK)
    history.fault(1, "delay", "instance:1", from_ms=100, to_ms=500)
    if flushed:
        history.fault(2, "flush", "redis", from_ms=200, to_ms=201)
    history.hold(2, LOCK, 6, from_ms=210, to_ms=230)
    history.point("acquired", 1, at_ms=501, name=LOCK, fence=5, queued=True, takeover=False, waited_s=0.44)
    return history.point("lost", 1, at_ms=510, name=LOCK, fence=5, reason="deleted").event(
        "end", at_ms=5000, why="time"
    )


FENCE_CASES = (
    Case("a grant heard after a standstill, in which the store was emptied", heard_after(flushed=True)),
    Case("a grant heard after a standstill that was no lease long", heard_after(flushed=False), {FENCES}),
    Case("a token that falls", held((1, 6, 10, 20), (2, 5, 21, 30)), {FENCES}),
    Case("a token that comes twice", held((1, 5, 10, 20), (2, 5, 21, 30)), {FENCES}),
    Case("tokens of two locks", held((1, 6, 10, 20)).hold(2, "appointment:8", 5, from_ms=21, to_ms=30)),
    Case(
        "a token that falls over two holds",
        held((1, 9, 10, 20), (2, 10, 21, 30), (3, 8, 31, 40)),
        {FENCES},
    ),
    Case(
        "a token that falls behind a hold beside it",
        held((1, 9, 10, 20), (2, 10, 21, 35), (3, 8, 30, 40)),
        {FENCES, ALONE, EXPLAINED},
    ),
    Case(
        "a grant that was heard of late, beside the next hold",
        held((3, 6, 495, 510))
        .fault(1, "freeze", "instance:2", from_ms=50, to_ms=450)
        .point("acquired", 2, at_ms=501, name=LOCK, fence=5, queued=False, waited_s=0.46)
        .point("lost", 2, at_ms=505, name=LOCK, fence=5),
    ),
    Case(
        "a token that falls long after the store was emptied",
        held((1, 6, 10, 20), (2, 1, 400, 410)).fault(1, "flush", "redis", from_ms=25, to_ms=30),
        {FENCES},
    ),
    Case(
        "a grant that was heard of a lease too late",
        held((1, 6, 700, 720))
        .fault(1, "freeze", "instance:2", from_ms=50, to_ms=900)
        .point("acquired", 2, at_ms=901, name=LOCK, fence=5, queued=False, waited_s=0.86)
        .point("lost", 2, at_ms=902, name=LOCK, fence=5),
    ),
    Case(
        "the fence of a charge was nobody's",
        held((1, 5, 10, 20)).charge_row(1, 7, 1, fence=4).entry_rows((7, 1)).enter("a", 7, 1).unknown("a"),
        {ROW_FENCE},
    ),
    Case(
        "the fence of a charge was that of another lock",
        held((1, 5, 10, 20)).charge_row(1, 8, 1, fence=5).entry_rows((8, 1)).enter("a", 8, 1).unknown("a"),
        {ROW_FENCE},
    ),
    Case(
        "the row has another fence than its charge",
        held((1, 5, 10, 20), (2, 6, 21, 30))
        .charge_row(1, 7, 1, fence=5)
        .appointment_row(7, is_consume=True, fence=6)
        .entry_rows((7, 1))
        .enter("a", 7, 1)
        .unknown("a"),
        {ROW_FENCE},
    ),
    Case(
        "a charge without a lease",
        held((1, 5, 10, 20))
        .charge_row(1, 7, 1)
        .appointment_row(7, is_consume=True)
        .entry_rows((7, 1))
        .enter("a", 7, 1)
        .unknown("a"),
    ),
)

WRITE_CASES = (
    Case(
        "a stale write is refused",
        written([1, "job:1", 5, "a", True], [2, "job:1", 6, "b", True], [3, "job:1", 5, "c", False]),
    ),
    Case("a stale write is accepted", written([1, "job:1", 6, "a", True], [2, "job:1", 5, "b", True]), {WRITES}),
    Case(
        "a stale write, one after the next",
        written([3, "r", 4, "c", True], [1, "r", 6, "a", True], [2, "r", 6, "b", True]),
        {WRITES},
    ),
    Case("two registers", written([1, "job:1", 6, "a", True], [2, "job:2", 5, "b", True])),
    Case(
        "a write that was told of is gone",
        written([1, "job:1", 6, "a", True]).event("invoke", op="b", f="write").event("ok", op="b", status=200),
        {WRITES},
    ),
    Case(
        "a write that was refused is there",
        written([1, "job:1", 6, "a", True]).event("invoke", op="a", f="write").refused("a", "stale"),
        {WRITES},
    ),
    Case(
        "the register does not hold its last write",
        written([1, "job:1", 5, "a", True], [2, "job:1", 6, "b", True]).table("chaos_register", ["job:1", 5, "x", "a"]),
        {WRITES},
    ),
)

FREEZE: dict[str, Any] = {"from_ms": 30, "to_ms": 910}
RELEASE_CASES = (
    Case(
        "a stale holder is told that its lease is not its own",
        held((2, 6, 615, 950))
        .hold(1, LOCK, 5, from_ms=10, to_ms=912, still_ours=False)
        .fault(1, "freeze", "instance:1", **FREEZE),
    ),
    Case(
        "a stale holder is told that its lease is its own",
        held((2, 6, 615, 950)).hold(1, LOCK, 5, from_ms=10, to_ms=912).fault(1, "freeze", "instance:1", **FREEZE),
        {RELEASE},
    ),
    Case(
        "a stale holder's release frees the next one's lock",
        held((3, 7, 930, 980))
        .hold(2, LOCK, 6, from_ms=615, to_ms=990, still_ours=False)
        .hold(1, LOCK, 5, from_ms=10, to_ms=912, still_ours=False)
        .fault(1, "freeze", "instance:1", **FREEZE),
        {ALONE, EXPLAINED, RELEASE},
    ),
)

TAKEOVER_CASES = (
    Case("taken over in time", died()),
    Case("taken over at the last moment", died(took_ms=550)),
    Case("taken over too late", died(took_ms=551), {TAKEOVER}),
    Case("never taken over", died(took_ms=None), {TAKEOVER, IDLE}),
    Case("nobody waited", died(waits_from_ms=None, took_ms=900)),
    Case("a waiter that has come after the death", died(waits_from_ms=400, took_ms=551), {TAKEOVER}),
    Case("a waiter that has only just come when the lease ends", died(waits_from_ms=580, took_ms=900)),
    Case("nobody knows what was left", died(left_ms=None, took_ms=900)),
    Case("the waiter was frozen", died(took_ms=900).fault(1, "freeze", "instance:2", from_ms=300, to_ms=900)),
    Case(
        "a third instance was frozen, which may have stood before it",
        died(took_ms=900).fault(1, "freeze", "instance:3", from_ms=300, to_ms=900),
    ),
    Case("the store was away", died(took_ms=900).fault(1, "redis_restart", "redis", from_ms=300, to_ms=900)),
    Case(
        "the store was away before",
        died(took_ms=900).fault(1, "redis_restart", "redis", from_ms=3, to_ms=90),
        {TAKEOVER},
    ),
    Case("the waiter gave up", died(took_ms=None).point("gave_up", 2, at_ms=400, name=LOCK, outcome="busy")),
    Case(
        "the waiter was at another lock",
        died(took_ms=None)
        .point("gave_up", 2, at_ms=60, name=LOCK, outcome="busy")
        .point("waiting", 2, at_ms=70, name="appointment:8")
        .point("gave_up", 2, at_ms=340, name="appointment:8", outcome="busy"),
    ),
)
