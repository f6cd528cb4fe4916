"""Checkers broken on purpose: each has to misjudge some hand-written history, or nobody would notice it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from tests.chaos.checks import causes, healing, register
from tests.chaos.checks.breaking import A_YEAR_NS, Broken, exposed_by, fixed, nothing
from tests.chaos.checks.broken_exact import BROKEN_EXACT
from tests.chaos.checks.evidence import CHARGED, OK, UNKNOWN, Charge, Evidence, Operation
from tests.chaos.checks.holds import Hold, Overlap, overlaps_of
from tests.chaos.checks.slack import NOISY
from tests.chaos.checks.spans import Spans
from tests.chaos.checks.verdict import Example


def surviving_broken_checkers() -> list[str]:
    """The broken checkers that judge every hand-written history rightly: those that would go unnoticed."""
    return [broken.name for broken in BROKEN if exposed_by(broken) is None]


# Overlaps and their causes


def _touching_overlaps(holds: Sequence[Hold]) -> Iterator[Overlap]:
    for place, hold in enumerate(holds):
        yield from (Overlap(other, hold) for other in holds[:place] if other.ended >= hold.began)


def _neighbours_only(holds: Sequence[Hold]) -> Iterator[Overlap]:
    yield from (Overlap(one, other) for one, other in pairwise(holds) if one.ended > other.began)


def _of_different_instances(holds: Sequence[Hold]) -> Iterator[Overlap]:
    yield from (overlap for overlap in _overlaps_of(holds) if overlap.earlier.i != overlap.later.i)


_overlaps_of = overlaps_of


def _any_fault_of_its_own(stale: Hold, t: int, evidence: Evidence) -> str | None:
    return "freeze" if evidence.standstills_of(stale.i).touch(stale.began, t) else None


def _standstill_of_anybody(evidence: Evidence, _: int | str) -> Spans:
    return next(iter(evidence.standstills.values()), Spans(()))


def _store_fault_at_any_time(_: Hold, __: int, evidence: Evidence) -> str | None:
    return "store" if "redis" in evidence.fault_spans else None


def _any_force(stale: Hold, t: int, evidence: Evidence) -> str | None:
    if any(point["name"] == stale.name for point in evidence.points.get("forced", ())):
        return "forced"
    return _taken_away(stale, t, evidence)


_taken_away = causes.taken_away


# The register


def _counts_only(operations: Iterable[Operation]) -> list[int | None]:
    told = Counter(operation.appointment for operation in operations if operation.outcome == CHARGED)
    return [appointment for appointment, count in told.items() if count > 1]


def _without(kept: Callable[[Operation], bool]) -> Callable[[Iterable[Operation]], list[int | None]]:
    return lambda operations: _broken_appointments(filter(kept, operations))


def _moved(change: Callable[[Operation], Operation]) -> Callable[[Iterable[Operation]], list[int | None]]:
    return lambda operations: _broken_appointments(map(change, operations))


_broken_appointments = register.broken_appointments


# Tables


def _entries_at_all(evidence: Evidence, entries: dict[tuple[int, int], int]) -> Iterator[Example]:
    yield from (Example("") for pair, answers in evidence.answers.items() if answers.let_in and pair not in entries)


def _one_of_each(evidence: Evidence) -> dict[int, list[Charge]]:
    return {charge.appointment: [charge] for charge in evidence.charges or ()}


def _in_sum(accounts: dict[Any, tuple[int, int, int]]) -> Iterator[Example]:
    if sum(granted - spent - left for granted, spent, left in accounts.values()) or any(
        left < 0 for *_, left in accounts.values()
    ):
        yield Example("")


def _signless(accounts: dict[Any, tuple[int, int, int]]) -> Iterator[Example]:
    yield from (Example("") for granted, spent, left in accounts.values() if granted - spent != left)


def _only_too_many(evidence: Evidence) -> Iterator[Example]:
    for pair, rows in (evidence.entry_counts or {}).items():
        answers = evidence.answers.get(pair)
        if answers is None or rows > len(answers.let_in) + len(answers.unknown):
            yield Example("")


def _unknown_without_limit(evidence: Evidence) -> Iterator[Example]:
    counts = evidence.entry_counts
    for pair, answers in evidence.answers.items():
        if counts is not None and (counts.get(pair, 0) < len(answers.let_in) or not any(answers)):
            yield Example("")


# Tokens, writes, takeovers


def _falling_between_neighbours(holds: Sequence[Hold]) -> Iterator[tuple[Hold, Hold]]:
    for before, after in pairwise(holds):
        if before.ended < after.began and (after.fence or 0) < (before.fence or 0):
            yield before, after


def _falling_by_beginnings(holds: Sequence[Hold]) -> Iterator[tuple[Hold, Hold]]:
    for before, after in pairwise(holds):
        if (after.fence or 0) < (before.fence or 0):
            yield before, after


BROKEN = (
    Broken("sees no overlap", "evidence.overlaps_of", nothing),
    Broken("takes touching for overlapping", "evidence.overlaps_of", _touching_overlaps),
    Broken("compares neighbours only", "evidence.overlaps_of", _neighbours_only),
    Broken("lets an instance overlap itself", "evidence.overlaps_of", _of_different_instances),
    Broken("excuses every overlap", "overlap.cause_of", fixed("freeze")),
    Broken("excuses no overlap", "overlap.cause_of", fixed(None)),
    Broken("excuses by any fault of the holder", "causes._lapsed_standing_still", _any_fault_of_its_own),
    Broken("excuses by anybody's standstill", "evidence.Evidence.standstills_of", _standstill_of_anybody),
    Broken("excuses by what befell an earlier life", "evidence.Evidence.births", {}),
    Broken("excuses no standstill", "causes._lapsed_standing_still", fixed(None)),
    Broken("excuses no cut", "causes._lapsed_cut_off", fixed(None)),
    Broken("excuses by a store's fault at any time", "causes.taken_away", _store_fault_at_any_time),
    Broken("excuses by the force on another hold", "causes.taken_away", _any_force),
    Broken("excuses an overlap of any length", "slack.NOISY", replace(NOISY, unseen_ns=A_YEAR_NS)),
    Broken("takes a moment for a rest", "slack.NOISY", replace(NOISY, moment_ns=-1)),
    Broken("excuses nothing unseen", "slack.NOISY", replace(NOISY, unseen_ns=0)),
    Broken("forgets renewals", "holds.Hold.told_before", lambda hold, _: hold.began),
    Broken("forgets that a client's lease ends", "holds._end", lambda hold, t, how: setattr(hold, "ended", t)),
    Broken("forgets that a client extends", "holds._Reading._extended", fixed(None)),
    Broken("counts what instances hold for clients", "holds.is_its_own", fixed(True)),
    Broken("lets the dead hold on", "holds._Reading._died", fixed(None)),
    Broken("charged: by answers only", "evidence.Evidence.charges_by_appointment", property(_one_of_each)),
    Broken("charged: by rows only", "charges._told_charged", nothing),
    Broken("order: counts only", "register.broken_appointments", _counts_only),
    Broken("order: no unknown one", "register.broken_appointments", _without(lambda it: it.result != UNKNOWN)),
    Broken("order: no refusal", "register.broken_appointments", _without(lambda it: it.result in (OK, UNKNOWN))),
    Broken(
        "order: unknown ones at any time",
        "register.broken_appointments",
        _moved(lambda it: it._replace(invoked=0) if it.result == UNKNOWN else it),
    ),
    Broken(
        "order: everything at its answer",
        "register.broken_appointments",
        _moved(lambda it: it if it.result == UNKNOWN else it._replace(invoked=it.ended)),
    ),
    Broken(
        "order: everything at its invocation",
        "register.broken_appointments",
        _moved(lambda it: it._replace(ended=it.invoked)),
    ),
    Broken("told: whatever it said", "acknowledged._is_as_told", fixed(True)),
    Broken("told: lost charges", "acknowledged._lost_charges", nothing),
    Broken("told: entries, one is enough", "acknowledged._lost_entries", _entries_at_all),
    Broken("told: flags", "acknowledged._wrong_flags", nothing),
    Broken("told: grants", "acknowledged._lost_grants", nothing),
    Broken("refused: entries", "charges._refused_with_entry", nothing),
    Broken("refused: charges", "charges._refused_with_charge", nothing),
    Broken("refused: as charged", "charges._charged_but_not", nothing),
    Broken("unknown: halves", "charges._charges_nobody_was_told_of", nothing),
    Broken("balances: in sum", "balances._wrong_accounts", _in_sum),
    Broken("balances: signless", "balances._wrong_accounts", _signless),
    Broken("entries: only too many", "entries._miscounted", _only_too_many),
    Broken("entries: unknown ones without limit", "entries._miscounted", _unknown_without_limit),
    Broken("entries: payers", "entries._charges_without_entry", nothing),
    Broken("fences: repeated", "fences._repeated", nothing),
    Broken("fences: falling", "fences._falling", nothing),
    Broken("fences: by beginnings", "fences._falling", _falling_by_beginnings),
    Broken("fences: between neighbours", "fences._falling", _falling_between_neighbours),
    Broken("fences: every one heard late", "fences.heard_late", fixed(True)),
    Broken("fences: none heard late", "fences.heard_late", fixed(False)),
    Broken("writes: falling", "writes._falling", nothing),
    Broken("writes: as answered", "writes._not_as_answered", nothing),
    Broken("writes: overwritten", "writes._overwritten", nothing),
    Broken("releases: still its own", "releases._released_what_was_anothers", nothing),
    Broken("releases: freed", "releases._freed", nothing),
    Broken("releases: nobody was asked", "releases._was_not_asked", fixed(True)),
    Broken("takeovers: no limit", "takeover.GRACE_MS", 1e9),
    Broken("takeovers: no grace", "takeover.GRACE_MS", 0.0),
    Broken("takeovers: always disturbed", "takeover._disturbed", fixed("store_fault")),
    Broken("takeovers: never disturbed", "takeover._disturbed", fixed(None)),
    Broken("takeovers: whoever gives up waits on", "waits.step_of", lambda event: event["p"] == "waiting"),
    Broken("idle: no limit", "idle.LONGEST_OF_LEASE", 1e9),
    Broken("idle: not a moment", "idle.LONGEST_OF_LEASE", 0.49),
    Broken("idle: no excuse", "idle.excuses_of", fixed({})),
    Broken("idle: connections come back at once", "idle.RECONNECTED_NS", 0),
    Broken("idle: programs leave nothing", "idle.LEASE_OF_PROGRAMS_NS", 0),
    Broken("idle: nobody has to do with it", "idle._concerned", fixed(defaultdict(set))),
    Broken("idle: everybody has to do with it", "idle._concerned", fixed(defaultdict(lambda: {"1", "2", "3"}))),
    Broken("idle: held or not", "idle.is_its_own", fixed(False)),
    Broken("alive: all in good time", "healing.FIRST_ENTRY_GRACE_NS", A_YEAR_NS),
    Broken("alive: at once", "healing.HEALED_WITHIN_LEASES", 0),
    Broken("alive: locked out is fine", "healing.BUSINESS_CODES", healing.BUSINESS_CODES | {"charge-in-progress"}),
    Broken("alive: refused is dead", "healing.BUSINESS_CODES", frozenset()),
    *(
        Broken(f"left: no {what}", "healing.LEFT", tuple(it for it in healing.LEFT if it != what))
        for what in healing.LEFT
    ),
    *BROKEN_EXACT,
)
