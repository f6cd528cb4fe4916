"""The lock bench decides rightly: turns, medians, ratios, verdicts. No server, no candidate."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from tests.bench.locks.driving import TurnLog, Window
from tests.bench.locks.rounds import Round
from tests.bench.locks.turns import Turn, TurnStatistics, Waiting, judge, read
from tests.bench.locks.verdicts import (
    Verdict,
    cycles_per_s,
    judge_memory,
    judge_rounds,
    judge_waiting,
    medians,
)

WINDOW_US = 1_000_000


def judged(
    turns: list[Turn], waiting: list[Waiting] | None = None, *, processes: int = 1, tasks: int = 2
) -> TurnStatistics:
    return judge(turns, waiting or [], processes=processes, tasks_per_process=tasks, window_us=WINDOW_US)


def one_round(candidate: str, rate: float, **more: object) -> Round:
    fields: dict[str, object] = {
        "shape": "distinct 1 × 64",
        "candidate": candidate,
        "peer": candidate.removesuffix(" 1 ms"),
        "cycles": 1,
        "measured_s": 1.0,
        "cycles_per_s": rate,
        "cpu_us_per_cycle": {},
        "disturbed_share": 0.0,
    }
    return Round(**(fields | more))  # type: ignore[arg-type]


def verdict(verdicts: list[Verdict], what: str) -> Verdict:
    (found,) = [each for each in verdicts if what in each.what]
    return found


def test_only_turns_that_begin_in_the_window_count() -> None:
    found = judged([Turn(0, 0, -9, -5, 3), Turn(0, 1, 0, 4, 5), Turn(0, 0, 3, WINDOW_US, WINDOW_US + 1)])

    assert (found.turns, found.fewest_turns, found.most_turns) == (1, 0, 1)
    assert found.fairness == 0.0


def test_a_turn_of_the_same_task_again_is_not_passed_on() -> None:
    found = judged([Turn(0, 0, 0, 1, 2), Turn(0, 0, 2, 3, 4), Turn(0, 1, 0, 5, 6)])

    assert (found.turns, found.passed_on) == (3, 2)


def test_tasks_of_different_processes_are_different_tasks() -> None:
    found = judged([Turn(0, 0, 0, 1, 2), Turn(1, 0, 0, 3, 4)], processes=2, tasks=1)

    assert (found.passed_on, found.fewest_turns, found.most_turns, found.tasks) == (2, 1, 1, 2)


def test_who_still_waits_at_the_end_has_waited_until_then() -> None:
    found = judged([Turn(0, 0, 0, 100, 200)], [Waiting(0, 1, -500_000)])

    assert found.longest_wait_s == 1.5
    assert found.longest_wait_rounds == pytest.approx(1.5 / (2 * 1.0))


def test_two_inside_at_once_are_a_fault() -> None:
    assert judged([Turn(0, 0, 0, 10, 20), Turn(0, 1, 0, 19, 30)]).faults
    assert not judged([Turn(0, 0, 0, 10, 20), Turn(0, 1, 0, 20, 30)]).faults


def test_an_overlap_is_seen_behind_a_short_visit_too() -> None:
    turns, _ = read([{"turns": [[1, 0, 70, 80, 0], [0, 0, 10, 100, 0], [1, 0, 50, 60, 0]], "waiting": []}])

    assert judged(turns).faults == ("2 times a task entered while another was inside",)


def test_a_fencing_token_that_does_not_rise_is_a_fault() -> None:
    rising = [Turn(0, 0, 0, 1, 2, 7), Turn(1, 0, 0, 3, 4, 8)]

    assert not judged(rising, processes=2).faults
    assert judged([*rising, Turn(0, 1, 0, 5, 6, 8)], processes=2).faults == ("1 times a fencing token did not rise",)


async def test_a_lock_that_excludes_nobody_is_found_out() -> None:
    begins_s = time.monotonic()
    log = TurnLog(2)

    async def turn(task: int) -> None:
        log.waits(task)
        log.enters(task)
        await asyncio.sleep(0)
        log.leaves(task)

    await asyncio.gather(turn(0), turn(1))
    line = json.loads(json.dumps(log.found(Window(begins_s=begins_s, ends_s=begins_s + 1))))
    turns, waiting = read([line])

    assert judged(turns, waiting).faults == ("1 times a task entered while another was inside",)


def test_the_median_leaves_out_rounds_with_faults() -> None:
    rounds = [one_round("ours", 10), one_round("ours", 30), one_round("ours", 20)]
    rounds += [one_round("ours", 1000, faults=("overlap",)), one_round("redis-py", 1, faults=("overlap",))]

    assert medians(rounds, "distinct 1 × 64", cycles_per_s) == {"ours": 20}


def test_each_peer_has_its_own_target_on_distinct_names() -> None:
    rounds = [one_round("ours", 80), one_round("redis-py", 10), one_round("node-redlock", 80)]

    verdicts = judge_rounds(rounds, ["distinct"])

    assert verdict(verdicts, "1 × 64: ours / redis-py").passed is True
    assert verdict(verdicts, "1 × 64: ours / node-redlock").passed is False
    assert verdict(verdicts, "1 × 64: ours / python-redis-lock").passed is None
    assert verdict(verdicts, "1 × 256: ours / redis-py").value is None


def test_on_the_hot_name_the_strongest_tuning_of_the_strongest_peer_is_the_one_to_beat() -> None:
    rounds = [one_round("ours", 100), one_round("redis-py", 30), one_round("redis-py 1 ms", 50)]
    rounds = [one_round(each.candidate, each.cycles_per_s, shape="hot 1 × 16") for each in rounds]

    found = verdict(judge_rounds(rounds, ["hot"]), "hot 1 × 16: ours / redis-py 1 ms")

    assert (found.value, found.passed) == (2.0, True)


def test_the_waiters_may_send_ten_commands_a_second_and_name() -> None:
    found = {"names": 100, "connections": 4, "commands_per_s": 1051.0, "keys_left": 0}

    assert [each.passed for each in judge_waiting(found)] == [True, False, True]


def test_keys_that_released_locks_leave_behind_are_a_miss() -> None:
    assert [each.passed for each in judge_memory({"churn": {"keys_in_the_end": 0}})] == [True]
    assert [each.passed for each in judge_memory({"churn": {"keys_in_the_end": 1}})] == [False]
