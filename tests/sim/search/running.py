"""Runs many trials, in as many processes as there are cores."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context

from tests.sim.search.finding import Finding, Tally
from tests.sim.trial import Trial

IN_A_CHUNK = 20
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
    chunks = _chunks(trials)
    if processes == 1:
        for chunk in chunks:
            if until_s is not None and time.monotonic() >= until_s:
                return
            yield judged(chunk)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running: set[Future[tuple[Tally, list[Finding]]]] = set()
        while True:
            if until_s is None or time.monotonic() < until_s:
                running |= {
                    pool.submit(judged, chunk) for chunk in itertools.islice(chunks, 2 * processes - len(running))
                }
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                yield each.result()


def _chunks(trials: Iterable[Trial]) -> Iterator[list[Trial]]:
    trials = iter(trials)
    while chunk := list(itertools.islice(trials, IN_A_CHUNK)):
        yield chunk
