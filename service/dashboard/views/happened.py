"""Incidents, instances, and the log of forced releases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from db import lock_audit
from service.dashboard.asked import Asked
from service.dashboard.looking import Looking
from service.dashboard.views.incident_groups import grouped
from service.dashboard.views.kinds import KINDS, lost_in, rows_of
from service.dashboard.views.overview import ENTERED

LOOKED_AT_INCIDENTS = 1000
SHOWN_GROUPS = 100
ENTRIES_A_PAGE = 50


async def incidents(looking: Looking, asked: Asked) -> Mapping[str, Any]:
    """The newest of a day, all or of one kind."""
    kind = asked.choice("kind", ("", *KINDS))
    found = await looking.contention.incidents(kinds=frozenset({kind}) if kind else None, limit=LOOKED_AT_INCIDENTS)
    rows = rows_of(found, now_s=asked.now_s)
    groups = grouped(rows)
    return {
        "incidents": rows,
        "groups": groups[:SHOWN_GROUPS],
        "group_count": len(groups),
        "kind": kind,
        "kinds": KINDS,
        "limit": LOOKED_AT_INCIDENTS,
        "export": {"kind": kind},
    }


async def instances(looking: Looking, asked: Asked) -> Mapping[str, Any]:
    """Each instance at its last sign of life."""
    snapshot = await looking.contention.snapshot()
    window_s = snapshot.window_s
    rows = [
        {
            "picture": each.picture,
            "age_s": each.age_s,
            "up_s": max(0.0, asked.now_s - each.picture.started_at),
            "acquired_per_s": each.picture.counts.get("acquired", 0) / window_s,
            "contended_per_s": each.picture.counts.get("contended", 0) / window_s,
            "entered_per_s": sum(each.picture.counts.get(f"charges:{outcome}", 0) for outcome in ENTERED) / window_s,
            "waits": each.picture.all_waits,
            "wait_p99_s": each.picture.all_waits.quantile(0.99),
            "lost": lost_in(each.picture.totals),
            "is_here": each.picture.instance_id == looking.instance_id,
        }
        for each in snapshot.instances
    ]
    return {"rows": rows, "window_s": window_s, "export": {}}


async def audit_log(looking: Looking, asked: Asked) -> Mapping[str, Any]:
    """Who forced which lease out, newest first."""
    before = asked.integer("before")
    entries, next_before = await looking.reading.run(
        lambda database: lock_audit.entries(database, limit=ENTRIES_A_PAGE, before=before), caller=asked.caller
    )
    return {
        "entries": entries,
        "next_before": next_before,
        "before": before,
        "now_s": asked.now_s,
        "actions": {
            lock_audit.FORCE_RELEASE: ("released", "warn"),
            lock_audit.REFUSED: ("refused: holder changed", "calm"),
            lock_audit.UNKNOWN: ("unknown: lock store down", "bad"),
        },
        "export": {"before": before},
    }
