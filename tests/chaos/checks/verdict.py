"""What a checker says: a property holds, is broken, or nobody can tell; with the operations that show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

PROPERTIES = (
    "charged_at_most_once",
    "acknowledged_is_there",
    "refused_not_charged",
    "unknown_is_settled",
    "consume_once_linearizable",
    "balances_conserved",
    "entries_match_answers",
    "holders_do_not_overlap",
    "overlaps_are_explained",
    "fences_rise",
    "row_fence_rises",
    "stale_writes_refused",
    "no_foreign_release",
    "takeover_in_time",
    "no_lock_lies_idle",
    "order_of_arrival",
    "told_of_loss_in_time",
    "bodies_end_with_their_leases",
    "losses_have_a_cause",
    "patience_is_kept",
    "outages_are_told",
    "busy_is_true",
    "little_is_asked",
    "leases_end_at_the_holder_first",
    "nobodys_lock_is_given_back",
    "no_stray_cancellation",
    "alive_after_healing",
    "nothing_left_behind",
    "no_deadlocks",
    "not_vacuous",
)
# What every run is asked for. Without an occasion the others say nothing, and no run is worse for it (who wants
# occasions sets a threshold); but that they are unknown is said.
ASKED = frozenset(PROPERTIES) - {
    "takeover_in_time",
    "no_lock_lies_idle",
    "stale_writes_refused",
    "no_deadlocks",
    # Of a simulation's exact times only.
    "order_of_arrival",
    "told_of_loss_in_time",
    "bodies_end_with_their_leases",
    "losses_have_a_cause",
    "patience_is_kept",
    "outages_are_told",
    "busy_is_true",
    "little_is_asked",
    "leases_end_at_the_holder_first",
    "nobodys_lock_is_given_back",
    "no_stray_cancellation",
}
SHOWN_EXAMPLES = 20

Counts = dict[str, int | float]


@dataclass(frozen=True, slots=True)
class Example:
    """One thing that shows it: at `t` (ns; None: at the end, in the tables), by these operations."""

    text: str
    t: int | None = None
    ops: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """`holds`: None when the history does not tell. `checked`: how many things were looked at."""

    property: str
    holds: bool | None
    checked: int
    counts: Counts
    examples: list[Example]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The least that a run must have seen to mean something; 0 or empty: not asked."""

    operations: int = 0
    operations_per_s: float = 0
    charges: int = 0
    unknowns: int = 0
    unknowns_committed: int = 0
    snapshots: int = 0
    faults: int = 0
    targeted_faults: int = 0
    fault_kinds: int = 0
    holders_killed_inside: int = 0
    takeovers: int = 0
    overlaps_explained: int = 0
    stale_writes: int = 0
    cells: frozenset[tuple[str, str]] = field(default_factory=frozenset)  # (point, kind) of targeted faults


def found(
    property_name: str,
    violations: Sequence[Example],
    *,
    checked: int,
    counts: Mapping[str, int | float] | None = None,
    missing: str | None = None,
) -> Verdict:
    """False with any violation; else None when something is `missing` that it takes to know; else True."""
    holds = False if violations else None if missing else True
    examples = list(violations[:SHOWN_EXAMPLES])
    if missing:
        examples.append(Example(missing))
    return Verdict(property_name, holds, checked, {**(counts or {}), "violations": len(violations)}, examples)


def exit_code(verdicts: Iterable[Verdict], asked: Collection[str] = ASKED) -> int:
    """1 when a property is broken, else 2 when one of those asked for is unknown, else 0."""
    by_holds = [(verdict.holds, verdict.property in asked) for verdict in verdicts]
    if any(holds is False for holds, _ in by_holds):
        return 1
    return 2 if any(holds is None and is_asked for holds, is_asked in by_holds) else 0


def worst_of(exit_codes: Iterable[int]) -> int:
    """Broken is worse than unknown, unknown than held; 0 for no run."""
    return max(exit_codes, key=(0, 2, 1).index, default=0)


def in_words(verdicts: Sequence[Verdict]) -> str:
    """How many held, broke and are unknown, and which of them broke or are unknown, in one line."""
    counts = Counter({True: "held", False: "broken", None: "unknown"}[verdict.holds] for verdict in verdicts)
    counted = [f"{counts[what]} {what}" for what in ("held", "broken", "unknown") if counts[what] or what == "held"]
    named = {
        "broken": [verdict.property for verdict in verdicts if verdict.holds is False],
        "unknown": unknown_in(verdicts),
        "unknown for want of an occasion": [
            verdict.property for verdict in verdicts if verdict.holds is None and verdict.property not in ASKED
        ],
    }
    told = [f"{what}: {', '.join(names)}" for what, names in named.items() if names]
    return "; ".join([", ".join(counted), *told])


def unknown_in(verdicts: Iterable[Verdict]) -> list[str]:
    """The properties that every run is asked for, and that nobody can tell."""
    return [verdict.property for verdict in verdicts if verdict.holds is None and verdict.property in ASKED]
