"""Hand-written histories of the end of a run."""

from __future__ import annotations

from typing import Any

from tests.chaos.checks.cases import Case
from tests.chaos.checks.histories import HandWritten

ALIVE = "alive_after_healing"
LEFT = "nothing_left_behind"


def healed(*, first_ok_ms: float | None = 1500) -> HandWritten:
    """All faults are over at 1000; the lease is 600 ms; somebody is let in at `first_ok_ms`."""
    history = HandWritten().event("healing", at_ms=1000)
    if first_ok_ms is not None:
        history.enter("a", 7, 1, at_ms=first_ok_ms - 2).event(
            "ok", op="a", at_ms=first_ok_ms, status=200, outcome="free"
        )
    return history.event("end", at_ms=9000, why="time")


NOTHING: dict[str, Any] = {
    "keys": [],
    "waiters": 0,
    "idle_transactions": 0,
    "sessions": 0,
    "threads": 0,
    "processes": [],
}

REST_CASES = (
    Case("let in again", healed(first_ok_ms=2300)),
    Case("let in again too late", healed(first_ok_ms=4201), {ALIVE}),
    Case("let in again at the last moment", healed(first_ok_ms=4200)),
    Case("nobody let in", healed(first_ok_ms=None).enter("b", 7, 1, at_ms=1100).refused("b", "overloaded"), {ALIVE}),
    Case("unknown at once after healing", healed().enter("b", 7, 1, at_ms=2199).unknown("b")),
    Case("unknown two leases after healing", healed().enter("b", 7, 1, at_ms=2200).unknown("b"), {ALIVE}),
    Case("unavailable after healing", healed().enter("b", 7, 1, at_ms=3000).refused("b", "database-down"), {ALIVE}),
    Case("locked out after healing", healed().enter("b", 7, 1, at_ms=3000).refused("b", "charge-in-progress"), {ALIVE}),
    Case("no answer at all after healing", healed().enter("b", 7, 1, at_ms=3000), {ALIVE}),
    Case("no coupons after healing", healed().enter("b", 7, 1, at_ms=3000).refused("b", "insufficient-coupons")),
    Case("nothing left", HandWritten().event("left", **NOTHING)),
    *(
        Case(f"{what} left", HandWritten().event("left", **{**NOTHING, what: some}), {LEFT})
        for what, some in (
            ("keys", ["lock:{appointment:7}"]),
            ("waiters", 1),
            ("idle_transactions", 1),
            ("sessions", 2),
            ("threads", 1),
            ("processes", ["chaos-2"]),
        )
    ),
)
