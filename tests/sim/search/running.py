"""Runs many trials, in as many processes as there are cores."""

from __future__ import annotations

import contextlib
import gc
import itertools
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context

from tests.sim.ending import deaf_to_signals, end_with_parent, stop
from tests.sim.search.finding import Finding, Tally
from tests.sim.trial import Trial

IN_A_CHUNK = 20
AT_RANDOM = 5  # about so many times as long as a scene is a run at random, or more
COLLECT_EVERY = 20


def judged(trials: Iterable[Trial]) -> tuple[Tally, list[Finding]]:
    """Runs them here, one after another."""
    tally, findings = Tally(), []
    gc.disable()  # a run is one great knot, which is untied in one go
    try:
        for number, trial in enumerate(trials, 1):
            began_s = time.process_time()
            outcome = trial.run()
            if outcome.violations:
                findings.append(Finding(trial, tuple(outcome.violations)))
            lasted_s, events, commands = outcome.lasted_s, outcome.events, outcome.commands
            del outcome
            if number % COLLECT_EVERY == 0:
                gc.collect()
            tally += Tally(1, lasted_s, events, commands, time.process_time() - began_s)
    finally:
        gc.enable()
    return tally, findings


def search(
    trials: Iterable[Trial], *, processes: int, until_s: float | None = None
) -> Iterator[tuple[Tally, list[Finding]]]:
    """What comes of each chunk of them, as it comes. `until_s`: no chunk begins after that time.monotonic()."""
    chunks = itertools.takewhile(lambda _: until_s is None or time.monotonic() < until_s, _chunks(trials))
    if processes == 1:
        yield from map(judged, chunks)
        return
    running: set[Future[tuple[Tally, list[Finding]]]] = set()
    with side_by_side(processes) as pool:
        while True:
            wanted = 2 * processes - len(running)
            more = list(itertools.islice(chunks, wanted))
            with deaf_to_signals():
                running |= {pool.submit(judged, chunk) for chunk in more}
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                yield each.result()


@contextlib.contextmanager
def side_by_side(processes: int) -> Iterator[ProcessPoolExecutor]:
    """So many processes that search; where it is left early they end in the middle of it."""
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=end_with_parent) as pool:
        try:
            yield pool
        except BaseException:
            stop()
            raise


def _chunks(trials: Iterable[Trial]) -> Iterator[list[Trial]]:
    chunk: list[Trial] = []
    weight = 0
    for trial in trials:
        chunk.append(trial)
        weight += 1 if trial.scene is not None else AT_RANDOM
        if weight >= IN_A_CHUNK:
            yield chunk
            chunk, weight = [], 0
    if chunk:
        yield chunk
