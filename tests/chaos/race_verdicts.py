"""What is expected of each guard, and whether it was found. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.dashboard.formatting import plural
from tests.chaos.race_rounds import Measured

PILED_UP = 2.0  # times those of lock-and-row
INTERNAL_ERROR = "internal-error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One guard's. `why_not` says what was found instead; empty where it was as expected."""

    guard: str
    expected: str
    why_not: str

    @property
    def as_expected(self) -> bool:
        """Whether the guard did what is said of it."""
        return not self.why_not


def verdicts(measured: Sequence[Measured]) -> list[Verdict]:
    """One for each guard that was raced, in their order."""
    by_guard = {each.guard: each for each in measured}
    found = []
    for each in measured:
        expected, find_fault = _EXPECTED[each.guard]
        why_not = _is_no_guard(each) or find_fault(each, by_guard)
        found.append(Verdict(guard=each.guard, expected=expected, why_not=why_not))
    return found


def _is_no_guard(measured: Measured) -> str:
    uncharged = measured.crowd.uncharged + measured.paused.uncharged
    if uncharged:
        return f"not charged at all: {plural(uncharged, 'appointment')}"
    bugs = measured.answers.get(INTERNAL_ERROR, 0)
    return f"answered {INTERNAL_ERROR}: {plural(bugs, 'entry', 'entries')}" if bugs else ""


def _charges_again(measured: Measured, _others: dict[str, Measured]) -> str:
    return "" if measured.crowd.overcharged else "no crowd was charged more than once"


def _charges_again_after_a_pause(measured: Measured, _others: dict[str, Measured]) -> str:
    return "" if measured.paused.overcharged else "a holder paused past its lease charged nobody again"


def _once(measured: Measured, _others: dict[str, Measured]) -> str:
    most = max(measured.crowd.most_charges, measured.paused.most_charges)
    return "" if most <= 1 else f"one appointment was charged {most} times"


def _once_with_sessions_piling_up(measured: Measured, others: dict[str, Measured]) -> str:
    few = PILED_UP * max(1, others["lock-and-row"].most_waiting_for_a_row)
    piled_up = measured.most_waiting_for_a_row >= few
    return _once(measured, others) or ("" if piled_up else "hardly any connection waited for a row")


_EXPECTED: dict[str, tuple[str, Callable[[Measured, dict[str, Measured]], str]]] = {
    "entry-log": ("charges more than once", _charges_again),
    "lock-only": ("charges more than once when a holder is paused past its lease", _charges_again_after_a_pause),
    "row-only": ("charges once; database connections pile up", _once_with_sessions_piling_up),
    "lock-and-row": ("charges once; the crowd waits in Redis", _once),
}
