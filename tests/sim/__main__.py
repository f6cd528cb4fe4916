"""locks/ in virtual time: looks for runs that break what the locks promise. See docs/simulation.md.

Exit status 0: nothing is broken; 1: something is; 2: it could not be told: the arguments mean nothing, or what came of
them could not be written; 128 + n: ended by signal n, as 130 by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.checks.judging import LOCK_CHECKERS
from tests.chaos.history import Event
from tests.sim import again
from tests.sim import arguments as values
from tests.sim.ending import deaf_to_signals, leave, on_signals, status_of
from tests.sim.faults import KINDS
from tests.sim.mutants import SIM_MUTANTS
from tests.sim.scenes import SCENES
from tests.sim.search import hunting, orders, trials
from tests.sim.search.finding import Finding
from tests.sim.search.reporting import ALL_IS_WELL, Report
from tests.sim.search.running import side_by_side
from tests.sim.search.shrinking import shrunk
from tests.sim.trial import LASTS_S, PROGRAM, Trial

# What `all` does, and at which part of its time it goes on to the next.
SEEDS_UNTIL, PAIRS_UNTIL = 0.5, 0.8


def main(words: list[str]) -> int:
    """The exit status."""
    if sys.stdout is None or sys.stderr is None:
        return 2  # nobody could be told
    parser = _parser()
    arguments = parser.parse_args(words)
    try:
        status: int = arguments.work(arguments)
        sys.stdout.flush()
    except ValueError as error:
        parser.error(str(error))
    except BrokenPipeError:  # whoever reads has enough
        leave(status_of(signal.SIGPIPE))
    except (OSError, BrokenProcessPool) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr, flush=True)
        leave(2)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    for command in COMMANDS:
        of = commands.add_parser(command.name, help=command.does, description=command.does)
        command.arguments(of)
        of.set_defaults(work=command.work)
    return parser


@dataclass(frozen=True, slots=True)
class Command:
    """One of the things that it does."""

    name: str
    does: str
    arguments: Callable[[argparse.ArgumentParser], None]
    work: Callable[[argparse.Namespace], int]


def _processes_argument(of: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0))
    of.add_argument("--processes", type=values.count, default=cores, help="that search side by side (%(default)s)")


def _search_arguments(of: argparse.ArgumentParser) -> None:
    _processes_argument(of)
    asked = [checker.__name__ for checker in LOCK_CHECKERS]
    only = f"tells only of this one's breaches: {', '.join(asked)}"
    of.add_argument("--only", choices=asked, metavar="PROPERTY", action="append", help=only)


def _all_arguments(of: argparse.ArgumentParser) -> None:
    _search_arguments(of)
    of.add_argument("--seconds", type=values.seconds, default=180.0, help="how long (%(default)g)")
    of.add_argument("--seed", type=int, help="where the drawn ones begin (others each second)")


def _all(arguments: argparse.Namespace) -> int:
    seed = int(time.time()) if arguments.seed is None else arguments.seed
    print(f"from seed {seed}", flush=True)
    report = Report(arguments, seconds=arguments.seconds)
    for scene in orders.SMALL:
        report.search(orders.trials(scene, deviations=1))
    report.search(trials.at_random(seed, None, lasts_s=LASTS_S), until=SEEDS_UNTIL)
    report.search(trials.pairs(seed, None), until=PAIRS_UNTIL)
    report.search(trials.at_some_events(seed))
    return report.end()


def _drawn_arguments(of: argparse.ArgumentParser) -> None:
    _search_arguments(of)
    of.add_argument("--first", type=int, default=1, metavar="SEED", help="the first seed (%(default)s)")
    of.add_argument("--count", type=values.count, default=100, help="how many seeds (%(default)s)")


def _seeds_arguments(of: argparse.ArgumentParser) -> None:
    _drawn_arguments(of)
    of.add_argument("--lasts-s", type=values.seconds, default=LASTS_S, help="simulated seconds of each (%(default)g)")


def _seeds(arguments: argparse.Namespace) -> int:
    report = Report(arguments)
    report.search(trials.at_random(arguments.first, arguments.count, lasts_s=arguments.lasts_s))
    return report.end()


def _pairs(arguments: argparse.Namespace) -> int:
    report = Report(arguments)
    report.search(trials.pairs(arguments.first, arguments.count))
    return report.end()


def _each_arguments(of: argparse.ArgumentParser) -> None:
    _scene_arguments(of)
    of.add_argument("--kind", choices=sorted(KINDS), metavar="KIND", action="append", help=", ".join(sorted(KINDS)))


def _scene_arguments(of: argparse.ArgumentParser) -> None:
    _search_arguments(of)
    of.add_argument("--scene", choices=sorted(SCENES), metavar="SCENE", action="append", help=", ".join(sorted(SCENES)))


def _each(arguments: argparse.Namespace) -> int:
    report = Report(arguments)
    for scene in arguments.scene or sorted(SCENES):
        report.search(trials.at_each_event(scene, kinds=tuple(arguments.kind or KINDS)), of=scene)
    return report.end()


def _orders_arguments(of: argparse.ArgumentParser) -> None:
    _scene_arguments(of)
    of.add_argument("--deviations", type=values.count, default=2, help="from first come, first served (%(default)s)")


def _orders(arguments: argparse.Namespace) -> int:
    report = Report(arguments)
    for scene in arguments.scene or orders.SMALL:
        report.search(orders.trials(scene, deviations=arguments.deviations), of=scene)
    return report.end()


def _hunt_arguments(of: argparse.ArgumentParser) -> None:
    _processes_argument(of)
    of.add_argument("--mutant", choices=sorted(SIM_MUTANTS), metavar="MUTANT", action="append", help="only this one")
    of.add_argument("--searches", type=values.count, default=100, help="for each, all of them different (%(default)s)")
    of.add_argument("--cpu-s", type=values.seconds, default=60.0, help="that a search may take (%(default)s)")


def _hunt(arguments: argparse.Namespace) -> int:
    """1 where more than one of a hundred searches has not found its mutant."""
    names = arguments.mutant or list(SIM_MUTANTS)
    print(hunting.HEADINGS)
    worst = 0
    with side_by_side(arguments.processes) as lanes:
        searches = range(arguments.searches)
        with deaf_to_signals():
            hunts = [lanes.submit(hunting.hunted, name, searches, arguments.cpu_s) for name in names]
        for done in as_completed(hunts):
            found = done.result()
            print(hunting.row(found), flush=True)
            worst |= sum(bool(each.by) for each in found) < 0.99 * len(found)
    return int(worst)


def _again_arguments(of: argparse.ArgumentParser) -> None:
    again.add_arguments(of)
    of.add_argument(
        "--shrink", action="store_true", help="to the fewest faults, processes and seconds that break as much"
    )
    of.add_argument("--trace", metavar="FILE", help="writes the history there, - for the terminal")


def _again(arguments: argparse.Namespace) -> int:
    trial: Trial = again.trial_of(arguments)
    if arguments.shrink:
        trial = shrunk(trial)
    outcome = trial.run()
    if arguments.trace is not None:
        _write_trace(arguments.trace, outcome.history)
    print(Finding(trial, tuple(outcome.violations)))
    print(f"checksum {outcome.checksum}, {outcome.events:,} events, {outcome.lasted_s:.0f} simulated s")
    if outcome.violations:
        return 1
    if outcome.missed:
        raise ValueError(f"--fault, --delay: event {outcome.missed[0]} is never reached, so this run says nothing")
    print(ALL_IS_WELL)
    return 0


def _write_trace(path: str, history: list[Event]) -> None:
    lines = []
    for event in history:
        facts = {key: value for key, value in event.items() if key not in ("e", "t")}
        lines.append(f"{event['t'] / 1e9:11.6f} {event['e']:8} {facts}")
    if path == "-":
        print(*lines, sep="\n")
        return
    try:
        Path(path).write_text("\n".join(lines) + "\n")
    except OSError as error:
        raise ValueError(f"--trace: {error}") from error


COMMANDS = (
    Command("all", "a bit of each search, for so many seconds", _all_arguments, _all),
    Command("seeds", "callers at random under dense faults, a run for each seed", _seeds_arguments, _seeds),
    Command("each", "every fault at every event of the scenes", _each_arguments, _each),
    Command("pairs", "two faults at two events of a scene, drawn by seed", _drawn_arguments, _pairs),
    Command("orders", "every order of what is ready in a scene, up to so many deviations", _orders_arguments, _orders),
    Command("hunt", "broken variants of the locks: how long it takes to find each", _hunt_arguments, _hunt),
    Command("again", "one run, as a search has told of it", _again_arguments, _again),
)

if __name__ == "__main__":
    on_signals(lambda number: leave(status_of(number)))
    sys.exit(main(sys.argv[1:]))
