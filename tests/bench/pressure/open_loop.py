"""Half of what the service can do, arriving as it may: how much worse than the usual are the worst answers?"""

from __future__ import annotations

import statistics

from tests.bench.ground import Ground
from tests.bench.open_load import OpenResult, drive_open, poisson_arrivals_s
from tests.bench.program import HOST, Running, the_service
from tests.bench.rounds import percentiles_ms

from .stage import WORKERS, Stage, Watch, driven, max_rate_per_s
from .verdicts import SceneResult, Verdict, Window, faults_of, lags_of, loop_was_free

TARGET = 5.0
SHARE = 0.5
# No arrival should wait for a free connection: 256 in flight at 3,000/s would be 85 ms each.
CONNECTIONS = 256
LONGER = 2


def play(stage: Stage) -> SceneResult:
    """The maximum by a short closed loop, then rounds at half of it, each twice as long as the others' windows."""
    with stage.ground("open_loop") as ground, the_service(workers=WORKERS).serving(ground) as running:
        rate_per_s = SHARE * max_rate_per_s(stage.plan, running, ground)
        windows = [
            stage.tell(_window(stage, running, ground, rate_per_s, seed=number)) for number in range(stage.plan.rounds)
        ]
    verdicts = [_verdict(windows), *loop_was_free(lags_of(windows))]
    return SceneResult(scene="open-loop", windows=windows, verdicts=verdicts)


def _window(stage: Stage, running: Running, ground: Ground, rate_per_s: float, *, seed: int) -> Window:
    plan = stage.plan
    duration_s = plan.warm_up_s + LONGER * plan.measured_s
    arrivals_s = poisson_arrivals_s(rate_per_s=rate_per_s, duration_s=duration_s, seed=seed)
    appointments = ground.new_appointments(len(arrivals_s))
    ground.settle()
    watch = Watch(ground, running)
    before = ground.count(appointments)
    load = drive_open(
        host=HOST,
        port=running.port,
        arrivals_s=arrivals_s,
        requests=list(running.entries(appointments.by_inviters())),
        connections=CONNECTIONS,
        warm_up_s=plan.warm_up_s,
        at_boundary=watch,
    )
    result = driven(load, running)
    faults = faults_of(result.answers, before, ground.count(appointments), wanted={"201 charged"})
    return open_window(f"open loop at {rate_per_s:,.0f}/s", result, watch, faults)


def open_window(contestant: str, result: OpenResult, watch: Watch, faults: tuple[str, ...]) -> Window:
    """What an open loop saw; `notes` say how late the client itself was."""
    answered = len(result.latencies_s)
    return Window(
        contestant=contestant,
        measured_s=result.measured_s,
        answered=answered,
        per_s=answered / result.measured_s,
        latency_ms=percentiles_ms(result.latencies_s),
        cpu_us=watch.cpu_us(answered, result.process_cpu_s),
        lag=watch.lag(),
        notes={f"sent late, {name}, ms": late_ms for name, late_ms in percentiles_ms(result.sent_late_s).items()},
        faults=faults,
    )


def _verdict(windows: list[Window]) -> Verdict:
    sound = [each.latency_ms for each in windows if not each.faults]
    p99, p50 = (statistics.median([each[name] for each in sound]) if sound else None for name in ("p99", "p50"))
    value = statistics.median([each["p99"] / each["p50"] for each in sound]) if sound else None
    what = "p99 / p50 at half the maximum rate, ms"
    return Verdict(what=what, figure=p99, peer=p50, value=value, target=TARGET, bound="at most")
