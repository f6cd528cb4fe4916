"""Numbers and times as people read them: short, with their units, and the same everywhere on the page."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from locks.histogram import BOUNDS_S, LogHistogram

NOTHING = "–"
MOST_RUN = 16
_PART = re.compile(rf"(?:[^:/._,@\s-]|(?<=\d)\.(?=\d)){{1,{MOST_RUN}}}[:/._,@\s-]*|[:/._,@\s-]+")


def duration(seconds: float | None) -> str:
    """840 µs, 12 ms, 1.24 s, 42 s, 3 min 05 s, 2 h 14 min, 3 d 4 h."""
    if seconds is None:
        return NOTHING
    if seconds < 0.0000005:
        return "0 s"
    if seconds < 0.0009995:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.9995:
        return f"{_three(seconds * 1000)} ms"
    if seconds < 59.95:
        return f"{_three(seconds)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def at_most(times: LogHistogram, share: float) -> str:
    """≤ 3.28 s: the upper bound of the bucket that a percentile lies in, as such; – where there is none."""
    if not times.count:
        return NOTHING
    return f"> {duration(BOUNDS_S[-1])}" if times.is_beyond(share) else f"≤ {duration(times.quantile(share))}"


def ago(seconds: float) -> str:
    """The same without its second unit, as it is said of the past."""
    if seconds < 1.5:
        return "just now"
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return f"{int(seconds)} s ago"


def number(count: float | None) -> str:
    """12,345."""
    return NOTHING if count is None else f"{count:,.0f}"


def rate(per_s: float) -> str:
    """0, 0.3, 12.4, 1,240."""
    if per_s == 0:
        return "0"
    if per_s < 0.1:
        return f"{per_s:.2f}"
    return f"{per_s:.1f}" if per_s < 100 else f"{per_s:,.0f}"


def percent(share: float) -> str:
    """0 %, 0.4 %, 12 %."""
    if share == 0:
        return "0 %"
    if share < 0.001:
        return "< 0.1 %"
    return f"{share * 100:.1f} %" if share < 0.1 else f"{share * 100:.0f} %"


def stamp(at: datetime | float) -> str:
    """2026-11-25 14:03:22 UTC: what stands in a title, in full."""
    return moment(at).strftime("%Y-%m-%d %H:%M:%S UTC")


def clock(at: datetime | float) -> str:
    """14:03:22, UTC."""
    return moment(at).strftime("%H:%M:%S")


def iso(at: datetime | float) -> str:
    """RFC 3339, for machines."""
    return moment(at).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment(at: datetime | float) -> datetime:
    """Unix seconds or a time of any zone, in UTC."""
    return at.astimezone(UTC) if isinstance(at, datetime) else datetime.fromtimestamp(at, UTC)


def plural(count: int, one: str, many: str | None = None) -> str:
    """1 lock, 2 locks."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def parts(text: str) -> list[str]:
    """The text in pieces between which a line may break: after separators, not in a number, at MOST_RUN at last."""
    return _PART.findall(text)


def _three(value: float) -> str:
    """Three digits: 1.24, 12.4, 124."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
