"""`python -m tests.chaos worlds`: a short run in each special world that can be had here, under its own faults."""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from service.workers import wait_politely
from tests.chaos.arguments import natural, positive
from tests.chaos.checks import in_words, worst_of
from tests.chaos.run import RunError
from tests.chaos.schedule import Schedule, expand
from tests.chaos.standing import Judged, Standing
from tests.chaos.telling import STYLES, tell
from tests.chaos.worlds import WORLDS, World

INSTANCES, CLIENTS = 3, 32
ORDINARY = {"die", "freeze"}


def main(words: list[str]) -> int:
    """0 when every run held, 1 when one did not, 2 when one could not be made or told."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos worlds", description="A run in each special world.")
    parser.add_argument("--seed", type=natural, default=1)
    parser.add_argument("--duration-s", type=positive, default=20.0, help="of each (20)")
    parser.add_argument("--rate", type=positive, default=300.0)
    parser.add_argument("--names", help="with commas between them (all)")
    asked = parser.parse_args(words)
    names = asked.names.split(",") if asked.names else list(WORLDS)
    for name in names:
        if name not in WORLDS:
            parser.error(f"--names: there is no world {name!r}; there are {', '.join(WORLDS)}")
    wait_politely()
    console, worst, rows = Console(), 0, []
    for name in names:
        status, row = _visited(console, WORLDS[name], seed=asked.seed, duration_s=asked.duration_s, rate=asked.rate)
        worst = worst_of((worst, status))
        rows.append(row)
    console.print(table_of(rows))
    return worst


def _visited(
    console: Console, world: World, *, seed: int, duration_s: float, rate: float
) -> tuple[int, dict[str, Any]]:
    row: dict[str, Any] = {"world": world.name, "faults": 0, "operations": 0, "verdict": "", "skipped": world.needs()}
    if row["skipped"]:
        return 0, row
    kinds = {kind.name for kind in world.kinds} | ORDINARY
    schedule = Schedule(
        seed=seed, instances=INSTANCES, duration_s=duration_s, clients=CLIENTS, world=world.name, settle_s=15.0
    )
    try:
        with (
            tempfile.TemporaryDirectory(prefix="chaos-world-") as folder,
            Standing(Path(folder), world=world.name) as standing,
        ):
            judged = standing.run(expand(schedule, kinds=kinds), Path(folder) / "history.jsonl", rate=rate)
    except RunError as error:
        return 2, row | {"verdict": str(error)}
    if judged.exit_code:
        tell(console, judged)
    return judged.exit_code, row | _facts(world, judged)


def _facts(world: World, judged: Judged) -> dict[str, Any]:
    missed = {event["id"] for event in judged.events if event["e"] == "missed"}
    fired = Counter(event["kind"] for event in judged.events if event["e"] == "fault" and event["id"] not in missed)
    return {
        "faults": fired.total(),
        "own": ", ".join(f"{kind.name} {fired[kind.name]}" for kind in world.kinds),
        "operations": sum(event["e"] == "invoke" for event in judged.events),
        "verdict": f"[{STYLES[judged.exit_code]}]{in_words(judged.verdicts)}[/]",
    }


def table_of(rows: list[dict[str, Any]]) -> Table:
    """For a terminal."""
    table = Table(show_edge=False, pad_edge=False)
    for column in ("world", "operations", "faults", "its own", "verdict"):
        table.add_column(column)
    for row in rows:
        verdict = f"skipped: {row['skipped']}" if row["skipped"] else row["verdict"]
        table.add_row(row["world"], f"{row['operations']:,}", str(row["faults"]), row.get("own", ""), verdict)
    return table
