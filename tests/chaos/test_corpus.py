"""The corpus: every schedule that once found something can still be run."""

from __future__ import annotations

from tests.chaos.corpus import FOLDER, corpus


def test_every_schedule_of_the_corpus_can_be_run_and_has_faults() -> None:
    schedules = corpus()

    assert len(schedules) == len(list(FOLDER.glob("*.json"))) > 0
    assert all(schedule.faults for schedule in schedules.values())
