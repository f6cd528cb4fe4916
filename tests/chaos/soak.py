"""`python -m tests.chaos soak --for-s 3600`: one seed after the other, each on empty tables, each judged; stops at the
first that is broken and keeps its history, its schedule and its report.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from rich.console import Console

from service.workers import wait_politely
from tests.chaos.arguments import count, kinds_of, natural, positive
from tests.chaos.checks import in_words, worst_of
from tests.chaos.every_kind import PLAIN, available_in
from tests.chaos.report import write_report
from tests.chaos.schedule import Schedule, expand
from tests.chaos.standing import Judged, Standing
from tests.chaos.telling import again, summary, tell
from tests.chaos.thresholds import least_of
from tests.chaos.totals import Totals
from tests.chaos.worlds import WORLDS


def main(words: list[str]) -> int:
    """0 when every run held, 1 at the first that did not, 2 when too little happened in one."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos soak", description="One seed after the other.")
    parser.add_argument("--for-s", type=positive, default=3600.0, help="begins no run after so many seconds (3600)")
    parser.add_argument("--each-s", type=positive, default=60.0, help="a run's time under faults (60)")
    parser.add_argument("--first-seed", type=natural, default=1)
    parser.add_argument("--instances", type=count, default=3)
    parser.add_argument("--clients", type=count, default=32)
    parser.add_argument("--rate", type=positive, default=450.0)
    parser.add_argument("--faults", default="all")
    parser.add_argument("--targets", type=count, help="faults are aimed at the first so many instances (all)")
    parser.add_argument("--world", choices=(PLAIN, *WORLDS), default=PLAIN)
    parser.add_argument("--folder", type=Path, default=Path("chaos-soak"), help="totals, and what was broken")
    asked = parser.parse_args(words)
    asked.folder.mkdir(exist_ok=True)
    console, totals = Console(), Totals()
    wait_politely()
    kinds = kinds_of(asked.faults, available_in(asked.world))
    end_s = time.monotonic() + asked.for_s
    worst = 0
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, Standing(Path(folder), world=asked.world) as standing:
        seed = asked.first_seed
        while time.monotonic() < end_s and worst != 1:
            schedule = Schedule(
                seed=seed,
                instances=asked.instances,
                duration_s=asked.each_s,
                clients=asked.clients,
                world=asked.world,
            )
            schedule = expand(schedule, kinds=kinds, targets=asked.targets)
            judged = standing.run(
                schedule, asked.folder / "history.jsonl", rate=asked.rate, thresholds=least_of(schedule)
            )
            totals.add(judged)
            worst = worst_of((worst, judged.exit_code))
            console.print(
                f"seed {seed}: exit {judged.exit_code}; {summary(judged.events)}; {in_words(judged.verdicts)}",
                highlight=False,
            )
            if judged.exit_code:
                _keep(console, asked.folder, judged)
            (asked.folder / "totals.json").write_text(json.dumps(totals.as_json(), indent=2) + "\n")
            seed += 1
    console.print_json(json.dumps(totals.as_json()))
    return worst


def _keep(console: Console, folder: Path, judged: Judged) -> None:
    tell(console, judged)
    name = f"seed-{judged.schedule.seed}"
    judged.history.rename(folder / f"{name}.jsonl")
    schedule = folder / f"{name}.schedule.json"
    judged.schedule.save(schedule)
    write_report(folder / f"{name}.html", judged.events, judged.verdicts, command=again(schedule))
    console.print(f"again: {again(schedule)}", highlight=False, soft_wrap=True)
