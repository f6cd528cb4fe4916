"""Whether the checkers bite: every mutant of the product must be found, by the property that it is tied to.

`python -m tests.chaos mutants [--names A,B] [--seeds N] [--within-s 30]`: exit 0 when all were found in time, else 1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.arguments import count, natural, positive
from tests.chaos.mutants import MUTANTS, Mutant
from tests.chaos.nursery import ROOT
from tests.chaos.run import RunError
from tests.chaos.schedule import Schedule, expand
from tests.chaos.standing import Standing
from tests.chaos.workload.config import LEASE_CLIENTS, OVERSLEEPS

LONGER = 1.6  # each run than the one before, until it is found
INSTANCES = 3
# Where leases over HTTP are much needed.
MANY_LEASE_CLIENTS, OFTEN_OVERSLEEPS = 8, 0.6
AFTER_ALL = {"alive_after_healing", "nothing_left_behind"}  # what is only seen when all faults are over
MIX_OF_HINT = {
    "hot": {"crowd": 0.8, "wide": 0.1, "again": 0.1},
    "retries": {"crowd": 0.6, "wide": 0.1, "again": 0.3},
    "leases": {"crowd": 0.6, "wide": 0.3, "again": 0.1},
    "wide": {"wide": 0.7, "crowd": 0.2, "again": 0.1},
    "payers": {"payers": 0.8, "crowd": 0.1, "wide": 0.1},
    "coupons": {"poor": 0.7, "crowd": 0.2, "again": 0.1},
}


@dataclass(frozen=True, slots=True)
class Detection:
    """What became of one search. `found_in_s`: from its first run's start on; None: not found in time, or it could not
    be looked for, and then `why` says so."""

    mutant: str
    seed: int
    found_in_s: float | None
    caught: list[str] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)  # kinds of the run that found it
    why: str = ""


def search(standing: Standing, folder: Path, mutant: Mutant, *, seed: int, within_s: float) -> Detection:
    """Runs until one of the mutant's properties is broken. Raises RunError."""
    begun_at_s = time.monotonic()
    number = 0
    while (left_s := within_s - (time.monotonic() - begun_at_s)) > 0:
        duration_s = min(mutant.run_s * LONGER**number, max(mutant.run_s, left_s))
        judged = standing.run(
            schedule_of(mutant, seed=seed * 1000 + number, duration_s=duration_s), folder / "mutant.jsonl"
        )
        took_s = time.monotonic() - begun_at_s
        number += 1
        if set(judged.broken) & set(mutant.caught_by):
            kinds = Counter(event["kind"] for event in judged.events if event["e"] == "fault")
            return Detection(mutant.name, seed, round(took_s, 2), judged.broken, dict(kinds))
    return Detection(mutant.name, seed, None)


def schedule_of(mutant: Mutant, *, seed: int, duration_s: float) -> Schedule:
    """A run that aims at where the mutant shows best."""
    mix: dict[str, float] = defaultdict(float)
    for hint in mutant.hints or ("hot", "wide"):
        for mode, share in MIX_OF_HINT[hint].items():
            mix[mode] += share
    schedule = Schedule(
        seed=seed,
        instances=INSTANCES,
        duration_s=duration_s,
        clients=mutant.clients,
        mutant=mutant.name,
        world=mutant.world,
        mix=dict(mix),
        lease_clients=MANY_LEASE_CLIENTS if "leases" in mutant.hints else LEASE_CLIENTS,
        oversleeps=OFTEN_OVERSLEEPS if "leases" in mutant.hints else OVERSLEEPS,
        quiet_leases=2.5 if set(mutant.caught_by) & AFTER_ALL else 0.5,
        settle_s=10.0 if "nothing_left_behind" in mutant.caught_by else 0.5,
    )
    aimed = {kind for _, kind in mutant.points}
    schedule = expand(schedule, kinds={*aimed, *mutant.ambient}, cells=mutant.points)
    if not mutant.targets:
        return schedule
    return schedule.without({fault["id"] for fault in schedule.faults if fault["instance"] not in mutant.targets})


def searches(names: Iterable[str], seeds: Sequence[int], *, within_s: float) -> Iterator[Detection]:
    """Each mutant with each seed, on servers that stand for as many as they can. Blocking."""
    standings: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name in names:
        mutant = MUTANTS[name]
        standings[mutant.world, *sorted(mutant.postgres_settings.items())].append(name)
    for together in standings.values():
        with tempfile.TemporaryDirectory(prefix="chaos-mutants-") as folder:
            yield from _on_one_ground(Path(folder), together, seeds, within_s=within_s)


def _on_one_ground(folder: Path, names: Sequence[str], seeds: Sequence[int], *, within_s: float) -> Iterator[Detection]:
    first = MUTANTS[names[0]]
    with ExitStack() as stack:
        try:
            standing = stack.enter_context(
                Standing(folder, world=first.world, postgres_settings=dict(first.postgres_settings))
            )
        except RunError as error:
            yield from (Detection(name, seed, None, why=str(error)) for name in names for seed in seeds)
            return
        for name, seed in itertools.product(names, seeds):
            try:
                yield search(standing, folder, MUTANTS[name], seed=seed, within_s=within_s)
            except RunError as error:
                yield Detection(name, seed, None, why=str(error))


def in_lanes(names: Sequence[str], seeds: Sequence[int], *, within_s: float, lanes: int) -> Iterator[Detection]:
    """The same in so many processes at once; in the order in which they are done."""
    done: queue.Queue[Detection | None] = queue.Queue()
    chosen = [names[lane::lanes] for lane in range(lanes) if names[lane::lanes]]
    processes = [_lane(lane, seeds, within_s=within_s) for lane in chosen]
    readers = [threading.Thread(target=_read, args=(process, done)) for process in processes]
    try:
        for reader in readers:
            reader.start()
        for _ in readers:
            while (detection := done.get()) is not None:
                yield detection
    finally:
        for process in processes:
            process.terminate()
            process.wait()
        for reader in readers:
            reader.join()


def _lane(names: Sequence[str], seeds: Sequence[int], *, within_s: float) -> subprocess.Popen[bytes]:
    words = ["--names", ",".join(names), "--first-seed", str(seeds[0]), "--seeds", str(len(seeds))]
    command = [sys.executable, "-m", "tests.chaos", "mutants", *words, "--within-s", str(within_s), "--json-lines"]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


def _read(process: subprocess.Popen[bytes], done: queue.Queue[Detection | None]) -> None:
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            done.put(Detection(**json.loads(line)))
    done.put(None)


def main(words: list[str]) -> int:
    """0 when every mutant was found with every seed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos mutants", description="Whether every mutant is found.")
    parser.add_argument("--names", default=",".join(MUTANTS), help="with commas between them; all")
    parser.add_argument("--first-seed", type=natural, default=1)
    parser.add_argument("--seeds", type=count, default=1, help="how many searches for each (1)")
    parser.add_argument("--within-s", type=positive, default=30.0, help="a search's time (30)")
    parser.add_argument("--lanes", type=count, default=1, help="processes at once (1)")
    parser.add_argument("--json-lines", action="store_true", help="a line for each search instead of the table")
    parser.add_argument("--json", type=Path, help="writes what was found into this file")
    asked = parser.parse_args(words)
    names, seeds = asked.names.split(","), range(asked.first_seed, asked.first_seed + asked.seeds)
    for name in names:
        if name not in MUTANTS:
            parser.error(f"--names: there is no mutant {name!r}")
    if asked.lanes == 1:
        found = searches(names, seeds, within_s=asked.within_s)
    else:
        found = in_lanes(names, seeds, within_s=asked.within_s, lanes=asked.lanes)
    detections = []
    for detection in found:
        detections.append(detection)
        if asked.json_lines:
            print(json.dumps(asdict(detection)), flush=True)
    rows = rows_of(detections)
    if not asked.json_lines:
        Console().print(table_of(rows))
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if all(detection.found_in_s is not None for detection in detections) else 1


def rows_of(detections: Iterable[Detection]) -> list[dict[str, Any]]:
    """For each mutant what the report shows of it."""
    by_mutant: dict[str, list[Detection]] = defaultdict(list)
    for detection in detections:
        by_mutant[detection.mutant].append(detection)
    return [_row(MUTANTS[name], found) for name, found in by_mutant.items()]


def _row(mutant: Mutant, detections: Sequence[Detection]) -> dict[str, Any]:
    took_s = [detection.found_in_s for detection in detections if detection.found_in_s is not None]
    caught = Counter(name for detection in detections for name in detection.caught if name in mutant.caught_by)
    matrix = Counter(kind for detection in detections if detection.found_in_s for kind in detection.faults)
    return {
        "mutant": mutant.name,
        "does": mutant.does,
        "caught_by": ", ".join(name for name, _ in caught.most_common()) or ", ".join(mutant.caught_by),
        "found_in_s": round(statistics.median(took_s), 2) if took_s else None,
        "slowest_s": max(took_s, default=None),
        "tried": len(detections),
        "found": len(took_s),
        "matrix": dict(matrix),
        "why": next((detection.why for detection in detections if detection.why), ""),
    }


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """For a terminal."""
    table = Table(show_edge=False, pad_edge=False)
    for column in ("mutant", "found", "median s", "slowest s", "by", ""):
        table.add_column(column)
    for row in rows:
        found = f"{row['found']} of {row['tried']}"
        table.add_row(
            row["mutant"],
            f"[green]{found}[/]" if row["found"] == row["tried"] else f"[bold red]{found}[/]",
            str(row["found_in_s"] or ""),
            str(row["slowest_s"] or ""),
            row["caught_by"],
            row["why"],
        )
    return table
