"""Series as SVG paths in a box of 1000 × 100 that the page stretches; their labels stand beside it as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from service.dashboard.formatting import duration, number
from tests.chaos.checks.evidence import Evidence
from tests.chaos.checks.spans import Fault
from tests.chaos.report.moments import origin_of
from tests.chaos.report.scopes import EVERYBODY, instance_of
from tests.chaos.report.series import Series

WIDTH, HEIGHT = 1000.0, 100.0
MOST_BANDS = 400
NARROWEST_BAND = 1.0
STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
MOST_TICKS = 8


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its name, its class in the style sheet, its path."""

    name: str
    tone: str
    path: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A label at so many percent of the box."""

    percent: float
    label: str


@dataclass(frozen=True, slots=True)
class Band:
    """A fault's stretch of the box, in the box's units."""

    x: float
    width: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """All that the template draws of one chart."""

    title: str
    summary: str
    lines: Sequence[Line]
    ticks: Sequence[Tick]
    times: Sequence[Tick]
    bands: Sequence[Band]


def latency_chart(evidence: Evidence, series: Series) -> Chart:
    """p50 and p99 on a logarithmic scale."""
    values = [each for bin in series.bins for each in (bin.p50_ms, bin.p99_ms) if each]
    lowest = math.floor(math.log10(min(values, default=1)))
    decades = max(1, math.ceil(math.log10(max(values, default=10))) - lowest)

    def share(value: float | None) -> float | None:
        return (math.log10(value) - lowest) / decades if value else None

    lines = [
        Line("p50", "blue", _path(series, [share(each.p50_ms) for each in series.bins])),
        Line("p99", "vermillion", _path(series, [share(each.p99_ms) for each in series.bins])),
    ]
    ticks = [Tick(100 - 100 * step / decades, _milliseconds(10 ** (lowest + step))) for step in range(decades + 1)]
    summary = f"p50 {_duration(series.p50_ms)}, p99 {_duration(series.p99_ms)} over the whole run"
    return Chart("Latency of entries", summary, lines, ticks, _times(series), _bands(evidence, series))


def rate_chart(evidence: Evidence, series: Series) -> Chart:
    """Answers a second by what they were."""
    top = _round_up(max((rate for each in series.bins for rate in each.per_s.values()), default=1.0))

    def line(name: str, tone: str) -> Line:
        return Line(name, tone, _path(series, [each.per_s.get(name, 0.0) / top for each in series.bins]))

    lines = [line("ok", "blue"), line("refused", "orange"), line("unknown", "vermillion")]
    ticks = [Tick(100 - 25 * step, f"{top * step / 4:g}") for step in range(5)]
    summary = ", ".join(f"{number(count)} {name}" for name, count in sorted(series.answers.items())) or "none"
    return Chart("Answers a second", summary, lines, ticks, _times(series), _bands(evidence, series))


def _times(series: Series) -> list[Tick]:
    """At most eight round times."""
    step = next((each for each in STEPS_S if series.length_s / each <= MOST_TICKS), STEPS_S[-1])
    return [Tick(100 * at_s / series.length_s, _time(at_s)) for at_s in range(0, int(series.length_s) + 1, step)]


def _bands(evidence: Evidence, series: Series) -> list[Band]:
    """The faults that struck everybody."""
    scale = WIDTH / series.length_s / 1e9
    for_all = [fault for fault in evidence.faults if instance_of(fault) == EVERYBODY]
    return [_band(fault, fault.began - origin_of(evidence), scale) for fault in for_all[:MOST_BANDS]]


def _band(fault: Fault, since: int, scale: float) -> Band:
    x = min(WIDTH, since * scale)
    width = min(WIDTH - x, max(NARROWEST_BAND, (fault.ended - fault.began) * scale))
    return Band(round(x, 2), round(width, 2), f"{fault.kind.replace('_', ' ')} at {since / 1e9:.2f} s")


def _path(series: Series, shares: Sequence[float | None]) -> str:
    """A line through the middles of the bins, broken where a bin has nothing."""
    steps, pen_down = [], False
    for each, share in zip(series.bins, shares, strict=True):
        if share is not None:
            x, y = (each.at_s + series.width_s / 2) / series.length_s * WIDTH, HEIGHT * (1 - share)
            steps.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        pen_down = share is not None
    return "".join(steps)


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value or 1))
    return next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value)


def _duration(milliseconds: float | None) -> str:
    return duration(None if milliseconds is None else milliseconds / 1000)


def _milliseconds(value: float) -> str:
    return f"{value / 1000:g} s" if value >= 1000 else f"{value:g} ms"


def _time(at_s: int) -> str:
    return f"{at_s} s" if at_s < 120 else f"{at_s // 60}:{at_s % 60:02d} min"
