"""Nobody holds a lock together with another, but where a fault ended the first one's lease."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

from tests.chaos.checks.causes import cause_of
from tests.chaos.checks.evidence import Evidence
from tests.chaos.checks.holds import Overlap
from tests.chaos.checks.verdict import Counts, Example, Verdict, found

NO_HOLDS = "the history has no hold of any lock"


def holders_do_not_overlap(evidence: Evidence) -> Verdict:
    """No two held one lock at once while the first one's lease can have been neither over nor taken away."""
    uncaused = uncaused_overlaps(evidence)
    counts: Counts = {"overlaps": len(evidence.overlaps), "longest_ms": _longest_ms(uncaused)}
    return found(
        "holders_do_not_overlap",
        [_example(overlap) for overlap in uncaused],
        checked=len(evidence.holds),
        counts=counts,
        missing=None if evidence.holds else NO_HOLDS,
    )


def overlaps_are_explained(evidence: Evidence) -> Verdict:
    """Every overlap has its cause in the evidence; counted by cause, with the longest of each."""
    by_cause: Counter[str] = Counter()
    longest: dict[str, int] = {}
    unexplained = []
    for overlap, cause in causes_of(evidence):
        if cause is None:
            unexplained.append(overlap)
        else:
            by_cause[cause] += 1
            longest[cause] = max(longest.get(cause, 0), overlap.ended - overlap.began)
    counts: Counts = {f"by_{cause}": count for cause, count in sorted(by_cause.items())}
    counts |= {f"longest_ms_by_{cause}": ns / 1e6 for cause, ns in sorted(longest.items())}
    counts |= {"explained": sum(by_cause.values()), "longest_ms": _longest_ms(evidence.overlaps)}
    return found(
        "overlaps_are_explained",
        [_example(overlap) for overlap in unexplained],
        checked=len(evidence.overlaps),
        counts=counts,
        missing=None if evidence.holds else NO_HOLDS,
    )


@lru_cache(maxsize=1)
def causes_of(evidence: Evidence) -> list[tuple[Overlap, str | None]]:
    """Every overlap with its cause; several properties ask for the same history."""
    return [(overlap, cause_of(overlap, evidence)) for overlap in evidence.overlaps]


def uncaused_overlaps(evidence: Evidence) -> list[Overlap]:
    """The overlaps that nothing explains."""
    return [overlap for overlap, cause in causes_of(evidence) if cause is None]


def _longest_ms(overlaps: list[Overlap]) -> float:
    return max((overlap.ended - overlap.began for overlap in overlaps), default=0) / 1e6


def _example(overlap: Overlap) -> Example:
    length_ms = (overlap.ended - overlap.began) / 1e6
    return Example(f"{overlap.earlier}, and for {length_ms:.1f} ms {overlap.later} as well", overlap.began)
