"""`python -m tests.chaos`: one run, or one of the commands beside it. Exit 0: every invariant held; 1: one was broken;
2: the run could not be made, or too little happened to tell.
"""

from __future__ import annotations

import importlib
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from service.workers import wait_politely
from tests.chaos.arguments import kinds_of, parser
from tests.chaos.every_kind import available_in
from tests.chaos.report import write_report
from tests.chaos.run import RunError
from tests.chaos.schedule import Schedule, ScheduleError, expand, load
from tests.chaos.standing import Standing
from tests.chaos.telling import again, tell
from tests.chaos.thresholds import least_of

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
    console.print(f"{len(schedule.faults)} faults in {printed}, from seed {schedule.seed}", highlight=False)
    broken = 0
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, _standing(Path(folder), schedule) as standing:
        for _ in range(asked.times):
            judged = standing.run(schedule, asked.history, rate=asked.rate, thresholds=least_of(schedule))
            broken += judged.exit_code == 1
            tell(console, judged)
    if asked.times > 1:
        console.print(f"broken in {broken} of {asked.times} runs of this schedule", highlight=False)
    write_report(asked.report, judged.events, judged.verdicts, command=again(printed))
    console.print(f"report: {asked.report}; again: {again(printed)}", highlight=False, soft_wrap=True)
    return 1 if broken else judged.exit_code


def _standing(folder: Path, schedule: Schedule) -> Standing:
    return Standing(folder, world=schedule.world)


def _drawn(asked: object) -> Schedule:
    a = vars(asked)
    schedule = Schedule(
        seed=a["seed"],
        instances=a["instances"],
        duration_s=a["duration_s"],
        clients=a["clients"],
        guard=a["guard"],
        mutant=a["mutant"],
        world=a["world"],
    )
    return expand(schedule, kinds=kinds_of(a["faults"], available_in(a["world"])))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
