"""Schedules that once found something, each beside what it found: they are run again by every `prove`."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.schedule import Schedule, load

FOLDER = Path(__file__).parent


def corpus() -> dict[str, Schedule]:
    """Each schedule by its name. Raises ScheduleError for one that cannot be run any more."""
    return {path.stem: load(path) for path in sorted(FOLDER.glob("*.json"))}
