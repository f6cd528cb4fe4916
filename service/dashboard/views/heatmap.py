"""Heatmap: how long waits, or holds, took over time; each cell leads to the locks in it."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from locks.contention import Slot
from locks.histogram import BOUNDS_S, BUCKET_COUNT, LogHistogram
from service.dashboard.asked import Asked, minute_text
from service.dashboard.formatting import clock, duration
from service.dashboard.looking import Looking

# name: words, seconds that a column has, columns
RANGES = {
    "15m": ("15 minutes", 15, 60),
    "1h": ("1 hour", 60, 60),
    "6h": ("6 hours", 300, 72),
    "24h": ("24 hours", 900, 96),
}
KINDS = {"wait": "waits", "hold": "holds"}
SHADES = 6
FEWEST_ROWS = 8
TICK_STEPS_S = (60, 120, 300, 600, 1800, 3600, 7200)
FEWEST_COLUMNS_A_TICK = 8
SHOWN_LOCKS = 100
MINUTE_S = 60
# Instances tell once a second: a stretch of time that began less than this ago is not told of by all of them yet.
TOLD_BY_ALL_S = 2.0


@dataclass(frozen=True, slots=True)
class Cell:
    """How often a time fell into one bucket within one column; `shade` from 1 to SHADES."""

    column: int
    row: int
    bucket: int
    minute: str
    count: int
    shade: int
    words: str


@dataclass(frozen=True, slots=True)
class Column:
    """One stretch of time: where it begins, and its times."""

    at: float
    times: LogHistogram


@dataclass(frozen=True, slots=True)
class Grid:
    """The picture: rows from the longest times at the top to the shortest, columns from then to now."""

    columns: Sequence[Column]
    rows: Sequence[str]  # the upper bound of each
    cells: Sequence[Cell]
    most: int


async def heatmap(looking: Looking, asked: Asked) -> Mapping[str, Any]:
    """The grid, and the locks of the cell that was chosen."""
    kind = asked.choice("kind", KINDS)
    name = asked.choice("range", RANGES)
    _, length_s, columns = RANGES[name]
    minutes = max(1, length_s // MINUTE_S)
    last_s = asked.now_s - asked.now_s % length_s
    from_s = last_s - (columns - 1) * length_s
    if length_s < MINUTE_S:
        slots = await looking.contention.recent()
    else:
        slots = await looking.contention.minutes(from_s=from_s, until_s=asked.now_s)
    chosen_s, bucket = asked.minute("minute"), asked.integer("bucket", most=BUCKET_COUNT - 1)
    chosen = None
    if chosen_s is not None and bucket is not None:
        chosen = {
            "minute_s": chosen_s,
            "minute_text": minute_text(chosen_s),
            "until_s": chosen_s + minutes * MINUTE_S,
            "bucket": bucket,
            "bounds": bounds_words(bucket),
            "locks": await _locks_in(looking, chosen_s, minutes, kind, bucket),
        }
    return {
        "kind": kind,
        "kinds": KINDS,
        "chosen_range": name,
        "ranges": {key: words for key, (words, _, _) in RANGES.items()},
        "length_s": length_s,
        "tick_s": tick_s(length_s),
        "grid": grid_of(
            [slot for slot in slots if slot.at + TOLD_BY_ALL_S <= asked.now_s],
            kind=kind,
            from_s=from_s,
            length_s=length_s,
            columns=columns,
        ),
        "shades": SHADES,
        "chosen": chosen,
        "export": {"kind": kind, "range": name},
    }


def tick_s(length_s: int) -> int:
    """How far apart the times below the picture are: a round number, and room for each."""
    return next(step_s for step_s in TICK_STEPS_S if step_s >= FEWEST_COLUMNS_A_TICK * length_s)


def grid_of(slots: Sequence[Slot], *, kind: str, from_s: float, length_s: float, columns: int) -> Grid:
    """Slots, oldest first, as a grid. A wait is in the column it ended in, and in those at whose end it went on."""
    merged, last = [LogHistogram() for _ in range(columns)], dict[int, Slot]()
    for slot in slots:
        at = math.floor((slot.at - from_s) / length_s)
        if 0 <= at < columns:
            merged[at].merge(slot.ended_wait if kind == "wait" else slot.hold)
            last[at] = slot
    if kind == "wait":
        for at, slot in last.items():
            merged[at].merge(slot.under_way)
    top, bottom = _shown(merged)
    most = max((max(each.counts) for each in merged), default=0)
    cells = [
        _cell(column, top - bucket, bucket, count, most, from_s + column * length_s)
        for column, histogram in enumerate(merged)
        for bucket, count in sorted(histogram.sparse().items(), reverse=True)
    ]
    return Grid(
        columns=[Column(from_s + at * length_s, each) for at, each in enumerate(merged)],
        rows=[bound_words(bucket) for bucket in range(top, bottom - 1, -1)],
        cells=cells,
        most=most,
    )


def bound_words(bucket: int) -> str:
    """The upper bound of a bucket."""
    return duration(BOUNDS_S[bucket]) if bucket < len(BOUNDS_S) else f"> {duration(BOUNDS_S[-1])}"


def bounds_words(bucket: int) -> str:
    """Both bounds of a bucket."""
    if bucket == 0:
        return f"up to {duration(BOUNDS_S[0])}"
    if bucket >= len(BOUNDS_S):
        return f"longer than {duration(BOUNDS_S[-1])}"
    return f"{duration(BOUNDS_S[bucket - 1])} to {duration(BOUNDS_S[bucket])}"


def _shown(histograms: Sequence[LogHistogram]) -> tuple[int, int]:
    """The highest and the lowest bucket worth a row."""
    used = {bucket for histogram in histograms for bucket in histogram.sparse()} or {bucket_in_the_middle()}
    top, bottom = max(used), min(used)
    while top - bottom + 1 < FEWEST_ROWS:
        top, bottom = min(top + 1, BUCKET_COUNT - 1), max(bottom - 1, 0)
    return top, bottom


def bucket_in_the_middle() -> int:
    """Where an empty picture looks."""
    return BUCKET_COUNT // 2


def _cell(column: int, row: int, bucket: int, count: int, most: int, at_s: float) -> Cell:
    # By the logarithm: a single long wait beside ten thousand short ones must be seen.
    shade = 1 + round((SHADES - 1) * math.log(count) / math.log(most)) if most > 1 else SHADES
    words = f"{clock(at_s)[:5]}, {bounds_words(bucket)}: {count:,}"
    return Cell(column, row, bucket, minute_text(at_s), count, shade, words)


async def _locks_in(looking: Looking, from_s: float, minutes: int, kind: str, bucket: int) -> Sequence[tuple[str, int]]:
    which: Literal["wait", "hold"] = "wait" if kind == "wait" else "hold"
    found = await asyncio.gather(
        *[
            looking.contention.locks_in_cell(at_s=from_s + at * MINUTE_S, kind=which, bucket=bucket)
            for at in range(minutes)
        ]
    )
    together: Counter[str] = Counter()
    for each in found:
        together.update(dict(each))
    return together.most_common(SHOWN_LOCKS)
