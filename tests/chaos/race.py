"""`python -m tests.chaos.race`: replays the origin's bug. The same race under four guards, each with real processes.

Exit 0: every guard did what is said of it, the broken ones included; 1: one did not; 2: the race could not be run.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psycopg2
import redis
from rich.console import Console

from db.errors import DatabaseError
from service.embedded import EmbeddedError
from service.workers import wait_politely
from tests.bench.arguments import positive
from tests.chaos.guards import GUARDS
from tests.chaos.race_ground import race_ground
from tests.chaos.race_instances import RaceFailed
from tests.chaos.race_rounds import Measured, Plan, race
from tests.chaos.race_table import as_json, print_table
from tests.chaos.race_verdicts import Verdict, verdicts

COULD_NOT_RACE = (RaceFailed, EmbeddedError, DatabaseError, psycopg2.Error, redis.RedisError, OSError)


def main() -> int:
    chosen = _arguments()
    # A SIGTERM ends us as a Ctrl-C does: through every finally, in the event loop too.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    wait_politely()  # everybody: the servers, the entrants, and every guard
    console = Console()
    plan = Plan(entrants=chosen.entrants, appointments=chosen.appointments, paused=chosen.paused, seed=chosen.seed)
    try:
        with tempfile.TemporaryDirectory(prefix="chargeonce-race-") as folder:
            measured = _race_all(console, Path(folder), plan)
        judged = verdicts(measured)
        print_table(console, plan, measured, judged)
        if chosen.json is not None:
            chosen.json.write_text(json.dumps(as_json(plan, measured, judged), indent=2) + "\n")
    except COULD_NOT_RACE as error:
        console.print(f"race: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("race: interrupted, and everything it had started is stopped", style="red")
        return 2
    return status_of(judged)


def status_of(judged: Sequence[Verdict]) -> int:
    """The exit status after a race that was run."""
    return 0 if all(verdict.as_expected for verdict in judged) else 1


def _race_all(console: Console, folder: Path, plan: Plan) -> list[Measured]:
    measured = []
    with console.status("starting Postgres and Valkey") as status, race_ground(folder) as ground:
        for guard in GUARDS:
            status.update(f"racing {guard}")
            measured.append(race(guard, ground, folder, plan))
    return measured


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.race", description="The race under each guard.")
    parser.add_argument("--entrants", type=positive, default=24, help="for each appointment (24)")
    parser.add_argument("--appointments", type=positive, default=60, help="raced for, four at once (60)")
    parser.add_argument("--paused", type=positive, default=2, help="more of them, with a paused holder (2)")
    parser.add_argument("--seed", type=int, default=42, help="for the order of the entrants (42)")
    parser.add_argument("--json", type=Path, help="where the raw numbers go")
    chosen = parser.parse_args()
    if chosen.json is not None and not chosen.json.parent.is_dir():
        parser.error(f"argument --json: there is no folder {chosen.json.parent}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
