"""Looks for a mutant: how much CPU time it takes until one of the properties that must say so does."""

from __future__ import annotations

import gc
import itertools
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from tests.sim.ending import end_with_parent
from tests.sim.mutants import SHOWS_IN, SIM_MUTANTS
from tests.sim.search import trials
from tests.sim.trial import Trial

LASTS_S = 8.0
PAIRS_A_SEED = 8  # a pair of faults in a scene takes about so much less time than a run at random
COLLECT_EVERY = 20


@dataclass(frozen=True, slots=True)
class Hunt:
    """One search for one mutant. `by`: the properties that were broken; empty where it was not found in time."""

    mutant: str
    seed: int
    cpu_s: float
    runs: int
    by: tuple[str, ...]
    trial: Trial | None


def mixed(seed: int, shows_in: tuple[str, ...]) -> Iterator[Trial]:
    """Runs at random, and pairs of faults in scenes, in turn; each search draws others.

    `shows_in`: the scenes in which a mutant shows best; half of the pairs are in these.
    """
    numbers = random.Random(f"{seed}/hunt")
    at_random = trials.at_random(numbers.randrange(10**9), None, lasts_s=LASTS_S)
    pairs = trials.pairs(numbers.randrange(10**9), None)
    in_these = trials.pairs(numbers.randrange(10**9), None, scenes=shows_in) if shows_in else pairs
    while True:
        yield next(at_random)
        for _ in range(PAIRS_A_SEED // 2):
            yield next(pairs)
            yield next(in_these)


def hunts(mutant: str, seeds: Sequence[int], *, cpu_s: float) -> Iterator[Hunt]:
    """A search for each seed, in a child process whose product is broken.

    What a trial breaks here too, where the product is whole, says nothing of the mutant: then the search goes on.
    """
    with ProcessPoolExecutor(1, get_context("fork"), initializer=_begin, initargs=(mutant,)) as broken:
        for seed in seeds:
            found = broken.submit(_hunt, mutant, seed, cpu_s).result()
            while found.trial is not None and _broken_by(found.trial) & set(found.by):
                found = broken.submit(_hunt, mutant, seed, cpu_s, found).result()
            yield found


def _begin(mutant: str) -> None:
    end_with_parent()
    SIM_MUTANTS[mutant].patch()


def hunted(mutant: str, seeds: Sequence[int], cpu_s: float) -> list[Hunt]:
    """As hunts(), all of them."""
    return list(hunts(mutant, seeds, cpu_s=cpu_s))


def _hunt(mutant: str, seed: int, cpu_s: float, before: Hunt | None = None) -> Hunt:
    """`before`: what the search has had to do with so far."""
    wanted, began_s = set(SIM_MUTANTS[mutant].caught_by), time.process_time()
    took_s, had = (before.cpu_s, before.runs) if before else (0.0, 0)
    gc.disable()  # a run is one great knot, which is untied in one go
    for runs, trial in enumerate(itertools.islice(mixed(seed, SHOWS_IN.get(mutant, ())), had, None), had + 1):
        by = _broken_by(trial) & wanted
        if runs % COLLECT_EVERY == 0:
            gc.collect()
        cpu_so_far_s = took_s + time.process_time() - began_s
        if by or cpu_so_far_s >= cpu_s:
            return Hunt(mutant, seed, cpu_so_far_s, runs, tuple(sorted(by)), trial if by else None)
    raise AssertionError("there is always another trial")


def _broken_by(trial: Trial) -> set[str]:
    return {name for name, _ in trial.run().violations}


HEADINGS = "mutant | found | CPU s, median, p99, max | runs, median | by | for example\n---|---|---|---|---|---"


def row(found: Sequence[Hunt]) -> str:
    """A line of a table: how often one mutant was found, how fast, by what."""
    hits = [each for each in found if each.by]
    by = Counter(name for each in hits for name in each.by)
    cpu_s = sorted(each.cpu_s for each in found)
    p99_s = cpu_s[min(len(cpu_s) - 1, round(0.99 * len(cpu_s)))]
    times = f"{statistics.median(cpu_s):.1f}, {p99_s:.1f}, {cpu_s[-1]:.1f}"
    runs = f"{statistics.median(each.runs for each in found):.0f}"
    properties = ", ".join(f"{name} {count}" for name, count in by.most_common())
    example = next((each.trial.command for each in hits if each.trial), "")
    return f"{found[0].mutant} | {len(hits)} of {len(found)} | {times} | {runs} | {properties} | {example}"
