"""The pressure bench decides rightly: schedules, percentiles, lag, faults, verdicts. No service, no database."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import cast

import pytest

from tests.bench.alarm import Alarm, KernelAlarm, LoopAlarm
from tests.bench.connection import ALREADY_CHARGED, CHARGED, LoadError
from tests.bench.ground import Counted
from tests.bench.load import drive, drive_all
from tests.bench.open_load import drive_open, poisson_arrivals_s
from tests.bench.pressure.lag import lag_between, lag_of
from tests.bench.pressure.memory import pss_of
from tests.bench.pressure.stage import rotated
from tests.bench.pressure.verdicts import (
    Lag,
    SceneResult,
    Verdict,
    Window,
    at_least,
    at_most,
    faults_of,
    loop_was_free,
    median_latency_ms,
    median_per_s,
)
from tests.bench.rounds import percentiles_ms

REQUEST = b"POST /v1/appointments/1/entries HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
METRICS = """
chargeonce_event_loop_lag_seconds_bucket{le="0.025"} 7.0
chargeonce_event_loop_lag_seconds_bucket{le="0.05"} 8.0
chargeonce_event_loop_lag_seconds_bucket{le="0.1"} 9.0
chargeonce_event_loop_lag_seconds_bucket{le="+Inf"} 10.0
chargeonce_event_loop_lag_seconds_count 10.0
chargeonce_event_loop_lag_seconds_sum 0.4
"""
NOTHING = Counted(charges=0, entries=0, marked=0)


def one_window(contestant: str, per_s: float, **more: object) -> Window:
    return Window(contestant=contestant, measured_s=1.0, answered=1, per_s=per_s, **more)  # type: ignore[arg-type]


class Answering(asyncio.Protocol):
    """A server's side of a connection: answers each request with the same bytes after a while."""

    def __init__(self, answer: bytes, after_s: float) -> None:
        self._answer = answer
        self._after_s = after_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(self._after_s, self._transport.write, self._answer)


@asynccontextmanager
async def answering(outcome: str, *, after_s: float = 0.0, status: str = "201 Created") -> AsyncIterator[int]:
    """A server that answers every request so; its port."""
    body = f'{{"outcome":"{outcome}"}}'
    answer = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    server = await asyncio.get_running_loop().create_server(lambda: Answering(answer, after_s), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


def test_the_same_seed_gives_the_same_schedule_and_another_one_another() -> None:
    first, again, other = (poisson_arrivals_s(rate_per_s=500, duration_s=4, seed=seed) for seed in (1, 1, 2))

    assert first == again != other


def test_a_schedule_keeps_its_rate_and_comes_as_independent_callers_do() -> None:
    arrivals_s = poisson_arrivals_s(rate_per_s=1000, duration_s=20, seed=3)
    gaps_s = [later - earlier for earlier, later in pairwise(arrivals_s)]

    assert arrivals_s == sorted(arrivals_s)
    assert arrivals_s[0] > 0
    assert arrivals_s[-1] < 20
    assert len(arrivals_s) == pytest.approx(20_000, rel=0.05)
    assert statistics.stdev(gaps_s) == pytest.approx(statistics.mean(gaps_s), rel=0.05)  # as exponential gaps have it


def test_percentiles_are_answers_that_were_given() -> None:
    found = percentiles_ms([each / 1000 for each in range(1, 1001)])

    assert found == {"p50": 501.0, "p95": 951.0, "p99": 991.0, "max": 1000.0}
    assert percentiles_ms([]) == {}
    assert percentiles_ms([0.002]) == {"p50": 2.0, "p95": 2.0, "p99": 2.0, "max": 2.0}


def test_late_looks_are_those_beyond_50_ms() -> None:
    assert lag_of(METRICS) == Lag(looks=10, late=2)
    assert lag_between(METRICS, METRICS.replace("10.0", "14.0").replace("8.0", "11.0")) == Lag(looks=4, late=1)
    assert lag_between("", METRICS) is None


def test_the_loops_were_free_when_no_look_was_late_and_nothing_is_said_of_looks_that_nobody_took() -> None:
    (free,), (held,) = loop_was_free([Lag(5, 0), None, Lag(4, 0)]), loop_was_free([Lag(5, 0), Lag(4, 1)])

    assert (free.figure, free.peer, free.passed) == (0, 9, True)
    assert (held.figure, held.peer, held.passed) == (1, 9, False)
    assert loop_was_free([None]) == []


def test_answers_and_rows_must_agree() -> None:
    answers = {"201 charged": 3, "200 already_charged": 2}
    right = Counted(charges=3, entries=5, marked=3)

    assert faults_of(answers, NOTHING, right, wanted=answers) == ()
    assert len(faults_of(answers, NOTHING, Counted(charges=4, entries=5, marked=3), wanted=answers)) == 1
    assert len(faults_of(answers, NOTHING, Counted(charges=3, entries=4, marked=3), wanted=answers)) == 1
    assert faults_of(answers, right, Counted(charges=6, entries=10, marked=6), wanted=answers) == ()


def test_an_answer_that_nobody_wanted_is_a_fault() -> None:
    answers = {"201 charged": 1, "503 overloaded": 2}

    assert faults_of(answers, None, None, wanted={"201 charged"}) == ("2 answers were 503 overloaded",)


def test_windows_with_a_fault_are_in_no_median() -> None:
    windows = [
        one_window("ours", 10, latency_ms={"p99": 1.0}),
        one_window("ours", 30, latency_ms={"p99": 3.0}),
        one_window("ours", 1000, latency_ms={"p99": 99.0}, faults=("a row too many",)),
        one_window("peer", 5),
    ]

    assert median_per_s(windows, "ours") == 20
    assert median_latency_ms(windows, "ours", "p99") == 2.0
    assert median_per_s(windows, "nobody") is None


@pytest.mark.parametrize(
    ("verdict", "passed"),
    [
        (at_least("rate", 80, 100, 0.8), True),
        (at_least("rate", 79, 100, 0.8), False),
        (at_most("latency", 15, 10, 1.5), True),
        (at_most("latency", 16, 10, 1.5), False),
        (at_least("rate", 80, 100, None), None),
        (at_least("rate", None, 100, 0.8), None),
        (at_least("rate", 80, None, 0.8), None),
    ],
)
def test_a_target_is_reached_at_its_very_value_and_nothing_is_judged_that_was_not_measured(
    verdict: Verdict, passed: bool | None
) -> None:
    assert verdict.passed is passed


def test_a_scene_passes_without_a_fault_and_without_a_missed_target() -> None:
    reached, missed = at_least("rate", 2, 1, 1.5), at_least("rate", 1, 1, 1.5)
    sound, faulty = one_window("ours", 1), one_window("ours", 1, faults=("a row too many",))

    assert SceneResult(scene="one", windows=[sound], verdicts=[reached]).passed
    assert not SceneResult(scene="one", windows=[sound], verdicts=[reached, missed]).passed
    assert not SceneResult(scene="one", windows=[sound, faulty], verdicts=[reached]).passed
    assert not SceneResult(scene="one", windows=[sound], verdicts=[reached]).with_faults(["audit: exit 1"]).passed
    assert SceneResult(scene="one", windows=[], verdicts=[], not_measured="no such package").passed


def test_a_result_is_json_with_its_verdicts() -> None:
    result = SceneResult(scene="one", windows=[one_window("ours", 1, lag=Lag(3, 0))], verdicts=[at_least("r", 2, 1, 3)])

    found = json.loads(json.dumps(result.as_json()))

    assert found["passed"] is found["verdicts"][0]["passed"] is False
    assert found["windows"][0]["lag"] == {"looks": 3, "late": 0}


def test_another_one_begins_each_time() -> None:
    assert [rotated("abc", number) for number in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]


def test_memory_is_the_proportional_share() -> None:
    assert pss_of("5500-7ffd ---p 00000000 00:00 0 [rollup]\nRss: 1620 kB\nPss:  236 kB\nPss_Dirty: 112 kB\n") == 236


@pytest.mark.parametrize("kind", [KernelAlarm, LoopAlarm])
async def test_an_alarm_rings_no_sooner_than_it_is_set_and_forgets_the_earlier_time(kind: type[Alarm]) -> None:
    rung: asyncio.Queue[float] = asyncio.Queue()
    clock = kind(lambda: rung.put_nowait(time.perf_counter()))  # type: ignore[call-arg]
    try:
        clock.set(time.perf_counter() + 3600)
        at_s = time.perf_counter() + 0.02
        clock.set(at_s)
        assert await asyncio.wait_for(rung.get(), 10) >= at_s - 0.001
        clock.set(time.perf_counter() - 1)
        await asyncio.wait_for(rung.get(), 10)
    finally:
        clock.close()
    assert rung.empty()


async def test_an_open_loop_charges_a_stall_to_everything_that_was_due_meanwhile() -> None:
    async with answering("charged", after_s=0.05) as port:
        result = await drive_open(
            host="127.0.0.1",
            port=port,
            arrivals_s=[0.001 * each for each in range(1, 21)],
            requests=[REQUEST] * 20,
            connections=1,
            warm_up_s=0.0,
            at_boundary=lambda: None,
        )

    # One connection and 50 ms an answer: the last one waits for all those before it, though it was sent late.
    assert len(result.latencies_s) == 20
    assert max(result.latencies_s) >= 0.9
    assert max(result.sent_late_s) >= 0.85


async def test_an_open_loop_does_not_measure_its_warm_up() -> None:
    async with answering("charged") as port:
        result = await drive_open(
            host="127.0.0.1",
            port=port,
            arrivals_s=[0.01, 0.02, 0.11, 0.12, 0.13],
            requests=[REQUEST] * 5,
            connections=8,
            warm_up_s=0.1,
            at_boundary=lambda: None,
        )

    assert (result.answers, len(result.latencies_s)) == ({"201 charged": 5}, 3)


async def test_a_closed_loop_counts_every_answer_and_measures_only_the_wanted() -> None:
    async with answering("already_charged", status="200 OK") as port:
        where = {"host": "127.0.0.1", "port": port}
        wanted = await drive_all(**where, requests=[REQUEST] * 50, connections=4, wanted={ALREADY_CHARGED})  # type: ignore[arg-type]
        unwanted = await drive_all(**where, requests=[REQUEST] * 50, connections=4, wanted={CHARGED})  # type: ignore[arg-type]

    assert wanted.answers == unwanted.answers == {"200 already_charged": 50}
    assert (wanted.measured, unwanted.measured) == (50, 0)


async def test_requests_that_run_out_too_soon_are_an_error() -> None:
    async with answering("charged") as port:
        load = drive(
            host="127.0.0.1",
            port=port,
            requests=[REQUEST] * 10,
            connections=2,
            warm_up_s=0.0,
            measured_s=60.0,
            at_boundary=lambda: None,
        )
        with pytest.raises(LoadError, match="ran out"):
            await load
