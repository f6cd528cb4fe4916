"""One worker and two: distinct charges a second, and what each charge costs whom. Told without a target."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from tests.bench.program import the_service

from .stage import Stage, alternating, distinct_window
from .verdicts import SceneResult, at_least, lags_of, loop_was_free, median_per_s

COUNTS = {"1 worker": 1, "2 workers": 2}


def play(stage: Stage) -> SceneResult:
    """Alternating rounds; the one that has no turn idles."""
    with ExitStack() as stack:
        ground = stack.enter_context(stage.ground("workers"))
        measures = []
        for name, workers in COUNTS.items():
            running = stack.enter_context(the_service(workers=workers).serving(ground))
            measures.append(partial(distinct_window, name, stage.plan, running, ground))
        windows = alternating(stage, measures)
    one, two = (median_per_s(windows, name) for name in COUNTS)
    verdict = at_least("2 workers / 1 worker, charges/s", two, one, None)
    return SceneResult(scene="workers", windows=windows, verdicts=[verdict, *loop_was_free(lags_of(windows))])
