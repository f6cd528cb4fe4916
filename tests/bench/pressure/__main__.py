"""`python -m tests.bench.pressure`: every scene on a database of its own, then one table with all the verdicts.

Exit 0: every target that was measured is reached; 1: one is missed, a window had a fault, or an audit found something;
2: a scene could not be measured.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from service.workers import wait_politely
from tests.bench.__main__ import COULD_NOT_LOOK
from tests.bench.ground import shared_servers
from tests.bench.report import machine

from ..arguments import among, positive
from . import crowd, hostile, hot_payer, leases, ledger, memory, open_loop, repeats, stuck_row, table_size, workers
from .stage import Plan, Stage
from .tables import print_verdicts, print_windows
from .verdicts import SceneResult

SCENES: dict[str, Callable[[Stage], SceneResult]] = {
    "hot-payer": hot_payer.play,
    "ledger": ledger.play,
    "repeats": repeats.play,
    "crowd": crowd.play,
    "open-loop": open_loop.play,
    "stuck-row": stuck_row.play,
    "table-size": table_size.play,
    "memory": memory.play,
    "workers": workers.play,
    "leases": leases.play,
    "hostile": hostile.play,
}
THOUSAND, MILLION = 1000, 1_000_000


def main() -> int:
    chosen = _arguments()
    # A SIGTERM ends us as a Ctrl-C does: through every finally, in the event loop too.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    wait_politely()  # everybody: the servers, the load, and every candidate
    # A file or a pipe is no narrow terminal.
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        with tempfile.TemporaryDirectory(prefix="chargeonce-bench-", dir=chosen.folder) as folder:
            found = _measured(console, Path(folder), chosen)
    except COULD_NOT_LOOK as error:
        console.print(f"bench: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("bench: interrupted, and everything it had started is stopped", style="red")
        return 2
    chosen.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    console.print(f"everything is in {chosen.json}", highlight=False)
    if found["could_not_be_measured"]:
        return 2
    return 0 if found["passed"] else 1


def _measured(console: Console, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    facts, plan = machine(folder), _plan(chosen)
    results: list[SceneResult] = []
    failed: dict[str, str] = {}
    with shared_servers(folder) as (database_url, redis_url):
        for name in chosen.scenes:
            began_s = time.monotonic()
            console.print(name, style="bold", highlight=False)
            stage = Stage(
                plan=plan,
                database_url=database_url,
                redis_url=redis_url,
                folder=folder,
                say=lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
            )
            try:
                results.append(SCENES[name](stage).with_faults(stage.audit_faults))
            except COULD_NOT_LOOK as error:
                failed[name] = str(error)
                stage.say(f"  could not be measured: {error}")
            stage.say(f"  took {time.monotonic() - began_s:.0f} s")
    print_windows(console, results)
    print_verdicts(console, results, failed)
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "passed": not failed and all(each.passed for each in results),
        "could_not_be_measured": failed,
        "machine": facts,
        "plan": asdict(plan),
        "scenes": [each.as_json() for each in results],
    }


def _plan(chosen: argparse.Namespace) -> Plan:
    return Plan(
        measured_s=chosen.seconds,
        warm_up_s=chosen.warm_up,
        rounds=chosen.rounds,
        connections=chosen.connections,
        users=chosen.users,
        ceiling_per_s=chosen.ceiling,
        table_sizes=sorted(chosen.appointments),
        entries=sorted(chosen.entries),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pressure", description="The charge under pressure.")
    parser.add_argument("--scenes", type=among(SCENES), default=list(SCENES), help=f"of {','.join(SCENES)}")
    parser.add_argument("--seconds", type=positive, default=3, help="measured window (3)")
    parser.add_argument("--warm-up", type=positive, default=1, help="seconds under load before it (1)")
    parser.add_argument("--rounds", type=positive, default=3, help="rounds of each contestant (3)")
    parser.add_argument("--connections", type=positive, default=64, help="of closed loops, one request each (64)")
    parser.add_argument("--users", type=positive, default=2000, help="payers, drawn evenly (2000)")
    parser.add_argument("--ceiling", type=positive, default=12_000, help="charges/s to have appointments for (12000)")
    parser.add_argument(
        "--appointments",
        type=_counts,
        default=[100 * THOUSAND, MILLION, 10 * MILLION],
        help="table sizes of table-size, smallest and largest are judged (100000,1000000,10000000)",
    )
    parser.add_argument(
        "--entries",
        type=_counts,
        default=[100 * THOUSAND, MILLION],
        help="when memory looks, first and last are judged (100000,1000000)",
    )
    parser.add_argument("--folder", type=Path, help="where the temporary folder with the servers' data is made")
    parser.add_argument("--json", type=Path, default=Path("bench-pressure.json"), help="where the raw numbers go")
    return parser.parse_args()


def _counts(text: str) -> list[int]:
    return [positive(each) for each in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
