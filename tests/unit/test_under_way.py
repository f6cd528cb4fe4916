"""Waits that go on, on numbers: what is told of them, what others make of it, and what the page draws."""

from __future__ import annotations

import json
from typing import Any

import pytest

from locks.contention import InstanceSeen, Slot, contention_ratio, merged
from locks.histogram import BOUNDS_S, LogHistogram, bucket_of
from locks.picture import Picture
from locks.under_way import MOST_LINES, Levels, ages_of, cells_of, lines_of
from service.dashboard.formatting import at_most
from service.dashboard.views.heatmap import grid_of
from tests.unit.pictures import NOW_S, picture


def test_the_ratio_counts_who_stands_in_line() -> None:
    assert contention_ratio({}, 0) == 0.0
    assert contention_ratio({}, 1998) == 1.0
    assert contention_ratio({"acquired": 6, "gave_up:busy": 2, "contended": 4}, 0) == 0.5
    assert contention_ratio({"acquired": 6, "gave_up:busy": 2, "contended": 4}, 8) == 0.75


def test_of_many_lines_the_fullest_and_the_oldest_are_told_of() -> None:
    waits = {f"full:{number}": [1.0] * 100 for number in range(MOST_LINES)}
    waits |= {"old": [90.0], "none": [0.1]}
    lines = lines_of(waits)
    assert len(lines) <= MOST_LINES
    assert lines["old"] == (1, 90.0, 90.0)
    assert "none" not in lines
    assert ages_of(waits).count == 100 * MOST_LINES + 2


def test_a_cell_names_three_locks_at_most() -> None:
    waits = {f"lock:{number}": [1.0, 1.0, 5.0] for number in range(5)}
    cells = cells_of(waits, waits)
    early, late = f"w{bucket_of(1.0)} ", f"w{bucket_of(5.0)} "
    assert {cell: count for cell, count in cells.items() if cell.startswith(early)} == {
        f"{early}lock:{number}": 2 for number in range(3)
    }
    assert sum(cell.startswith(late) for cell in cells) == 3


def test_a_level_tells_what_changed_and_begins_anew_with_each_key() -> None:
    levels, sums = Levels(), dict[str, dict[str, int]]()
    for key, state in (("a", {"x": 5, "y": 1}), ("a", {"x": 3}), ("a", {"x": 3}), ("b", {"x": 3}), ("b", {})):
        for field, by in levels.changes("ages", key, state).items():
            at = sums.setdefault(key, {})
            at[field] = at.get(field, 0) + by
    assert sums == {"a": {"x": 3, "y": 0}, "b": {"x": 0}}
    assert levels.rises("cells", "a", {"x": 2}) == {"x": 2}
    assert levels.rises("cells", "a", {"y": 1}) == {"y": 1}
    assert levels.rises("cells", "a", {"x": 3, "y": 1}) == {"x": 1}
    assert levels.rises("cells", "b", {"x": 1}) == {"x": 1}


def test_instances_of_two_versions_read_each_other() -> None:
    so_far: dict[str, Any] = {"under_way": ages_of({"x": [4.0] * 3}), "waited_so_far": {"x": (12.0, 4.0)}}
    ours = picture(waiting=3, waited_for={"x": 3}, **so_far)
    assert Picture.read(ours.text()).under_way.counts == ours.under_way.counts
    old: dict[str, Any] = json.loads(ours.text())
    old = {name: value for name, value in old.items() if name not in so_far}
    newer = json.dumps({**json.loads(ours.text()), "from_the_future": 1})
    both = merged(NOW_S, [InstanceSeen(Picture.read(text), 0.0) for text in (json.dumps(old), newer)])
    # Of an older one it is known how many wait, and not for how long.
    assert (both.waiting, both.wait.count, both.contention_ratio) == (6, 3, 1.0)
    (line,) = both.lines
    assert (line.waits, line.waiting, line.total_wait_s, line.oldest_wait_s) == (6, 6, 12.0, 4.0)


def slot(at: float, *, ended: dict[int, int] | None = None, under_way: dict[int, int] | None = None) -> Slot:
    """Five seconds in which waits ended, and at whose end others went on."""
    ended_wait, went_on = LogHistogram.from_sparse(ended or {}), LogHistogram.from_sparse(under_way or {})
    return Slot(at, 5.0, {}, ended_wait, went_on, LogHistogram(), held=0.0, waiting=0.0)


def test_a_column_of_the_heatmap_counts_a_wait_once() -> None:
    slots = [
        slot(0, under_way={20: 9}),
        slot(5, under_way={21: 9}),
        slot(10, ended={22: 4}, under_way={22: 5}),
        slot(15, ended={23: 5}),
    ]
    grid = grid_of(slots, kind="wait", from_s=0, length_s=15, columns=2)
    assert [column.times.sparse() for column in grid.columns] == [{22: 9}, {23: 5}]
    assert [column.times.count for column in grid_of(slots, kind="hold", from_s=0, length_s=15, columns=2).columns] == [
        0,
        0,
    ]


def test_no_count_is_below_nothing() -> None:
    assert LogHistogram.from_sparse({3: -2, 4: 1}).sparse() == {4: 1}


@pytest.mark.parametrize(
    ("times_s", "share", "words"),
    [
        ([], 0.5, "–"),
        ([3.0], 0.5, "≤ 3.28 s"),
        ([0.00005], 0.99, "≤ 100 µs"),
        ([200.0], 0.5, "> 1 min 45 s"),
        ([0.001] * 60 + [200.0] * 40, 0.5, "≤ 1.13 ms"),
        ([0.001] * 60 + [200.0] * 40, 0.99, "> 1 min 45 s"),
    ],
)
def test_a_percentile_is_printed_as_the_bound_that_it_is(times_s: list[float], share: float, words: str) -> None:
    assert at_most(LogHistogram.of(times_s), share) == words
    assert LogHistogram.of([BOUNDS_S[-1]]).is_beyond(0.5) is False
