"""All appointments of one inviter, who enters them: every charge takes from the same row of coupons."""

from __future__ import annotations

from functools import partial

from tests.bench.ground import Ground
from tests.bench.program import Running, the_service

from .stage import WORKERS, Plan, Stage, alternating, distinct_window, window_over
from .verdicts import SceneResult, Window, at_least, lags_of, loop_was_free, median_per_s

HOT, DISTINCT = "one hot payer", "distinct payers"
TARGET = 0.8


def play(stage: Stage) -> SceneResult:
    """Alternating rounds of both."""
    with stage.ground("hot_payer") as ground, the_service(workers=WORKERS).serving(ground) as running:
        where = (stage.plan, running, ground)
        windows = alternating(stage, [partial(hot_window, *where), partial(distinct_window, DISTINCT, *where)])
    hot, others = median_per_s(windows, HOT), median_per_s(windows, DISTINCT)
    verdict = at_least("one hot payer / distinct payers, charges/s", hot, others, TARGET)
    return SceneResult(scene="hot-payer", windows=windows, verdicts=[verdict, *loop_was_free(lags_of(windows))])


def hot_window(plan: Plan, running: Running, ground: Ground) -> Window:
    """Charges a second, of appointments that one payer has made."""
    appointments = ground.new_appointments_of(1, plan.appointments_per_window)
    return window_over(HOT, plan, running, ground, appointments)
