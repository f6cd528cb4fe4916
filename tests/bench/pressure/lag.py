"""How late the workers' event loops were, from `/metrics`: two scrapes, and what lies between."""

from __future__ import annotations

import re
import urllib.request

from .verdicts import Lag

SERIES = re.compile(r'^chargeonce_event_loop_lag_seconds_(?:bucket\{le="([^"]+)"\}|(count)) ([0-9.e+]+)$', re.MULTILINE)
LATE_S = 0.05
SCRAPE_WITHIN_S = 10.0


def scrape(port: int) -> str:
    """Blocking. Raises OSError."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SCRAPE_WITHIN_S) as answer:
        return str(answer.read().decode())


def lag_between(before: str, after: str) -> Lag | None:
    """The looks between two scrapes; None where the metric is not there."""
    earlier, later = lag_of(before), lag_of(after)
    if earlier is None or later is None:
        return None
    return Lag(looks=later.looks - earlier.looks, late=later.late - earlier.late)


def lag_of(metrics: str) -> Lag | None:
    """All looks since the start, by the histogram's totals."""
    in_time = looks = None
    for bound, count, value in SERIES.findall(metrics):
        if count:
            looks = round(float(value))
        elif float(bound.replace("+Inf", "inf")) == LATE_S:
            in_time = round(float(value))
    return None if in_time is None or looks is None else Lag(looks=looks, late=looks - in_time)
