"""Looks for a mutant: how much CPU time it takes until one of the properties that must say so does."""

from __future__ import annotations

import gc
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context

from tests.sim.mutants import SIM_MUTANTS
from tests.sim.search import trials
from tests.sim.trial import Trial

LASTS_S = 8.0
PAIRS_A_SEED = 8  # a pair of faults in a scene takes about so much less time than a run at random


@dataclass(frozen=True, slots=True)
class Hunt:
    """One search for one mutant. `by`: the properties that were broken; empty where it was not found in time."""

    mutant: str
    cpu_s: float
    runs: int
    by: tuple[str, ...]
    trial: Trial | None


def mixed(seed: int) -> Iterator[Trial]:
    """Runs at random, and pairs of faults in scenes, in turn; each search draws others."""
    numbers = random.Random(f"{seed}/hunt")
    at_random = trials.at_random(numbers.randrange(10**9), None, lasts_s=LASTS_S)
    pairs = trials.pairs(numbers.randrange(10**9), None)
    while True:
        yield next(at_random)
        yield from itertools.islice(pairs, PAIRS_A_SEED)


def hunt(mutant: str, *, seeds: range, cpu_s: float) -> list[Hunt]:
    """A search for each seed, in a process of its own: it breaks the product there."""
    context = get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_hunts, (mutant, seeds, cpu_s))


def _hunts(mutant: str, seeds: range, cpu_s: float) -> list[Hunt]:
    SIM_MUTANTS[mutant].patch()
    gc.disable()
    return [_hunt(mutant, seed, cpu_s) for seed in seeds]


def _hunt(mutant: str, seed: int, cpu_s: float) -> Hunt:
    wanted, began_s = set(SIM_MUTANTS[mutant].caught_by), time.process_time()
    runs = 0
    for runs, trial in enumerate(mixed(seed), 1):
        by = {name for name, _ in trial.run().violations} & wanted
        if runs % 20 == 0:
            gc.collect()
        took_s = time.process_time() - began_s
        if by or took_s >= cpu_s:
            return Hunt(mutant, took_s, runs, tuple(sorted(by)), trial if by else None)
    raise AssertionError("there is always another trial")
