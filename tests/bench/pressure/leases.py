"""Leases over HTTP, on distinct names: acquired and released again, with one worker and with two."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from tests.bench.connection import NO_CONTENT
from tests.bench.ground import Ground
from tests.bench.lease_load import TAKEN, LeaseLoad
from tests.bench.load import LoadResult, windowed
from tests.bench.program import HOST, Running, the_service

from .stage import Plan, Stage, Watch, alternating, driven, window_of
from .verdicts import SceneResult, Window, at_least, faults_of, lags_of, loop_was_free, median_per_s

COUNTS = {"leases, 1 worker": 1, "leases, 2 workers": 2}
TARGET_PER_S = 5000.0


def play(stage: Stage) -> SceneResult:
    """Alternating rounds; the one that has no turn idles."""
    with ExitStack() as stack:
        ground = stack.enter_context(stage.ground("leases"))
        measures = []
        for name, workers in COUNTS.items():
            service = the_service(workers=workers)
            running = stack.enter_context(service.serving(ground))
            head = f"Host: {HOST}:{running.port}\r\nAuthorization: Bearer {service.access_token(1, scope='locks')}\r\n"
            measures.append(partial(_window, name, stage.plan, running, ground, head.encode()))
        windows = alternating(stage, measures)
    one, two = (median_per_s(windows, name) for name in COUNTS)
    verdicts = [
        at_least("one worker, acquire and release/s, against the target", one, TARGET_PER_S, 1.0),
        at_least("2 workers / 1 worker, acquire and release/s", two, one, None),
    ]
    return SceneResult(scene="leases", windows=windows, verdicts=[*verdicts, *loop_was_free(lags_of(windows))])


def _window(contestant: str, plan: Plan, running: Running, ground: Ground, head: bytes) -> Window:
    watch = Watch(ground, running)
    result = driven(_load(head, plan, running, watch), running)
    faults = faults_of(result.answers, None, None, wanted={TAKEN.decode(), NO_CONTENT.decode()})
    if result.answers.get(TAKEN.decode()) != result.answers.get(NO_CONTENT.decode()):
        faults += ("not every lease was released",)
    return window_of(contestant, result, watch, faults)


async def _load(head: bytes, plan: Plan, running: Running, watch: Watch) -> LoadResult:
    return await windowed(
        LeaseLoad(head),
        host=HOST,
        port=running.port,
        connections=plan.connections,
        warm_up_s=plan.warm_up_s,
        measured_s=plan.measured_s,
        at_boundary=watch,
    )
