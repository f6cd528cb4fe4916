"""What every scene stands on: servers, a database of its own, the service, and one closed-loop window."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psycopg2
import redis
import sqlalchemy as sa
import uvloop

from tests.bench.audit import audit
from tests.bench.connection import CHARGED
from tests.bench.cpu import Meter, Reading
from tests.bench.ground import Appointments, Counted, Ground
from tests.bench.load import LoadError, LoadResult, drive, drive_all
from tests.bench.program import HOST, Running
from tests.bench.rounds import CandidateFailed, cpu_us_per_charge, percentiles_ms

from .lag import lag_between, scrape
from .verdicts import Lag, Window, faults_of

WORKERS = 2
Each = TypeVar("Each")
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The same for every scene."""

    measured_s: float
    warm_up_s: float
    rounds: int
    connections: int
    users: int
    ceiling_per_s: int
    table_sizes: list[int]
    entries: list[int]

    @property
    def appointments_per_window(self) -> int:
        """Enough for `ceiling_per_s`."""
        return round(self.ceiling_per_s * (self.warm_up_s + self.measured_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The servers, the plan, and who is told of progress."""

    plan: Plan
    database_url: str
    redis_url: str
    folder: Path
    say: Callable[[str], None]
    audit_faults: list[str] = field(default_factory=list)

    @contextmanager
    def ground(self, name: str) -> Iterator[Ground]:
        """A database of this name with users in it; audited and dropped at the end, so that no scene inherits."""
        self.forget_locks()
        self._run(f'create database "{name}"')
        try:
            url = sa.make_url(self.database_url).set(database=name).render_as_string(hide_password=False)
            ground = Ground(database_url=url, redis_url=self.redis_url, folder=self.folder, users=self.plan.users)
            ground.prepare()
            yield ground
            audited = audit(ground)
            if audited["exit"]:
                self.audit_faults.append(f"audit of {name}: exit {audited['exit']}: {audited['output']}")
        finally:
            self._run(f'drop database "{name}" with (force)')

    def forget_locks(self) -> None:
        """Valkey as good as new; for when no service runs on it."""
        with closing(redis.Redis.from_url(self.redis_url)) as client:
            client.flushall()

    def tell(self, window: Window) -> Window:
        """Says what the window found, and hands it on."""
        latency = "".join(f"  {name} {window.latency_ms[name]:.1f} ms" for name in ("p50", "p99") if window.latency_ms)
        faults = f"  FAULTS: {'; '.join(window.faults)}" if window.faults else ""
        self.say(f"  {window.contestant:<28} {window.per_s:>9,.0f}/s{latency}{faults}")
        return window

    def _run(self, statement: str) -> None:
        url = sa.make_url(self.database_url).set(drivername="postgresql").render_as_string(hide_password=False)
        with closing(psycopg2.connect(url)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)


class Watch:
    """What a window costs, and how late the event loops were. To be made just before the load, and called at both
    boundaries of the window.

    The event loops are looked at from before the warm-up until after the last answer: to ask in the middle would hold
    up the worker that is asked.
    """

    def __init__(self, ground: Ground, running: Running) -> None:
        self._meter = Meter(ground.process_roots() | {"workers": running.pids})
        self._port = running.port
        self._readings: list[Reading | None] = []
        self._scraped = scrape(running.port)

    def __call__(self) -> None:
        """One boundary."""
        self._readings.append(self._meter.read())

    def cpu_us(self, answered: int, client_s: float) -> dict[str, float]:
        """Microseconds that each group spent on one answer."""
        before, after = self._readings
        return cpu_us_per_charge(before, after, charged=answered, known_s={"client": client_s})

    def lag(self) -> Lag | None:
        """Until now; None where the program does not tell."""
        return lag_between(self._scraped, scrape(self._port))


def closed_window(
    contestant: str,
    plan: Plan,
    running: Running,
    watch: Watch,
    requests: Iterable[bytes],
    *,
    wanted: bytes = CHARGED,
    count: Callable[[], Counted] | None = None,
) -> Window:
    """All connections enter as fast as they are answered. Answers must be the wanted one, and as many as the rows that
    `count` finds more than before."""
    before = count() if count else None
    load = drive(
        host=HOST,
        port=running.port,
        requests=requests,
        connections=plan.connections,
        warm_up_s=plan.warm_up_s,
        measured_s=plan.measured_s,
        at_boundary=watch,
        wanted=wanted,
    )
    result = driven(load, running)
    faults = faults_of(result.answers, before, count() if count else None, wanted={wanted.decode()})
    return window_of(contestant, result, watch, faults)


def window_of(contestant: str, result: LoadResult, watch: Watch, faults: tuple[str, ...]) -> Window:
    """What a closed loop found, and what it cost."""
    return Window(
        contestant=contestant,
        measured_s=result.measured_s,
        answered=result.measured,
        per_s=result.measured / result.measured_s,
        latency_ms=percentiles_ms(result.latencies_s),
        cpu_us=watch.cpu_us(result.measured, result.process_cpu_s),
        lag=watch.lag(),
        faults=faults,
    )


def charge_all(plan: Plan, running: Running, ground: Ground, appointments: Appointments) -> None:
    """Charges them once, for scenes about what comes after the charge."""
    requests = running.entries(appointments.by_inviters())
    load = drive_all(host=HOST, port=running.port, requests=requests, connections=plan.connections, wanted={CHARGED})
    answers = driven(load, running).answers
    nothing = Counted(charges=0, entries=0, marked=0)
    if faults := faults_of(answers, nothing, ground.count(appointments), wanted={CHARGED.decode()}):
        raise CandidateFailed(f"the appointments could not be charged beforehand: {'; '.join(faults)}")


def distinct_window(contestant: str, plan: Plan, running: Running, ground: Ground) -> Window:
    """Distinct charges a second, on fresh appointments of many payers."""
    return window_over(contestant, plan, running, ground, ground.new_appointments(plan.appointments_per_window))


def window_over(contestant: str, plan: Plan, running: Running, ground: Ground, appointments: Appointments) -> Window:
    """Charges fresh appointments, each once."""
    ground.settle()
    watch = Watch(ground, running)
    requests = list(running.entries(appointments.by_inviters()))
    return closed_window(contestant, plan, running, watch, requests, count=lambda: ground.count(appointments))


def max_rate_per_s(plan: Plan, running: Running, ground: Ground) -> float:
    """What a short closed loop gets through; the measure for open loops."""
    window = distinct_window("max rate (closed loop)", plan, running, ground)
    if window.faults:
        raise CandidateFailed(f"the maximum rate could not be measured: {'; '.join(window.faults)}")
    return window.per_s


def driven(load: Coroutine[Any, Any, Found], running: Running) -> Found:
    """What the load found. Raises CandidateFailed with the end of the program's log."""
    try:
        return uvloop.run(load)
    except (LoadError, OSError) as error:
        raise CandidateFailed(f"{error}{running.log_tail()}") from error


def alternating(stage: Stage, measures: Sequence[Callable[[], Window]]) -> list[Window]:
    """Rounds of all of them, told one by one."""
    return [stage.tell(measure()) for number in range(stage.plan.rounds) for measure in rotated(measures, number)]


def rotated(them: Sequence[Each], number: int) -> list[Each]:
    """Another one begins each time, so that nobody always has the smallest tables."""
    first = number % len(them)
    return [*them[first:], *them[:first]]
