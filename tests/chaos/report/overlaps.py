"""The overlaps with their causes, in words."""

from __future__ import annotations

from dataclasses import dataclass

from tests.chaos.checks.causes import STALLED
from tests.chaos.checks.evidence import Evidence
from tests.chaos.checks.holds import Overlap
from tests.chaos.checks.overlap import causes_of

CAUSES = {
    None: "nothing explains it",
    STALLED: "the first holder's process stood still, without a fault",
    "store": "a fault of Redis took the first holder's lease away",
    "link": "the first holder was cut off from Redis for a lease",
    "clock": "a clock was set",
    "forced": "the first holder's lease was ended by force",
}


@dataclass(frozen=True, slots=True)
class Explained:
    """An overlap and what the checkers found to be its cause; `explained`: whether they found one."""

    overlap: Overlap
    cause: str
    explained: bool


def explained_overlaps(evidence: Evidence) -> list[Explained]:
    """Every overlap in order of time."""
    found = [
        Explained(
            overlap, CAUSES.get(cause) or f"fault on the first holder: {cause}".replace("_", " "), cause is not None
        )
        for overlap, cause in causes_of(evidence)
    ]
    return sorted(found, key=lambda each: each.overlap.began)
