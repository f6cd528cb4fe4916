"""How fast the checkers judge, in processor time: `python -m tests.chaos.checks.bench [--operations N]`."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from functools import partial

from tests.chaos.checks.evidence import Evidence
from tests.chaos.checks.generated import generated
from tests.chaos.checks.generated_locks import generated_locks
from tests.chaos.checks.judging import judge, judge_locks
from tests.chaos.checks.register import broken_appointments, consume_once_linearizable

ROUNDS = 3
EXACT_EVENTS = (200, 3_000)


def main() -> None:
    """Prints operations a second of processor time: of the linearizability checker and of the whole judge."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--operations", type=int, default=300_000)
    count = arguments.parse_args().operations
    events = generated(1, operations=count)
    operations = Evidence(events).operations
    gc.freeze()  # what is judged is not garbage; a reader of histories does the same
    print(f"{len(operations):,} operations, {len(events):,} events, the best of {ROUNDS} rounds")
    _show("linearizability", len(operations), lambda: broken_appointments(operations))
    _show("linearizability, sorting included", len(operations), lambda: consume_once_linearizable(Evidence(events)))
    _show("the whole judge", len(operations), lambda: judge(events))
    for count in EXACT_EVENTS:
        exact = generated_locks(1, events=count)
        what = f"an exact history of {len(exact):,} events"
        best_s = min(_took_s(partial(judge_locks, exact)) for _ in range(10 * ROUNDS))
        print(f"{what:<34} {len(exact) / best_s:>12,.0f} events/s  ({best_s * 1000:.2f} ms of processor time)")


def _show(what: str, operations: int, check: Callable[[], object]) -> None:
    best_s = min(_took_s(check) for _ in range(ROUNDS))
    print(f"{what:<34} {operations / best_s:>12,.0f} operations/s  ({best_s:.3f} s of processor time)")


def _took_s(check: Callable[[], object]) -> float:
    began_s = time.process_time()
    check()
    return time.process_time() - began_s


if __name__ == "__main__":
    main()
