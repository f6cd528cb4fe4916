"""The schedule: drawn by the seed alone, written, read, refused by name, cut down."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.faults import KINDS
from tests.chaos.points import TARGET_POINTS
from tests.chaos.schedule import Schedule, ScheduleError, expand, load
from tests.chaos.shrink import shrink

AT_POINTS = sorted(kind.name for kind in KINDS.values() if kind.targeted)


def drawn(seed: int = 7, *, duration_s: float = 60.0, kinds: set[str] | None = None) -> Schedule:
    return expand(Schedule(seed=seed, instances=3, duration_s=duration_s), kinds=kinds or set(KINDS))


def test_the_same_seed_gives_the_same_schedule_and_another_seed_another() -> None:
    assert drawn(7) == drawn(7)
    assert drawn(7).faults != drawn(8).faults


def test_a_minute_aims_at_every_point_with_every_kind() -> None:
    aimed = {(fault["point"], fault["kind"]) for fault in drawn().faults if "point" in fault}

    assert set(itertools.product(TARGET_POINTS, AT_POINTS)) <= aimed


def test_a_lost_lease_is_staged_by_a_freeze_of_its_holder() -> None:
    faults = drawn().faults
    for before, fault in itertools.pairwise(faults):
        if fault.get("point") == "lost":
            assert (before["kind"], before["point"], before["instance"]) == ("freeze", "acquired", fault["instance"])
            assert before["leases"] > 1


def test_a_schedule_is_read_as_it_was_written(tmp_path: Path) -> None:
    schedule = replace(drawn(), mutant=None, mix={"crowd": 1.0})
    schedule.save(tmp_path / "schedule.json")

    assert load(tmp_path / "schedule.json") == schedule


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": 2}, "version"),
        ({"seed": None}, "seed"),
        ({"speed": 1}, "speed"),
        ({"faults": [{"id": 1, "kind": "earthquake", "at_s": 1}]}, "earthquake|kind"),
        ({"faults": [{"id": 1, "kind": "die", "instance": 1, "point": "lunch", "nth": 1}]}, "point"),
        ({"faults": [{"id": 1, "kind": "die", "instance": 9, "point": "acquired", "nth": 1}]}, "instance"),
    ],
)
def test_a_schedule_that_cannot_be_run_is_refused_by_the_name_of_what_is_wrong(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    whole: dict[str, Any] = {"version": 1, "seed": 1, "instances": 3, "duration_s": 5, "faults": [], **change}
    (tmp_path / "schedule.json").write_text(
        json.dumps({key: value for key, value in whole.items() if value is not None})
    )

    with pytest.raises(ScheduleError, match=named):
        load(tmp_path / "schedule.json")


def test_shrinking_keeps_just_the_faults_that_it_takes_together() -> None:
    schedule = drawn(duration_s=20.0)
    culprits = {schedule.faults[3]["id"], schedule.faults[-5]["id"]}

    def fails(candidate: Schedule) -> bool:
        return culprits <= {fault["id"] for fault in candidate.faults}

    shrunk = shrink(schedule, fails, within_s=60.0)

    assert {fault["id"] for fault in shrunk.schedule.faults} == culprits
    assert shrunk.schedule.duration_s < schedule.duration_s
    assert fails(shrunk.schedule)


def test_a_failure_that_needs_no_fault_is_cut_down_to_none() -> None:
    assert shrink(drawn(), lambda candidate: True, within_s=60.0).schedule.faults == []
