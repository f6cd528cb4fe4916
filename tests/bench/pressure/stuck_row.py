"""A foreign session sits on one appointment's row, a few clients keep entering it: does anybody else notice?"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from typing import Any, Protocol

import psycopg2
import psycopg2.extensions

from tests.bench.connection import Connection, LoadError, connected
from tests.bench.ground import Ground
from tests.bench.open_load import OpenResult, drive_open, poisson_arrivals_s
from tests.bench.program import HOST, Running, the_service

from .open_loop import CONNECTIONS, open_window
from .stage import WORKERS, Stage, Watch, alternating, driven, max_rate_per_s
from .verdicts import SceneResult, Window, at_most, faults_of, lags_of, loop_was_free, median_latency_ms

HELD, FREE = "one row held for 5 s", "no row held"
TARGET = 1.5
SHARE = 1 / 3
HELD_S = 5.0
STUBBORN = 4
PAUSE_S = 0.1
ANSWERED_WITHIN_S = 20.0
REFUSED = "409 charge-in-progress"
ALLOWED = ("201 charged", "200 already_charged", REFUSED)
LOCK_ROW = "select id from appointment_info where id = %s for update"


def play(stage: Stage) -> SceneResult:
    """Alternating windows at a third of the maximum rate, with and without the foreign session."""
    with stage.ground("stuck_row") as ground, the_service(workers=WORKERS).serving(ground) as running:
        rate_per_s = SHARE * max_rate_per_s(stage.plan, running, ground)
        seeds = itertools.count()
        windows = alternating(
            stage,
            [
                lambda: _window(stage, FREE, running, ground, rate_per_s, next(seeds)),
                lambda: _window(stage, HELD, running, ground, rate_per_s, next(seeds)),
            ],
        )
    held, free = (median_latency_ms(windows, each, "p99") for each in (HELD, FREE))
    verdict = at_most("p99 of all others, one row held / none, ms", held, free, TARGET)
    return SceneResult(scene="stuck-row", windows=windows, verdicts=[verdict, *loop_was_free(lags_of(windows))])


def _window(stage: Stage, contestant: str, running: Running, ground: Ground, rate_per_s: float, seed: int) -> Window:
    duration_s = stage.plan.warm_up_s + HELD_S
    arrivals_s = poisson_arrivals_s(rate_per_s=rate_per_s, duration_s=duration_s, seed=seed)
    # The last one is entered by the stubborn alone.
    appointments = ground.new_appointments(len(arrivals_s) + 1)
    ground.settle()
    before, watch = ground.count(appointments), Watch(ground, running)
    request = running.entry(appointments.last_id, appointments.payer_ids[-1])
    with _session(contestant, ground, appointments.last_id) as session:
        stubborn = _Stubborn(request)
        others = drive_open(
            host=HOST,
            port=running.port,
            arrivals_s=arrivals_s,
            requests=list(running.entries(appointments.by_inviters())),
            connections=CONNECTIONS,
            warm_up_s=stage.plan.warm_up_s,
            at_boundary=stubborn.told_by(watch),
        )
        result = driven(_played(others, stubborn, session, running.port), running)
    answers = Counter(result.answers) + Counter(stubborn.answers)
    faults = faults_of(answers, before, ground.count(appointments), wanted=ALLOWED)
    if result.answers.keys() != {"201 charged"}:
        faults += (f"the others were answered {result.answers}",)
    if contestant == HELD and stubborn.answers_in_window.keys() - {REFUSED}:
        faults += (f"the row was not held: its clients were answered {dict(stubborn.answers_in_window)}",)
    return open_window(contestant, result, watch, faults)


async def _played(
    others: Coroutine[Any, Any, OpenResult], stubborn: _Stubborn, session: Session, port: int
) -> OpenResult:
    async with connected(stubborn, host=HOST, port=port, connections=STUBBORN) as them:
        beside = asyncio.create_task(_sit(stubborn, session, them))
        try:
            result = await others
            await beside
        finally:
            beside.cancel()
    return result


async def _sit(stubborn: _Stubborn, session: Session, them: list[Connection]) -> None:
    """Takes the row as the window begins, and gives it back as it ends."""
    await stubborn.window_begun.wait()
    await asyncio.to_thread(session.take)
    stubborn.begin(them)
    await stubborn.window_ended.wait()
    await asyncio.to_thread(session.give_back)
    await stubborn.ended()


class _Stubborn:
    """Clients that enter one appointment again and again, whatever they are answered, with a pause."""

    def __init__(self, request: bytes) -> None:
        self.answers: Counter[str] = Counter()
        self.answers_in_window: Counter[str] = Counter()
        self.window_begun, self.window_ended = asyncio.Event(), asyncio.Event()
        self._request = request
        self._in_flight = 0
        self._over = asyncio.Event()
        self._why_broken: str | None = None

    def told_by(self, watch: Watch) -> Callable[[], None]:
        """To be called at both boundaries of the window, by whoever drives the others."""

        def at_boundary() -> None:
            watch()
            (self.window_ended if self.window_begun.is_set() else self.window_begun).set()

        return at_boundary

    def begin(self, connections: list[Connection]) -> None:
        for connection in connections:
            self._send(connection)

    async def ended(self) -> None:
        """All have their last answer. Raises LoadError."""
        if self._in_flight:
            try:
                await asyncio.wait_for(self._over.wait(), ANSWERED_WITHIN_S)
            except TimeoutError:
                raise LoadError("the clients at the held row were not answered") from None
        if self._why_broken is not None:
            raise LoadError(self._why_broken)

    def answered(self, connection: Connection, answer: bytes) -> None:
        self._in_flight -= 1
        self.answers[answer.decode("latin-1")] += 1
        if not self.window_ended.is_set():
            self.answers_in_window[answer.decode("latin-1")] += 1
            asyncio.get_running_loop().call_later(PAUSE_S, self._send, connection)
        elif not self._in_flight:
            self._over.set()

    def broken(self, why: str) -> None:
        self._why_broken = why
        self._over.set()

    def _send(self, connection: Connection) -> None:
        if not self.window_ended.is_set():
            self._in_flight += 1
            connection.send(self._request)


class Session(Protocol):
    """Somebody at the database, who is none of ours."""

    def take(self) -> None:
        """The row is theirs from now on."""

    def give_back(self) -> None:
        """It is free again."""


class _Holder:
    def __init__(self, connection: psycopg2.extensions.connection, appointment_id: int) -> None:
        self._connection = connection
        self._appointment_id = appointment_id

    def take(self) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(LOCK_ROW, (self._appointment_id,))

    def give_back(self) -> None:
        self._connection.rollback()


class _Nobody:
    def take(self) -> None:
        """Takes nothing."""

    def give_back(self) -> None:
        """Has nothing."""


@contextmanager
def _session(contestant: str, ground: Ground, appointment_id: int) -> Iterator[Session]:
    if contestant == FREE:
        yield _Nobody()
        return
    with closing(psycopg2.connect(ground.plain_url)) as connection:
        yield _Holder(connection, appointment_id)
