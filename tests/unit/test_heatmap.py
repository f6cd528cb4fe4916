"""The times below the heatmap are round, at every range."""

from __future__ import annotations

from service.dashboard.views.heatmap import RANGES, tick_s


def test_times_below_the_picture_are_whole_minutes_and_hours_that_begin_a_column() -> None:
    ticks = {name: tick_s(length_s) for name, (_, length_s, _) in RANGES.items()}

    assert ticks == {"15m": 120, "1h": 600, "6h": 3600, "24h": 7200}
    assert all(ticks[name] % length_s == 0 for name, (_, length_s, _) in RANGES.items())
