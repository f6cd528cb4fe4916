"""Overview: how it stands now, on one screen."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from db.row_locks import RowLocks
from locks.contention import HotLock, Snapshot
from service.dashboard.asked import Asked
from service.dashboard.looking import Looking
from service.dashboard.story import HEALTH, LONG_WAIT_S, Line, findings, long_waits
from service.dashboard.views.incident_groups import grouped
from service.dashboard.views.kinds import lost_in, rows_of
from service.dashboard.views.locks import appointment_of_lock, row_locks_of
from service.observe import LAYERS

RANGES = {"15m": "15 minutes", "1h": "1 hour", "6h": "6 hours", "24h": "24 hours"}
SHOWN_INCIDENTS = 6  # when those that say the same are one
LOOKED_AT_INCIDENTS = 200
# Of the locks that are waited for long, so many are looked at for the sentence on top.
LOOKED_AT = 3
SHOWN_HOT = 6
# A waiter that was dismissed has not given up: it learnt that its charge was done.
GAVE_UP = ("busy", "cancelled", "store-down")
ENTERED = ("charged", "already_charged", "free")
# When a repeated entry is found to be one, in the order in which it meets the layers.
LAYER_WORDS = {
    "lock": "while it waited for the lock",
    "is_consume": "when it read the row",
    "row_lock": "once it had the row's lock",
    "fence": "by the fencing token",
}
assert LAYER_WORDS.keys() == set(LAYERS)


async def overview(looking: Looking, asked: Asked) -> Mapping[str, Any]:
    """What is stuck; held, waiting, waits, charges, duplicates prevented, lost leases, health; the newest incidents."""
    snapshot = await looking.contention.snapshot()
    incidents = await looking.contention.incidents()
    stuck = long_waits(snapshot)
    found = findings(
        snapshot,
        lines=await asyncio.gather(*[_looked_at(looking, asked, each) for each in stuck[:LOOKED_AT]]),
        down_since=looking.down_since(),
        audit=looking.audit(),
        incidents=incidents,
        now_s=asked.now_s,
    )
    return {
        "findings": found,
        "unshown_lines": max(0, len(stuck) - LOOKED_AT),
        "may_force": asked.session.may_force,
        "health": HEALTH[found[0].tone],
        "long_wait_s": LONG_WAIT_S,
        "snapshot": snapshot,
        "ranges": RANGES,
        "chosen_range": asked.choice("range", RANGES),
        "charged_per_s": snapshot.per_s("charges:charged"),
        "entered_per_s": sum(snapshot.per_s(f"charges:{outcome}") for outcome in ENTERED),
        "lost": lost_in(snapshot.counts),
        "lost_total": lost_in(snapshot.totals),
        "gave_up": sum(snapshot.counts.get(f"gave_up:{outcome}", 0) for outcome in GAVE_UP),
        "layers": _layers(snapshot),
        "hottest": snapshot.hottest[:SHOWN_HOT],
        "incidents": grouped(rows_of(incidents[:LOOKED_AT_INCIDENTS], now_s=asked.now_s))[:SHOWN_INCIDENTS],
        "instance_count": len(snapshot.instances),
        "draining_count": sum(1 for each in snapshot.instances if each.picture.draining),
    }


async def _looked_at(looking: Looking, asked: Asked, waited: HotLock) -> Line:
    view = await looking.locker.inspect(waited.name)
    appointment_id = appointment_of_lock(waited.name)
    row: RowLocks | str | None = None
    if appointment_id is not None and "database" not in looking.down_since():
        row = await row_locks_of(looking, appointment_id, caller=asked.caller)
    return Line(waited, view, row if isinstance(row, RowLocks) else None)


def _layers(snapshot: Snapshot) -> list[dict[str, Any]]:
    totals = {layer: snapshot.totals.get(f"prevented:{layer}", 0) for layer in LAYERS}
    most = max(totals.values(), default=0) or 1
    return [
        {
            "layer": layer,
            "words": words,
            "total": totals[layer],
            "per_s": snapshot.per_s(f"prevented:{layer}"),
            "share": totals[layer] / most,
        }
        for layer, words in LAYER_WORDS.items()
    ]
