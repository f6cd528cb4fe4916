"""The command line of `python -m tests.chaos`: what is asked for, refused with the name of what is wrong."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.every_kind import EVERY_KIND, PLAIN
from tests.chaos.guards import GUARDS
from tests.chaos.instance import LOCK_AND_ROW
from tests.chaos.mutants import MUTANTS
from tests.chaos.worlds import WORLDS

ALL = "all"


def parser() -> argparse.ArgumentParser:
    """Of a run; the other commands have their own."""
    parsed = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description="Races real instances under faults, and judges what happened. Exit 0: no invariant"
        " was broken, and none that every run is asked for is unknown; 1: one was broken; 2: the run could not be made,"
        " or too little happened to tell.",
        epilog="Other commands, each with its --help: prove, soak, mutants, worlds, shrink, interleave, attach, check,"
        " kinds, race.",
    )
    parsed.add_argument("--seed", type=natural, default=1, help="the schedule follows from it alone (1)")
    parsed.add_argument("--duration-s", type=positive, default=60.0, help="how long faults are fired (60)")
    parsed.add_argument("--instances", type=count, default=3, help="processes of the API (3)")
    parsed.add_argument("--clients", type=count, default=32, help="that enter at the same time (32)")
    parsed.add_argument("--rate", type=positive, default=450.0, help="operations a second, at most (450)")
    parsed.add_argument("--faults", type=fault_names, default=ALL, help="kinds, with commas between them; all; none")
    parsed.add_argument("--guard", choices=GUARDS, default=LOCK_AND_ROW, help=f"what is judged ({LOCK_AND_ROW})")
    parsed.add_argument("--mutant", choices=sorted(MUTANTS), help="a broken variant of the product")
    parsed.add_argument("--world", choices=(PLAIN, *WORLDS), default=PLAIN, help="the servers (plain)")
    parsed.add_argument(
        "--takeover-grace-ms",
        type=positive,
        default=250.0,
        help="how late after a dead holder's lease is in time; 50 on a machine that nobody else uses (250)",
    )
    parsed.add_argument("--schedule", type=Path, help="replay this file, which decides all but --rate and --times")
    parsed.add_argument("--times", type=count, default=1, help="replay so often, and tell how often it is broken (1)")
    parsed.add_argument("--report", type=Path, default=Path("chaos-report.html"))
    parsed.add_argument("--history", type=Path, default=Path("chaos-history.jsonl"))
    parsed.add_argument("--shrink-s", type=amount, help="to cut down a schedule that failed; 0: not (120)")
    return parsed


def natural(text: str) -> int:
    """0, 1, 2, …"""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def count(text: str) -> int:
    """1, 2, …, 1000"""
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 1000")
    return int(text)


def amount(text: str) -> float:
    """0 or more."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return number


def positive(text: str) -> float:
    """More than 0."""
    if (number := amount(text)) == 0:
        raise argparse.ArgumentTypeError("0 is too little")
    return number


def fault_names(text: str) -> str:
    """The names as they are, each known."""
    if text in (ALL, "none"):
        return text
    for name in text.split(","):
        if name not in EVERY_KIND:
            raise argparse.ArgumentTypeError(f"there is no fault {name!r}; `python -m tests.chaos kinds` lists them")
    return text


def kinds_of(names: str, available: Sequence[str]) -> list[str]:
    """The kinds that --faults names, of those to be had."""
    if names == "none":
        return []
    return list(available) if names == ALL else names.split(",")
