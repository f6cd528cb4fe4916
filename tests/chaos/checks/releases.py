"""A lock is given back by its holder only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.chaos.checks.evidence import Evidence
from tests.chaos.checks.holds import Hold
from tests.chaos.checks.overlap import NO_HOLDS, uncaused_overlaps
from tests.chaos.checks.verdict import Example, Verdict, found

# After these the store may know less than it had told: a holder of then may be the holder again.
BRINGS_BACK_OLD_DATA = ("failover", "sentinel", "cluster", "split")

# Where nothing excludes anybody there are overlaps without number, and one of them is as good as all.
LOOKED_AT = 200


def no_foreign_release(evidence: Evidence) -> Verdict:
    """No release found a lease still its own after a later one had been granted, and none freed another one's lock."""
    answered = sum(hold.released is not None for hold in evidence.holds)
    violations = [
        example for holds in evidence.holds_by_name.values() for example in _released_what_was_anothers(holds, evidence)
    ]
    violations += _freed(evidence)
    return found(
        "no_foreign_release",
        violations,
        checked=answered,
        counts={"not_ours": sum(hold.still_ours is False for hold in evidence.holds)},
        missing=None if answered else NO_HOLDS,
    )


def _released_what_was_anothers(holds: Sequence[Hold], evidence: Evidence) -> Iterator[Example]:
    """A later token had been granted before the release was sent, and yet it was answered with "still yours"."""
    greatest: Hold | None = None
    begun = 0
    for hold in sorted((hold for hold in holds if hold.still_ours), key=_ended):
        while begun < len(holds) and holds[begun].began < hold.ended:
            if greatest is None or (holds[begun].fence or 0) > (greatest.fence or 0):
                greatest = holds[begun]
            begun += 1
        if hold.fence is None or greatest is None or (greatest.fence or 0) <= hold.fence:
            continue
        if not _may_be_holder_again(hold, evidence):
            yield Example(f"{hold} was released as still its own, but {greatest} had begun before", hold.ended)


def _ended(hold: Hold) -> int:
    return hold.ended


def _may_be_holder_again(hold: Hold, evidence: Evidence) -> bool:
    released = hold.released or hold.ended
    return any(
        fault.began <= released
        and fault.ended >= hold.began
        and any(word in fault.kind for word in BRINGS_BACK_OLD_DATA)
        for fault in evidence.faults
    )


def _freed(evidence: Evidence) -> Iterator[Example]:
    """A stale holder's release, and then a lock that is granted although its holder has it: the release freed it."""
    for overlap in uncaused_overlaps(evidence)[:LOOKED_AT]:
        robbed = overlap.earlier
        for stale in evidence.holds_by_name[robbed.name]:
            if stale.began >= robbed.began:
                break
            released = stale.released
            if released is not None and stale.ended > robbed.began and released <= overlap.began:
                yield Example(f"{stale} was released while {robbed}, and then {overlap.later}", released)
