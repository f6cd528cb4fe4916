"""What the charts draw: one row of numbers for each stretch of time, and marks for what happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from locks.contention import Slot
from service.dashboard.asked import Asked
from service.dashboard.looking import Looking
from service.dashboard.views.kinds import KINDS, lost_in
from service.dashboard.views.overview import ENTERED, RANGES

HOURS = {"1h": 1, "6h": 6, "24h": 24}
MOST_MARKS = 200
MARKED = frozenset(
    {"lost", "takeover", "forced", "fenced", "charge-unknown", "instance-up", "instance-stopped", "instance-down"}
)


async def series(looking: Looking, asked: Asked) -> Mapping[str, Any]:
    """Columns of the same length, times in unix seconds; marks newest first."""
    chosen = asked.choice("range", RANGES)
    if chosen == "15m":
        slots = (await looking.contention.recent())[:-1]  # the last one is not over yet
    else:
        from_s = asked.now_s - HOURS[chosen] * 3600
        slots = (await looking.contention.minutes(from_s=from_s, until_s=asked.now_s))[:-1]
    slots = _from_the_first(slots)
    incidents = await looking.contention.incidents(kinds=MARKED, limit=MOST_MARKS)
    first_s = slots[0].at if slots else asked.now_s
    return {
        "range": chosen,
        **_columns(slots),
        "marks": [
            {
                "at": round(each.at, 3),
                "kind": each.kind,
                "word": KINDS[each.kind].word,
                "name": each.name,
                "instance": each.instance_id,
            }
            for each in incidents
            if each.at >= first_s
        ],
    }


def _from_the_first(slots: Sequence[Slot]) -> Sequence[Slot]:
    """Without the time before anything was seen, and two at least: an axis of time needs a beginning and an end."""
    seen = [at for at, slot in enumerate(slots) if slot.counts or slot.held or slot.waiting]
    return slots[max(0, seen[0] - 1) :] if seen else slots[-2:]


def _columns(slots: Sequence[Slot]) -> dict[str, list[float | None]]:
    return {
        "at": [slot.at for slot in slots],
        "held": [round(slot.held, 2) for slot in slots],
        "waiting": [round(slot.waiting, 2) for slot in slots],
        "wait_p50_ms": [_ms(slot.wait.quantile(0.5)) for slot in slots],
        "wait_p99_ms": [_ms(slot.wait.quantile(0.99)) for slot in slots],
        "hold_p99_ms": [_ms(slot.hold.quantile(0.99)) for slot in slots],
        "charged_per_s": [_per_s(slot, ("charges:charged",)) for slot in slots],
        "entered_per_s": [_per_s(slot, [f"charges:{outcome}" for outcome in ENTERED]) for slot in slots],
        "contended_percent": [round(slot.contention_ratio * 100, 2) for slot in slots],
        "lost": [lost_in(slot.counts) for slot in slots],
    }


def _per_s(slot: Slot, keys: Sequence[str]) -> float:
    return round(sum(slot.counts.get(key, 0) for key in keys) / slot.length_s, 2)


def _ms(seconds: float) -> float | None:
    """None, a gap in the line, where nobody waited."""
    return round(seconds * 1000, 3) or None
