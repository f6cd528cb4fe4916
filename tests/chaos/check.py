"""`python -m tests.chaos check FILE.jsonl [--database-url URL]`: judges a recorded history again."""

from __future__ import annotations

import argparse
from pathlib import Path

import psycopg2
from rich.console import Console

from tests.chaos.attach import ATTACHED, what_can_be_told
from tests.chaos.checks import Verdict, judge
from tests.chaos.history import Event, History, read_history
from tests.chaos.leftovers import write_tables
from tests.chaos.report import write_report
from tests.chaos.run import RunError
from tests.chaos.schedule import Schedule
from tests.chaos.standing import Judged
from tests.chaos.telling import tell
from tests.chaos.thresholds import least_of


def main(words: list[str]) -> int:
    """The exit status, as of a run."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos check", description=__doc__)
    parser.add_argument("history", type=Path)
    parser.add_argument("--database-url", help="its tables instead of those that the history holds")
    parser.add_argument("--report", type=Path, help="writes the report as well")
    asked = parser.parse_args(words)
    try:
        events = read_history(asked.history)
    except ValueError as error:
        raise RunError(f"{asked.history}: {error}") from error
    if asked.database_url:
        events = [event for event in events if event["e"] != "rows"] + _tables(asked.database_url, asked.history)
    runs = [event for event in events if event["e"] == "run"]
    if not runs:
        raise RunError(f"{asked.history}: there is no run in it")
    known = {name: runs[0][name] for name in Schedule.__dataclass_fields__ if name in runs[0]}
    if missing := {"seed", "instances", "duration_s"} - known.keys():
        raise RunError(f"{asked.history}: the run in it does not say {sorted(missing)[0]}")
    faults = [fault for event in events if event["e"] == "schedule" for fault in event["faults"]]
    schedule = Schedule(**known | {"faults": faults})
    judged = Judged(schedule, asked.history, events, _verdicts(schedule, events))
    tell(Console(), judged)
    if asked.report:
        write_report(asked.report, events, judged.verdicts, command=f"python -m tests.chaos check {asked.history}")
    return judged.exit_code


def _verdicts(schedule: Schedule, events: list[Event]) -> list[Verdict]:
    """On all that this run was asked for, and with the thresholds that it had."""
    if schedule.world == ATTACHED:  # attacked without a schedule
        return what_can_be_told(judge(events))
    has_schedule = any(event["e"] == "schedule" for event in events)
    return judge(events, thresholds=least_of(schedule) if has_schedule else None)


def _tables(database_url: str, beside: Path) -> list[dict[str, object]]:
    """The tables as they are now, as a history tells them."""
    path = beside.with_name(f"{beside.name}.tables")
    history = History(path)
    try:
        write_tables(history, database_url)
        return read_history(path)
    except psycopg2.Error as error:
        raise RunError(f"--database-url: {str(error).strip().splitlines()[0]}") from error
    finally:
        history.close()
        path.unlink()
