"""`python -m tests.bench`: alternating rounds of every candidate in one run, then the ratio of their medians.

Exit 0: every target that was measured is reached; 1: one is missed, a round had a fault, or the audit found something;
2: it could not be measured.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg2
import redis
from rich.console import Console

from db.errors import DatabaseError
from service.embedded import EmbeddedError
from service.workers import wait_politely

from .arguments import positive
from .audit import audit
from .ground import Ground, GroundError, shared_ground
from .http_candidates import HttpCandidate
from .pgbench import Pgbench
from .program import the_obvious, the_service
from .report import PGBENCH, as_json, machine, print_tables, ratios
from .rounds import Candidate, CandidateFailed, Plan, Round

TARGETS = {"pgbench": 1.5, "obvious": 8.0}
NAMES = ("ours", *PGBENCH, "obvious")
COULD_NOT_LOOK = (
    CandidateFailed,
    GroundError,
    EmbeddedError,
    DatabaseError,
    psycopg2.Error,
    redis.RedisError,
    subprocess.TimeoutExpired,
)


def main() -> int:
    chosen = _arguments()
    # A SIGTERM ends us as a Ctrl-C does: through every finally, in the event loop too.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    wait_politely()  # everybody: the servers, the load, and every candidate
    console = Console()
    try:
        with tempfile.TemporaryDirectory(prefix="chargeonce-bench-", dir=chosen.folder) as folder:
            found = _measured(console, Path(folder), _plan(chosen), chosen.only)
    except COULD_NOT_LOOK as error:
        console.print(f"bench: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("bench: interrupted, and everything it had started is stopped", style="red")
        return 2
    chosen.json.write_text(json.dumps(found, indent=2) + "\n")
    console.print(f"everything is in {chosen.json}", highlight=False)
    return 0 if found["passed"] else 1


def _measured(console: Console, folder: Path, plan: Plan, names: list[str]) -> dict[str, Any]:
    facts = machine(folder)
    with shared_ground(folder, users=plan.users) as ground:
        rounds = _alternating(console, ground, plan, names)
        audited = audit(ground) if "ours" in names else None
        servers = {"postgres": ground.postgres_settings(), "valkey": ground.valkey_version()}
    judged = ratios(rounds, targets=TARGETS)
    print_tables(console, rounds, judged)
    if audited:
        console.print(f"audit: exit {audited['exit']}", style="red" if audited["exit"] else "green")
    faultless = not any(each.faults for each in rounds) and not (audited and audited["exit"])
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "passed": faultless and all(each.passed is not False for each in judged),
        "machine": facts,
        "servers": servers,
        "plan": asdict(plan),
        **as_json(rounds, judged),
        "audit": audited,
    }


def _alternating(console: Console, ground: Ground, plan: Plan, names: list[str]) -> list[Round]:
    candidates = [each for each in _candidates(plan) if each.name in names]
    rounds = []
    for number in range(plan.rounds):
        # Another one begins each time, so that nobody always has the smallest tables.
        first = number % len(candidates)
        for candidate in candidates[first:] + candidates[:first]:
            appointments = ground.new_appointments(plan.appointments_per_round)
            ground.settle()
            found = candidate.measure(ground, plan, appointments)
            rounds.append(found)
            console.print(
                f"round {number + 1} of {plan.rounds}: {found.candidate:<16} {found.charges_per_s:>8,.0f} charges/s"
                + (" with faults" if found.faults else ""),
                highlight=False,
            )
    return rounds


def _candidates(plan: Plan) -> list[Candidate]:
    service, obvious = the_service(workers=plan.workers), the_obvious(workers=plan.workers)
    return [HttpCandidate(service), Pgbench("simple"), Pgbench("prepared"), HttpCandidate(obvious)]


def _plan(chosen: argparse.Namespace) -> Plan:
    return Plan(
        measured_s=chosen.seconds,
        warm_up_s=chosen.warm_up,
        rounds=chosen.rounds,
        connections=chosen.connections,
        workers=chosen.workers,
        pgbench_clients=16,
        pgbench_threads=2,
        users=chosen.users,
        ceiling_per_s=chosen.ceiling,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Charges a second against the peers.")
    parser.add_argument("--seconds", type=positive, default=6, help="measured window of a round (6)")
    parser.add_argument("--warm-up", type=positive, default=2, help="seconds under load before it (2)")
    parser.add_argument("--rounds", type=positive, default=5, help="rounds of each candidate (5)")
    parser.add_argument("--only", type=_names, default=list(NAMES), help=f"of {','.join(NAMES)}; pgbench means both")
    parser.add_argument("--connections", type=positive, default=64, help="HTTP connections, one request each (64)")
    parser.add_argument("--workers", type=positive, default=2, help="worker processes of the HTTP candidates (2)")
    parser.add_argument("--users", type=positive, default=2000, help="payers, drawn evenly (2000)")
    parser.add_argument("--ceiling", type=positive, default=12_000, help="charges/s to have appointments for (12000)")
    parser.add_argument("--folder", type=Path, help="where the temporary folder with the servers' data is made")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="where the raw numbers go (bench.json)")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = [each for name in text.split(",") for each in (PGBENCH if name == "pgbench" else (name,))]
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(NAMES)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
