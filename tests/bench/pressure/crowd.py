"""A thousand connections enter one fresh appointment at once: one is charged, the others cost hardly more."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from tests.bench.connection import Connection, LoadError, connected
from tests.bench.ground import Appointments, Ground
from tests.bench.program import HOST, Running, the_service
from tests.bench.rounds import percentiles_ms

from .stage import Stage, Watch, charge_all, driven, rotated
from .verdicts import SceneResult, Verdict, Window, at_most, faults_of, loop_was_free, median_latency_ms

FIRST, REPEATS = "1,000 first entries", "1,000 repeats"
WANTED = ("201 charged", "200 already_charged")
TARGET = 3.0
CROWD = 1000
WORKERS = 4
CROWDS_PER_ROUND = 3
ANSWERED_WITHIN_S = 30.0


def play(stage: Stage) -> SceneResult:
    """Alternating crowds, each on an appointment of its own, all on the same connections."""
    crowds = stage.plan.rounds * CROWDS_PER_ROUND
    with stage.ground("crowd") as ground, the_service(workers=WORKERS).serving(ground) as running:
        fresh, charged = ground.new_appointments(crowds), ground.new_appointments(crowds + 1)
        charge_all(stage.plan, running, ground, charged)
        ground.settle()
        watch = Watch(ground, running)
        windows = driven(_crowds(stage, running, ground, fresh, charged), running)
        verdicts = [_verdict(windows), *loop_was_free([watch.lag()])]
    return SceneResult(scene="crowd", windows=windows, verdicts=verdicts)


async def _crowds(
    stage: Stage, running: Running, ground: Ground, fresh: Appointments, charged: Appointments
) -> list[Window]:
    crowd, windows = _Crowd(), []
    async with connected(crowd, host=HOST, port=running.port, connections=CROWD) as them:
        # A first one for nothing: connections accepted, access tokens seen.
        await crowd.enter(them, _requests(running, charged, -1))
        for number in range(len(fresh.payer_ids)):
            for contestant, appointments in rotated([(FIRST, fresh), (REPEATS, charged)], number):
                before = ground.count(appointments)
                wall_s = await crowd.enter(them, _requests(running, appointments, number))
                answers = {answer.decode("latin-1"): count for answer, count in crowd.answers.items()}
                faults = list(faults_of(answers, before, ground.count(appointments), wanted=WANTED))
                if answers.get("201 charged", 0) != (contestant == FIRST):
                    faults.append(f"{answers.get('201 charged', 0)} of the crowd were charged")
                windows.append(stage.tell(_window(contestant, wall_s, crowd.latencies_s, faults)))
    return windows


def _requests(running: Running, appointments: Appointments, number: int) -> list[bytes]:
    """Both participants, one after the other, all at the same appointment."""
    appointment_id = range(appointments.first_id, appointments.last_id + 1)[number]
    both = (appointments.payer_ids[number], appointments.invitee_ids[number])
    return [running.entry(appointment_id, both[turn % 2]) for turn in range(CROWD)]


def _window(contestant: str, wall_s: float, latencies_s: list[float], faults: list[str]) -> Window:
    return Window(
        contestant=contestant,
        measured_s=wall_s,
        answered=len(latencies_s),
        per_s=len(latencies_s) / wall_s,
        latency_ms=percentiles_ms(latencies_s) | {"wall": round(wall_s * 1000, 3)},
        faults=tuple(faults),
    )


def _verdict(windows: list[Window]) -> Verdict:
    first, repeats = (median_latency_ms(windows, each, "wall") for each in (FIRST, REPEATS))
    return at_most("1,000 first entries into one / 1,000 repeats, ms", first, repeats, TARGET)


class _Crowd:
    """All connections send at once; it is over when the last has its answer."""

    def __init__(self) -> None:
        self.answers: Counter[bytes] = Counter()
        self.latencies_s: list[float] = []
        self._over: asyncio.Future[str | None]

    async def enter(self, connections: list[Connection], requests: list[bytes]) -> float:
        """The seconds from the first byte sent to the last answer. Raises LoadError."""
        self.answers, self.latencies_s = Counter(), []
        self._missing = len(connections)
        self._over = asyncio.get_running_loop().create_future()
        began_s = time.perf_counter()
        for connection, request in zip(connections, requests, strict=True):
            connection.since_s = time.perf_counter()
            connection.send(request)
        await asyncio.wait([self._over], timeout=ANSWERED_WITHIN_S)
        took_s = time.perf_counter() - began_s
        if not self._over.done():
            raise LoadError(f"{self._missing} of a crowd without an answer after {ANSWERED_WITHIN_S:g} s")
        if (why := self._over.result()) is not None:
            raise LoadError(why)
        return took_s

    def answered(self, connection: Connection, answer: bytes) -> None:
        self.answers[answer] += 1
        self.latencies_s.append(time.perf_counter() - connection.since_s)
        self._missing -= 1
        if not self._missing:
            self._finish(None)

    def broken(self, why: str) -> None:
        self._finish(why)

    def _finish(self, why: str | None) -> None:
        if not self._over.done():
            self._over.set_result(why)
