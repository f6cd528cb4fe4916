"""The linearizability checker against an exhaustive search: `python -m tests.chaos.checks.cross_check --histories N`.

The search knows only what each answer says about the state before it, and tries every order that real time allows
(Wing and Gong, 1993). The histories are small, and full of common moments, so that all edges occur.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

from tests.chaos.checks.evidence import ALREADY_CHARGED, CHARGED, FOREVER, OK, REFUSED, UNKNOWN, Operation
from tests.chaos.checks.register import NEEDS_UNCONSUMED, broken_appointments

MOST_OPERATIONS = 6
MOMENTS = 9
SHOWN = 5

Answer = tuple[str, str | None]

ANSWERS: tuple[Answer, ...] = (
    (OK, CHARGED),
    (OK, ALREADY_CHARGED),
    (OK, ALREADY_CHARGED),
    (OK, "free"),
    (REFUSED, NEEDS_UNCONSUMED),
    (REFUSED, "charge-in-progress"),
    (UNKNOWN, None),
)


class Result(NamedTuple):
    """How many histories were judged, how many of them by the search as linearizable, and where the two disagree."""

    histories: int
    linearizable: int
    disagreements: list[list[Operation]]


def main() -> int:
    """Exit status 1 when the checker and the search disagree anywhere."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--histories", type=int, default=1_000_000)
    arguments.add_argument("--seed", type=int, default=1)
    chosen = arguments.parse_args()
    began_s = time.process_time()
    result = cross_check(chosen.histories, seed=chosen.seed)
    took_s = time.process_time() - began_s
    print(
        f"{result.histories:,} histories, {result.linearizable:,} linearizable, "
        f"{len(result.disagreements)} disagreements, {took_s:.1f} s of processor time"
    )
    for operations in result.disagreements[:SHOWN]:
        print(*(operation[4:8] for operation in operations), sep="\n", end="\n\n")
    return 1 if result.disagreements else 0


def cross_check(histories: int, *, seed: int) -> Result:
    """Judges so many generated histories of one appointment by both."""
    rng = Random(seed)
    linearizable = 0
    disagreements = []
    for _ in range(histories):
        operations = small_history(rng)
        has_order = has_some_order(operations)
        linearizable += has_order
        if has_order != (not broken_appointments(operations)):
            disagreements.append(operations)
    return Result(histories, linearizable, disagreements)


def small_history(rng: Random) -> list[Operation]:
    """Up to six operations on one appointment, at few moments, with any answers."""
    return [
        _operation(number, answer, rng.randrange(MOMENTS), rng.randrange(MOMENTS))
        for number, answer in enumerate(rng.choices(ANSWERS, k=rng.randint(1, MOST_OPERATIONS)))
    ]


def has_some_order(operations: Sequence[Operation]) -> bool:
    """Whether there is an order of the operations, in keeping with real time, that a consume-once register allows."""
    to_do: list[tuple[frozenset[int], bool]] = [(frozenset(range(len(operations))), False)]
    seen = set(to_do)
    while to_do:
        pending, is_consumed = to_do.pop()
        if all(operations[number].result == UNKNOWN for number in pending):
            return True
        first_end = min(operations[number].ended for number in pending)
        for number in pending:
            # Whoever was invoked after somebody's answer comes after that one.
            if operations[number].invoked > first_end:
                continue
            for after in _states_after(operations[number], is_consumed):
                following = (pending - {number}, after)
                if following not in seen:
                    seen.add(following)
                    to_do.append(following)
    return False


def _states_after(operation: Operation, is_consumed: bool) -> Iterator[bool]:
    """Whether the appointment can be consumed after this operation; nothing where its answer is wrong in this state."""
    match operation.result, operation.outcome:
        case _, "charged":
            if not is_consumed:
                yield True
        case _, "already_charged":
            if is_consumed:
                yield True
        case _, "insufficient-coupons":
            if not is_consumed:
                yield False
        case "unknown", _:
            yield True
            yield is_consumed  # it was refused, or entered free
        case _:
            yield is_consumed


def _operation(number: int, answer: Answer, one: int, other: int) -> Operation:
    result, outcome = answer
    ended = FOREVER if result == UNKNOWN else max(one, other)
    return Operation(f"o{number}", "enter", 1, 1, min(one, other), ended, result, outcome, None, {})


if __name__ == "__main__":
    sys.exit(main())
