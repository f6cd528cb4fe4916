"""`python -m tests.chaos prove`: everything in a few minutes, as CI runs it. Exit 0: held, nothing left out, all found.

Every interleaving of two handlers; runs under faults until every point met every kind; the seeds that once found
something; every mutant; a lie in a history now and then; one report of it all.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from service.dashboard.formatting import plural
from service.workers import wait_politely
from tests.chaos.arguments import count, natural, positive
from tests.chaos.checks import in_words, unknown_in
from tests.chaos.checks.canary import canaries
from tests.chaos.corpus import corpus
from tests.chaos.every_kind import PLAIN, available_in
from tests.chaos.faults import KINDS
from tests.chaos.interleave import explore_cases, planned
from tests.chaos.points import TARGET_POINTS
from tests.chaos.report import write_report
from tests.chaos.schedule import Schedule, expand
from tests.chaos.standing import Judged, Standing
from tests.chaos.teeth import in_lanes, rows_of, table_of
from tests.chaos.telling import again, summary, tell
from tests.chaos.totals import Totals

# The least that means something, on a slow machine too; what there was is told.
LEAST = {"operations": 5_000, "targeted_faults": 150, "holders_killed_inside": 30, "unknowns_committed": 20}
MORE_S = 8.0  # a run that aims at the cells that are still to be hit
MOST_MORE = 4
INSTANCES, TARGETS = 4, 3  # one is never aimed at: who waits there is undisturbed
CELLS = frozenset(
    itertools.product(TARGET_POINTS, [kind.name for kind in KINDS.values() if kind.targeted and kind.needs is None])
)


@dataclass(slots=True)
class Proof:
    """What is there so far."""

    console: Console
    totals: Totals = field(default_factory=Totals)
    failed: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    main: Judged | None = None
    interleavings: dict[str, Any] = field(default_factory=dict)
    mutants: list[dict[str, Any]] = field(default_factory=list)
    replayed: list[dict[str, Any]] = field(default_factory=list)

    def take(self, judged: Judged) -> None:
        """A run."""
        self.totals.add(judged)
        told = f"seed {judged.schedule.seed}: {summary(judged.events)}; {in_words(judged.verdicts)}"
        self.console.print(told, highlight=False)
        if judged.exit_code:
            tell(self.console, judged)
        self.failed += [f"seed {judged.schedule.seed}: {name} is broken" for name in judged.broken]
        self.unknown += [f"seed {judged.schedule.seed}: {name} is unknown" for name in unknown_in(judged.verdicts)]

    def lacks(self) -> list[str]:
        """What there was too little of."""
        lacking = [
            f"{name}: {getattr(self.totals, name):,}, wanted {least:,}"
            for name, least in LEAST.items()
            if getattr(self.totals, name) < least
        ]
        lacking += self.unknown
        return lacking + [f"the cell {point} × {kind} was not hit" for point, kind in sorted(self.missing_cells())]

    def missing_cells(self) -> set[tuple[str, str]]:
        """Points and kinds that have not met."""
        return set(CELLS - self.totals.cells.keys())


def main(words: list[str]) -> int:
    """0 when all held and all was found, 1 when something was broken or not found, 2 when too little happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos prove", description="Everything in a few minutes.")
    parser.add_argument("--seed", type=natural, default=1)
    parser.add_argument("--duration-s", type=positive, default=72.0, help="of the long run (72)")
    parser.add_argument("--clients", type=count, default=96)
    parser.add_argument("--rate", type=positive, default=600.0)
    parser.add_argument(
        "--takeover-grace-ms",
        type=positive,
        default=50.0,
        help="how late after a dead holder's lease is in time; more where others use the machine too (50)",
    )
    parser.add_argument("--lanes", type=count, default=2, help="searches for mutants at once (2)")
    parser.add_argument("--report", type=Path, default=Path("chaos-report.html"))
    parser.add_argument("--json", type=Path, help="writes the totals into this file")
    asked = parser.parse_args(words)
    began_s = time.monotonic()
    wait_politely()
    proof = Proof(Console())
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        with Standing(Path(folder)) as standing:
            _interleave(proof, standing, seed=asked.seed)
            _run(proof, standing, Path(folder), asked)
            _replay(proof, standing, Path(folder), asked)
        _search(proof, seed=asked.seed, lanes=asked.lanes)
        assert proof.main is not None
        schedule = asked.report.with_suffix(".schedule.json")
        proof.main.schedule.save(schedule)
        write_report(
            asked.report,
            proof.main.events,
            proof.main.verdicts,
            command=again(schedule),
            interleavings=proof.interleavings,
            mutants=proof.mutants,
            corpus=proof.replayed,
        )
    if asked.json:
        whole = {**proof.totals.as_json(), "interleavings": proof.interleavings, "mutants": proof.mutants}
        asked.json.write_text(json.dumps(whole, indent=2) + "\n")
    return _say(proof, time.monotonic() - began_s, asked.report)


def _interleave(proof: Proof, standing: Standing, *, seed: int) -> None:
    cases = [case for case in planned(2, None, seed) if case.scene == "pair" and case.guard in ("row", "lock")]
    explored = explore_cases(standing.ground.database_url, standing.ground.redis_url, cases)
    proof.interleavings = {
        "orders of two handlers": explored.orders,
        "crashes": explored.crashes,
        "seconds": round(explored.seconds, 1),
        "violations": len(explored.violations),
    }
    proof.console.print(f"interleavings: {proof.interleavings}", highlight=False)
    proof.failed += [f"interleaving: {violation}" for violation in explored.violations]


def _run(proof: Proof, standing: Standing, folder: Path, asked: argparse.Namespace) -> None:
    plain = Schedule(
        seed=asked.seed,
        instances=INSTANCES,
        duration_s=asked.duration_s,
        clients=asked.clients,
        takeover_grace_ms=asked.takeover_grace_ms,
    )
    schedule = expand(plain, kinds=available_in(PLAIN), targets=TARGETS)
    proof.main = standing.run(schedule, folder / "history.jsonl", rate=asked.rate)
    proof.take(proof.main)
    _plant(proof, proof.main, seed=asked.seed)
    for number in range(1, MOST_MORE + 1):
        if not (missing := proof.missing_cells()):
            return
        short = replace(plain, seed=asked.seed * 1000 + number, duration_s=MORE_S)
        schedule = expand(short, kinds={kind for _, kind in missing}, cells=sorted(missing))
        proof.take(standing.run(schedule, folder / "more.jsonl", rate=asked.rate))


def _plant(proof: Proof, judged: Judged, *, seed: int) -> None:
    """A lie of each kind in the history: whoever does not see it proves nothing."""
    told = canaries(judged.events, random.Random(seed))
    proof.console.print(f"canaries: {len(told.caught)} lies planted and caught", highlight=False)
    proof.failed += [f"the planted lie {name} was not caught" for name in told.missed]


def _replay(proof: Proof, standing: Standing, folder: Path, asked: argparse.Namespace) -> None:
    for name, schedule in corpus().items():
        schedule = replace(schedule, takeover_grace_ms=asked.takeover_grace_ms)
        judged = standing.run(schedule, folder / "corpus.jsonl", rate=asked.rate)
        proof.take(judged)
        proof.replayed.append({"schedule": name, "faults": len(schedule.faults), "broken": ", ".join(judged.broken)})


def _search(proof: Proof, *, seed: int, lanes: int) -> None:
    from tests.chaos.mutants import MUTANTS

    proof.mutants = rows_of(in_lanes(sorted(MUTANTS), [seed], within_s=30.0, lanes=lanes))
    proof.console.print(table_of(proof.mutants))
    for row in proof.mutants:
        if row["found"] < row["tried"] and not row["why"]:
            proof.failed.append(f"the mutant {row['mutant']} was not found")


def _say(proof: Proof, took_s: float, report: Path) -> int:
    console, lacking = proof.console, proof.lacks()
    for what in (*proof.failed, *lacking):
        console.print(f"  {what}", style="red", highlight=False, markup=False)
    found = sum(row["found"] == row["tried"] for row in proof.mutants)
    totals = proof.totals
    console.print(
        f"{plural(totals.operations, 'operation')}, {plural(totals.faults, 'fault')}"
        f" of {plural(len(totals.kinds), 'kind')}"
        f" ({totals.targeted_faults:,} at points, {len(totals.cells)} of {len(CELLS)} cells),"
        f" {totals.holders_killed_inside:,} holders killed inside, {totals.unknowns_committed:,} unknowns committed;"
        f" {proof.interleavings['orders of two handlers']} interleavings; {found} of {len(proof.mutants)} mutants"
        f" found; {took_s:.0f} s; report: {report}",
        highlight=False,
    )
    return 1 if proof.failed else 2 if lacking else 0
