"""Hot locks: which ones were waited for longest, all waits together; now, or in a minute of the last day."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.dashboard.asked import Asked, minute_text
from service.dashboard.looking import Looking

SORTS = {"wait": "total wait", "queue": "waiting now"}


async def hot(looking: Looking, asked: Asked) -> Mapping[str, Any]:
    """The hottest locks."""
    minute_s = asked.minute("minute")
    by = asked.choice("by", SORTS)
    if minute_s is None:
        snapshot = await looking.contention.snapshot()
        found, window_s = list(snapshot.hottest), snapshot.window_s
        if by == "queue":
            found.sort(key=lambda each: (-each.waiting, -each.total_wait_s, each.name))
    else:
        found, window_s = list(await looking.contention.hot_in(at_s=minute_s)), 60.0
    return {
        "hottest": found,
        "by": by,
        "sorts": SORTS,
        "minute_s": minute_s,
        "minute": "" if minute_s is None else minute_text(minute_s),
        "window_s": window_s,
        "most_s": max((each.total_wait_s for each in found), default=0.0) or 1.0,
        "export": {"by": by, "minute": "" if minute_s is None else minute_text(minute_s)},
    }
