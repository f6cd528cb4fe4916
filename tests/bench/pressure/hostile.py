"""One hostile caller of each sort beside a participant who pays, through the repository's HAProxy and two instances."""

from __future__ import annotations

import http.client
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from urllib.parse import urlencode

import uvloop

from tests.bench.cpu import Meter, Reading, used_between
from tests.bench.ground import Appointments, Ground
from tests.bench.load import LoadError, drive_all
from tests.bench.open_load import OpenResult, drive_open, poisson_arrivals_s
from tests.bench.program import HOST, Program, Running, the_service
from tests.bench.rounds import percentiles_ms
from tests.servers.haproxy import Haproxy, haproxy, haproxy_binary

from .hostile_caller import Attack, at_work
from .lag import lag_between, scrape
from .stage import Stage, driven
from .verdicts import (
    Lag,
    SceneResult,
    Verdict,
    Window,
    at_most,
    faults_of,
    lags_of,
    loop_was_free,
    median_latency_ms,
)

TARGET = 3.0
INSTANCES = 2
RATE_PER_S = 100.0  # of a participant: modest, so that what is measured is not its own crowd
CONNECTIONS = 64
LONGER = 2
SOURCE = "127.0.0.2"  # of whoever is hostile; participants come from 127.0.0.1
USER = 1_000_000_007  # takes part in nothing
SCOPE = "locks monitor"
LEASES, LISTED = 100_000, 25_000
CHARGED = "201 charged"


@dataclass(frozen=True, slots=True)
class Front:
    """What an attack is made from: HAProxy, the instances behind it, and a good token of somebody who takes no part."""

    haproxy: Haproxy
    instances: list[Running]
    token: str

    def request(self, method: str, path: str, body: str = "", headers: str = "", *, length: int | None = None) -> str:
        """One by this caller; it says that its body is `length` long, whatever it is."""
        length = len(body) if length is None else length
        head = f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n{headers}\r\n"
        return head + body

    @property
    def bearer(self) -> str:
        """A header line."""
        return f"Authorization: Bearer {self.token}\r\n"

    def lease(self, name: str, *, wait_ms: int = 0) -> str:
        """A request for it."""
        body = f'{{"ttl_ms": 3600000, "wait_ms": {wait_ms}}}'
        return self.request(
            "POST", f"/v1/locks/{name}/leases", body, self.bearer + "Content-Type: application/json\r\n"
        )

    def take_leases(self, count: int) -> Counter[str]:
        """At the instances themselves: as if somebody had taken their time. How many of each status there were."""
        share, answers = count // len(self.instances), Counter[str]()
        for number, instance in enumerate(self.instances):
            wanted = (self.lease(f"hostile:{number}-{each}").encode() for each in range(share))
            load = drive_all(host=HOST, port=instance.port, requests=wanted, connections=64, wanted=frozenset())
            for answer, times in driven(load, instance).answers.items():
                answers[answer.partition(" ")[0]] += times
        return answers


Ask = Callable[[Front, Appointments], list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sort:
    """One sort of hostile caller: what it sends, from how many connections, how soon after an answer."""

    name: str
    connections: int
    pause_s: float
    requests: Ask
    leases: int = 0  # that it has before


def _slow_bodies(front: Front, _: Appointments) -> list[str]:
    form = "Content-Type: application/x-www-form-urlencoded\r\n"
    return [front.request("POST", "/dashboard/login", "token=", form, length=1000)]


def _log_ins(front: Front, _: Appointments) -> list[str]:
    form = "Content-Type: application/x-www-form-urlencoded\r\nSec-Fetch-Site: same-origin\r\n"
    head = front.token.rpartition(".")[0]  # with a signature that has to be looked at
    return [front.request("POST", "/dashboard/login", urlencode({"token": f"{head}.{'A' * 43}"}), form)]


def _scrapes(front: Front, _: Appointments) -> list[str]:
    return [front.request("GET", "/metrics")]


def _outsider(front: Front, appointments: Appointments) -> list[str]:
    ids = range(appointments.first_id, appointments.last_id + 1)
    return [front.request("POST", f"/v1/appointments/{each}/entries", headers=front.bearer) for each in ids]


def _lease_waits(front: Front, _: Appointments) -> list[str]:
    return [front.lease("hostile:one", wait_ms=60_000)]


def _leases(front: Front, _: Appointments) -> list[str]:
    return [front.lease(f"hostile:more-{each}") for each in range(20_000)]


def _streams(front: Front, _: Appointments) -> list[str]:
    return [front.request("GET", "/v1/contention/stream", headers=front.bearer)]


def _exports(front: Front, _: Appointments) -> list[str]:
    with closing(http.client.HTTPConnection(HOST, front.instances[0].port)) as connection:
        form = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}
        connection.request("POST", "/dashboard/login", urlencode({"token": front.token}), form)
        cookie = (connection.getresponse().getheader("Set-Cookie") or "").partition(";")[0]
    paths = ("/dashboard/exports/locks.csv", "/dashboard/exports/locks.json")
    return [front.request("GET", path, headers=f"Cookie: {cookie}\r\n") for path in paths]


SORTS = [
    Sort(name="4,000 slow bodies", connections=4000, pause_s=1.0, requests=_slow_bodies),
    Sort(name="log-ins", connections=64, pause_s=0.02, requests=_log_ins),
    Sort(name="scrapes", connections=8, pause_s=0.005, requests=_scrapes),
    Sort(name="an outsider, 400 at once", connections=400, pause_s=0.2, requests=_outsider),
    Sort(name="4,000 lease waits", connections=4000, pause_s=1.0, requests=_lease_waits),
    Sort(name="100,000 leases", connections=64, pause_s=0.02, requests=_leases, leases=LEASES),
    Sort(name="200 streams", connections=200, pause_s=1.0, requests=_streams),
    Sort(name="exports of 25,000 rows", connections=4, pause_s=0.1, requests=_exports, leases=LISTED),
]


def play(stage: Stage) -> SceneResult:
    """For each sort two instances of their own: quiet, then beside it."""
    if haproxy_binary() is None:
        return SceneResult(scene="hostile", windows=[], verdicts=[], not_measured="haproxy is not installed")
    windows: list[Window] = []
    program = the_service(workers=1)
    with stage.ground("hostile") as ground:
        for seed in range(stage.plan.rounds):
            for sort in SORTS:
                stage.forget_locks()
                with _front(stage, program, ground) as front:
                    windows.append(stage.tell(_window(stage, front, ground, seed, f"quiet, {sort.name}", None)))
                    if taken := front.take_leases(sort.leases):
                        stage.say(f"    leases that it asked for before: {dict(taken)}")
                    windows.append(stage.tell(_window(stage, front, ground, seed, sort.name, sort)))
    verdicts = [each for sort in SORTS for each in _verdicts(windows, sort)]
    return SceneResult(scene="hostile", windows=windows, verdicts=[*verdicts, *loop_was_free(lags_of(windows))])


@contextmanager
def _front(stage: Stage, program: Program, ground: Ground) -> Iterator[Front]:
    with (
        program.serving(ground) as one,
        program.serving(ground) as other,
        haproxy(stage.folder, [one.port, other.port]) as running,
    ):
        yield Front(running, [one, other], program.access_token(USER, scope=SCOPE))


def _window(stage: Stage, front: Front, ground: Ground, seed: int, name: str, sort: Sort | None) -> Window:
    """The participant's open loop, alone or beside somebody hostile."""
    plan = stage.plan
    duration_s = plan.warm_up_s + LONGER * plan.measured_s
    arrivals_s = poisson_arrivals_s(rate_per_s=RATE_PER_S, duration_s=duration_s, seed=seed)
    appointments = ground.new_appointments(len(arrivals_s))
    ground.settle()
    before, scraped = ground.count(appointments), [scrape(each.port) for each in front.instances]
    went_down = _went_down(front.haproxy)
    beside = _Beside(front, ground, sort, appointments)
    try:
        result = uvloop.run(beside.played(arrivals_s, plan.warm_up_s))
    except (LoadError, OSError, TimeoutError) as error:
        return _broken(
            name, f"{error or type(error).__name__}; instances down: {_went_down(front.haproxy) - went_down}"
        )
    notes = beside.notes(result) | {
        "instances that went down": _went_down(front.haproxy) - went_down,
        "the participant was refused": sum(count for what, count in result.answers.items() if what != CHARGED),
    }
    answered = len(result.latencies_s)
    if told := ", ".join(f"{what} {count:g}" for what, count in notes.items() if count):
        stage.say(f"    {told}")
    return Window(
        contestant=name,
        measured_s=result.measured_s,
        answered=answered,
        per_s=answered / result.measured_s,
        latency_ms=percentiles_ms(result.latencies_s),
        lag=_lag(scraped, front),
        notes=notes,
        faults=faults_of(result.answers, before, ground.count(appointments), wanted=result.answers),
    )


class _Beside:
    """One window: who is at work beside the participant, and what each costs."""

    def __init__(self, front: Front, ground: Ground, sort: Sort | None, appointments: Appointments) -> None:
        self._front = front
        self._appointments = appointments
        self._attack = (
            None
            if sort is None
            else Attack(
                port=front.haproxy.port,
                source=SOURCE,
                connections=sort.connections,
                requests=sort.requests(front, appointments),
                pause_s=sort.pause_s,
            )
        )
        self._roots = ground.process_roots() | {
            "instances": [pid for each in front.instances for pid in each.pids],
            "haproxy": [front.haproxy.pid],
        }
        self._readings: list[Reading | None] = []
        self._answers: Mapping[str, int] = {}

    async def played(self, arrivals_s: list[float], warm_up_s: float) -> OpenResult:
        """What the participant saw. Raises LoadError, OSError, TimeoutError."""
        if self._attack is None:
            return await self._participant(arrivals_s, warm_up_s)
        async with at_work(self._attack) as hostile:
            self._roots["hostile"] = [hostile.pid]
            result = await self._participant(arrivals_s, warm_up_s)
            self._answers = await hostile.ended()
            return result

    async def _participant(self, arrivals_s: list[float], warm_up_s: float) -> OpenResult:
        meter = Meter(self._roots)
        return await drive_open(
            host=HOST,
            port=self._front.haproxy.port,
            arrivals_s=arrivals_s,
            requests=list(self._front.instances[0].entries(self._appointments.by_inviters())),
            connections=CONNECTIONS,
            warm_up_s=warm_up_s,
            at_boundary=lambda: self._readings.append(meter.read()),
        )

    def notes(self, result: OpenResult) -> dict[str, float]:
        """How the hostile one was answered, and everybody's share of all cores while the window was open."""
        notes = {f"hostile: {what}": float(count) for what, count in sorted(self._answers.items())}
        before, after = self._readings
        if before is not None and after is not None:
            used_s = used_between(before, after, known_s={"participant": result.process_cpu_s})
            of_all_s = after.machine_s - before.machine_s
            whole_s = (os.cpu_count() or 1) * result.measured_s
            notes |= {f"CPU of all cores, {who}, %": round(100 * each / whole_s, 1) for who, each in used_s.items()}
            notes["CPU of all cores, busy, %"] = round(100 * of_all_s / whole_s, 1)
        return notes


def _verdicts(windows: list[Window], sort: Sort) -> list[Verdict]:
    beside, quiet = (median_latency_ms(windows, name, "p99") for name in (sort.name, f"quiet, {sort.name}"))
    those = [each.notes for each in windows if each.contestant == sort.name]
    verdicts = [at_most(f"{sort.name}: a participant's p99 beside it / quiet, ms", beside, quiet, TARGET)]
    for what in ("the participant was refused", "instances that went down"):
        counts = [each[what] for each in those if what in each]
        total = sum(counts) if counts else None
        verdicts.append(
            Verdict(what=f"{sort.name}: {what}", figure=total, peer=None, value=total, target=0, bound="at most")
        )
    return verdicts


def _went_down(running: Haproxy) -> int:
    return sum(int(each["chkdown"] or 0) for each in running.stats().values())


def _lag(before: list[str], front: Front) -> Lag | None:
    try:
        found = [lag_between(earlier, scrape(each.port)) for earlier, each in zip(before, front.instances, strict=True)]
    except OSError:
        return None
    known = [each for each in found if each is not None]
    return Lag(looks=sum(each.looks for each in known), late=sum(each.late for each in known)) if known else None


def _broken(name: str, why: str) -> Window:
    return Window(contestant=name, measured_s=0, answered=0, per_s=0, faults=(why,))
