"""Charged appointments, entered again, each with ENTER row and room token, against a handler that only answers."""

from __future__ import annotations

import itertools
import json
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from tests.bench.connection import ALREADY_CHARGED
from tests.bench.ground import Appointments, Ground
from tests.bench.program import HOST, Program, Running, the_service

from .stage import WORKERS, Plan, Stage, Watch, alternating, charge_all, closed_window
from .verdicts import SceneResult, Window, at_least, lags_of, loop_was_free, median_per_s

OURS, FIRST, BARE = "repeat entries", "first repeats, by invitees", "bare aiohttp handler"
TARGET = 0.25
APPOINTMENTS = 5000


def play(stage: Stage) -> SceneResult:
    """Alternating rounds of both, with the same connections, the same requests, and the same bytes of JSON."""
    plan = stage.plan
    with ExitStack() as stack:
        ground = stack.enter_context(stage.ground("repeats"))
        ours = stack.enter_context(the_service(workers=WORKERS).serving(ground))
        appointments = ground.new_appointments(APPOINTMENTS)
        charge_all(plan, ours, ground, appointments)
        answer = ground.folder / "repeat.json"
        answer.write_bytes(_answer_to_a_repeat(ours, appointments))
        bare = stack.enter_context(_the_bare_handler().serving(ground, BENCH_ANSWER=str(answer)))
        our_round = partial(_our_window, plan, ours, ground, appointments)
        bare_round = partial(_bare_window, plan, bare, ground, appointments)
        windows = alternating(stage, [our_round, partial(_first_window, plan, ours, ground), bare_round])
    repeats, first, answers = (median_per_s(windows, each) for each in (OURS, FIRST, BARE))
    verdicts = [
        at_least("repeats / bare handler, answers/s", repeats, answers, TARGET),
        at_least("first repeats / bare handler, answers/s", first, answers, None),
    ]
    return SceneResult(scene="repeats", windows=windows, verdicts=[*verdicts, *loop_was_free(lags_of(windows))])


def _our_window(plan: Plan, ours: Running, ground: Ground, appointments: Appointments) -> Window:
    ground.settle()
    return closed_window(
        OURS,
        plan,
        ours,
        Watch(ground, ours),
        _again_and_again(ours, appointments),
        wanted=ALREADY_CHARGED,
        count=lambda: ground.count(appointments),
    )


def _first_window(plan: Plan, ours: Running, ground: Ground) -> Window:
    """Each appointment is entered once more, by the other participant, at whichever worker."""
    appointments = ground.new_appointments(plan.appointments_per_window // 2)
    charge_all(plan, ours, ground, appointments)
    ground.settle()
    return closed_window(
        FIRST,
        plan,
        ours,
        Watch(ground, ours),
        list(ours.entries(enumerate(appointments.invitee_ids, appointments.first_id))),
        wanted=ALREADY_CHARGED,
        count=lambda: ground.count(appointments),
    )


def _bare_window(plan: Plan, bare: Running, ground: Ground, appointments: Appointments) -> Window:
    watch = Watch(ground, bare)
    return closed_window(BARE, plan, bare, watch, _again_and_again(bare, appointments), wanted=ALREADY_CHARGED)


def _answer_to_a_repeat(ours: Running, appointments: Appointments) -> bytes:
    appointment_id, user_id = next(appointments.by_inviters())
    head, *fields = ours.entry(appointment_id, user_id).decode().split("\r\n")
    request = urllib.request.Request(f"http://{HOST}:{ours.port}{head.split()[1]}", method="POST")
    request.add_header("Authorization", next(each for each in fields if each.startswith("Authorization"))[15:])
    with urllib.request.urlopen(request, timeout=10) as answer:
        body = bytes(answer.read())
    assert json.loads(body)["outcome"] == "already_charged"
    return body


def _again_and_again(running: Running, appointments: Appointments) -> Iterator[bytes]:
    return itertools.cycle(list(running.entries(appointments.by_inviters())))


def _the_bare_handler() -> Program:
    return Program("bare", [[sys.executable, "-m", "tests.bench.pressure.bare"]] * WORKERS)
