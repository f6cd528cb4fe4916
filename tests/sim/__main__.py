"""python -m tests.sim: locks/ in virtual time. See docs/simulation.md."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from tests.chaos.checks import PROPERTIES
from tests.sim.faults import KINDS, Fault
from tests.sim.mutants import SIM_MUTANTS
from tests.sim.scenes import SCENES
from tests.sim.search import hunting, orders, trials
from tests.sim.search.finding import Finding, Tally
from tests.sim.search.running import search
from tests.sim.search.shrinking import shrunk
from tests.sim.trial import LASTS_S, Trial

SHOWN = 10


def main() -> int:
    """0: nothing found; 1: something was; 2: not understood."""
    arguments = _parser().parse_args()
    return int(arguments.work(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="that search side by side")
    parser.add_argument("--only", choices=PROPERTIES, action="append", help="looks for breaches of this property")
    of = parser.add_subparsers(required=True, metavar="WHAT")

    everything = of.add_parser("all", help="a bit of each search, for so many seconds")
    everything.add_argument("--seconds", type=float, default=180.0)
    everything.add_argument("--seed", type=int, default=1)
    everything.set_defaults(work=_all)

    seeds = of.add_parser("seeds", help="callers at random under dense faults, by seed")
    seeds.add_argument("--first", type=int, default=1)
    seeds.add_argument("--count", type=int, default=100)
    seeds.add_argument("--lasts-s", type=float, default=LASTS_S)
    seeds.set_defaults(work=lambda a: _report(a, trials.at_random(a.first, a.count, lasts_s=a.lasts_s)))

    each = of.add_parser("each", help="every fault at every event of the scenes")
    each.add_argument("--scene", choices=sorted(SCENES), action="append")
    each.add_argument("--kind", choices=sorted(KINDS), action="append")
    each.set_defaults(work=lambda a: _report(a, _each(a.scene or sorted(SCENES), tuple(a.kind or KINDS))))

    pairs = of.add_parser("pairs", help="two faults at two events of a scene, drawn")
    pairs.add_argument("--first", type=int, default=1)
    pairs.add_argument("--count", type=int, default=1000)
    pairs.set_defaults(work=lambda a: _report(a, trials.pairs(a.first, a.count)))

    every = of.add_parser("orders", help="every order of what is ready, up to so many deviations")
    every.add_argument("--scene", choices=sorted(SCENES), action="append")
    every.add_argument("--deviations", type=int, default=2)
    every.set_defaults(work=_orders)

    hunted = of.add_parser("hunt", help="looks for broken variants of the locks: how long it takes to find each")
    hunted.add_argument("--mutant", choices=sorted(SIM_MUTANTS), action="append")
    hunted.add_argument("--searches", type=int, default=100, help="for each, all of them different")
    hunted.add_argument("--cpu-s", type=float, default=60.0, help="that a search may take")
    hunted.set_defaults(work=_hunted)

    again = of.add_parser("again", help="one run, as a search has told of it")
    again.add_argument("--seed", type=int, default=1)
    again.add_argument("--lasts-s", type=float, default=LASTS_S)
    again.add_argument("--faults", help="only those of the seed's faults: their numbers, with commas, or none")
    again.add_argument("--scene", choices=sorted(SCENES))
    again.add_argument("--fault", action="append", default=[], metavar="KIND:WHO:EVENT:NUMBER", type=_fault)
    again.add_argument("--delay", action="append", default=[], metavar="EVENT:PLACES", type=_delay)
    again.add_argument("--shrink", action="store_true", help="to the fewest faults")
    again.add_argument("--trace", metavar="FILE", help="writes the history there, - for the terminal")
    again.set_defaults(work=_again)
    return parser


def _each(scenes: Iterable[str], kinds: tuple[str, ...]) -> Iterator[Trial]:
    return itertools.chain.from_iterable(trials.at_each_event(scene, kinds=kinds) for scene in scenes)


def _all(arguments: argparse.Namespace) -> int:
    """Half of the time for seeds, a quarter for pairs, and what is left for orders and single faults."""
    ends_s, seed = time.monotonic() + arguments.seconds, arguments.seed
    worst = 0
    for share, work in (
        (0.5, trials.at_random(seed, None, lasts_s=LASTS_S)),
        (0.8, trials.pairs(seed, None)),
        (1.0, _each(sorted(SCENES), tuple(KINDS))),
    ):
        worst |= _report(arguments, work, until_s=ends_s - (1.0 - share) * arguments.seconds)
    return worst


def _orders(arguments: argparse.Namespace) -> int:
    worst = 0
    for scene in arguments.scene or orders.SMALL:
        print(f"{scene}, up to {arguments.deviations} deviations")
        worst |= _report(arguments, orders.trials(scene, deviations=arguments.deviations))
    return worst


def _hunted(arguments: argparse.Namespace) -> int:
    """1 where more than one of a hundred searches has not found its mutant."""
    names = arguments.mutant or list(SIM_MUTANTS)
    print(hunting.HEADINGS)
    worst = 0
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as lanes:
        hunts = [lanes.submit(hunting.hunted, name, range(arguments.searches), arguments.cpu_s) for name in names]
        for done in as_completed(hunts):
            found = done.result()
            print(hunting.row(found), flush=True)
            worst |= sum(bool(each.by) for each in found) < 0.99 * len(found)
    return int(worst)


def _report(arguments: argparse.Namespace, work: Iterable[Trial], *, until_s: float | None = None) -> int:
    tally, findings, properties = Tally(), 0, Counter[str]()
    for more, found in search(work, processes=arguments.processes, until_s=until_s):
        tally += more
        for finding in found:
            if arguments.only and not {name for name, _ in finding.violations} & set(arguments.only):
                continue
            findings += 1
            properties.update({name for name, _ in finding.violations})
            if findings <= SHOWN:
                print(finding, flush=True)
    print(tally)
    if findings:
        print(
            f"{findings} of them break something: " + ", ".join(f"{name} {n}" for name, n in properties.most_common())
        )
    return 1 if findings else 0


def _again(arguments: argparse.Namespace) -> int:
    if arguments.scene is not None:
        trial = Trial.of_scene(arguments.scene, *arguments.fault, seed=arguments.seed, delays=tuple(arguments.delay))
    else:
        trial = Trial.drawn(arguments.seed, lasts_s=arguments.lasts_s)
        if arguments.faults is not None:
            wanted = set() if arguments.faults == "none" else {int(number) for number in arguments.faults.split(",")}
            trial = trial.with_faults(tuple(fault for fault in trial.faults if fault.number in wanted))
    if arguments.shrink:
        trial = shrunk(trial)
    outcome = trial.run()
    if arguments.trace:
        _write_trace(arguments.trace, outcome.history)
    print(Finding(trial, tuple(outcome.violations)))
    print(f"checksum {outcome.checksum}, {outcome.events:,} events, {outcome.lasted_s:.0f} simulated s")
    return 1 if outcome.violations else 0


def _write_trace(path: str, history: list[dict[str, object]]) -> None:
    with open(1 if path == "-" else path, "w", closefd=path != "-") as out:
        for event in history:
            facts = {key: value for key, value in event.items() if key not in ("e", "t")}
            out.write(f"{event['t'] / 1e9:11.6f} {event['e']:8} {facts}\n")  # type: ignore[operator]


def _fault(text: str) -> Fault:
    kind, who, event, number = text.split(":")
    if kind not in KINDS:
        raise argparse.ArgumentTypeError(f"{kind} is no kind of fault: {', '.join(KINDS)}")
    return Fault(kind, int(who), at_event=int(event), number=int(number))


def _delay(text: str) -> tuple[int, int]:
    event, places = text.split(":")
    return int(event), int(places)


if __name__ == "__main__":
    sys.exit(main())
