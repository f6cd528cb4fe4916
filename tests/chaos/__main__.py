"""`python -m tests.chaos`: one run, or one of the commands beside it. Exit 0: no invariant was broken, and none that
every run is asked for is unknown; 1: one was broken; 2: the run could not be made, or too little happened to tell.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from service.dashboard.formatting import plural
from service.workers import wait_politely
from tests.chaos.arguments import kinds_of, parser
from tests.chaos.checks import worst_of
from tests.chaos.every_kind import available_in
from tests.chaos.instance import LOCK_AND_ROW
from tests.chaos.mutants import MUTANTS
from tests.chaos.report import write_report
from tests.chaos.run import RunError
from tests.chaos.schedule import Schedule, ScheduleError, expand, load
from tests.chaos.shrink import failing_in, shrink
from tests.chaos.standing import Judged, Standing
from tests.chaos.telling import again, tell
from tests.chaos.thresholds import least_of

SHRINK_S = 120.0
COMMANDS = {
    name: f"tests.chaos.{module}"
    for name, module in {
        "check": "check",
        "attach": "attach",
        "prove": "prove",
        "soak": "soak",
        "mutants": "teeth",
        "shrink": "shrink",
        "kinds": "listing",
        "worlds": "every_world",
        "interleave": "interleave.__main__",
        "race": "race",
    }.items()
}


def main(words: list[str]) -> int:
    """The exit status."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    console = Console()
    command: Callable[[list[str]], int] = _run
    if words and words[0] in COMMANDS:
        command = importlib.import_module(COMMANDS[words[0]]).main
        words = words[1:]
    try:
        return command(words)
    except (RunError, ScheduleError, OSError) as error:
        console.print(f"chaos: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        console.print("chaos: interrupted, and everything it had started is stopped", style="red")
    return 2


def _run(words: list[str]) -> int:
    asked = parser().parse_args(words)
    console = Console()
    wait_politely()
    schedule = load(asked.schedule) if asked.schedule else _drawn(asked)
    printed = asked.history.with_suffix(".schedule.json")
    schedule.save(printed)
    console.print(
        f"{plural(len(schedule.faults), 'fault')} in {printed}, from seed {schedule.seed};"
        f" {plural(schedule.instances, 'instance')}, {plural(schedule.clients, 'client')},"
        f" {schedule.duration_s:g} s under faults …",
        highlight=False,
    )
    exit_codes = []
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, _standing(Path(folder), schedule) as standing:
        for _ in range(asked.times):
            judged = standing.run(schedule, asked.history, rate=asked.rate, thresholds=least_of(schedule))
            exit_codes.append(judged.exit_code)
            tell(console, judged)
        write_report(asked.report, judged.events, judged.verdicts, command=again(printed))
        broken = exit_codes.count(1)
        if broken and _is_to_be_shrunk(asked.shrink_s, schedule):
            _cut_down(console, standing, Path(folder), judged, asked)
    if asked.times > 1:
        console.print(f"broken in {broken} of {asked.times} runs of this schedule", highlight=False)
    console.print(f"report: {asked.report}; again: {again(printed)}", highlight=False, soft_wrap=True)
    return worst_of(exit_codes)


def _is_to_be_shrunk(within_s: float | None, schedule: Schedule) -> bool:
    """Unless told otherwise only what should have held: a guard or mutant that is broken is no news."""
    if within_s is None:
        return schedule.guard == LOCK_AND_ROW and schedule.mutant is None
    return within_s > 0


def _cut_down(console: Console, standing: Standing, folder: Path, judged: Judged, asked: argparse.Namespace) -> None:
    within_s = asked.shrink_s or SHRINK_S
    console.print(f"cutting the schedule down, for {within_s:g} s at the most …", highlight=False)
    fails = failing_in(standing, folder, judged.broken, rate=asked.rate)
    shrunk = shrink(judged.schedule, fails, within_s=within_s)
    path = asked.history.with_suffix(".shrunk.json")
    shrunk.schedule.save(path)
    console.print(
        f"{plural(len(judged.schedule.faults), 'fault')} cut down to {len(shrunk.schedule.faults)}"
        f" in {plural(shrunk.trials, 'run')}:"
        f" {again(path)}",
        highlight=False,
        soft_wrap=True,
    )


def _standing(folder: Path, schedule: Schedule) -> Standing:
    if schedule.mutant is None:
        return Standing(folder, world=schedule.world)
    mutant = MUTANTS[schedule.mutant]
    return Standing(folder, world=mutant.world, postgres_settings=dict(mutant.postgres_settings))


def _drawn(asked: argparse.Namespace) -> Schedule:
    schedule = Schedule(
        seed=asked.seed,
        instances=asked.instances,
        duration_s=asked.duration_s,
        clients=asked.clients,
        guard=asked.guard,
        mutant=asked.mutant,
        world=asked.world,
        takeover_grace_ms=asked.takeover_grace_ms,
    )
    return expand(schedule, kinds=kinds_of(asked.faults, available_in(asked.world)))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
