"""A lock is given back by its holder only."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.checks.causes import taken_away
from tests.chaos.checks.evidence import Evidence
from tests.chaos.checks.fences import is_forgotten
from tests.chaos.checks.holds import Hold
from tests.chaos.checks.overlap import NO_HOLDS, uncaused_overlaps
from tests.chaos.checks.verdict import Example, Verdict, found

# After these the store may know less than it had told: a holder of then may be the holder again.
BRINGS_BACK_OLD_DATA = ("failover", "sentinel", "cluster", "split", "restore")

# Where nothing excludes anybody there are overlaps without number, and one of them is as good as all.
LOOKED_AT = 200


def no_foreign_release(evidence: Evidence) -> Verdict:
    """No release found a lease still its own after a later one had been granted, and none freed another one's lock."""
    answered = sum(hold.released is not None for hold in evidence.holds)
    violations = [*_released_what_was_anothers(evidence), *_freed(evidence)]
    return found(
        "no_foreign_release",
        violations,
        checked=answered,
        counts={"not_ours": sum(hold.still_ours is False for hold in evidence.holds)},
        missing=None if answered else NO_HOLDS,
    )


def _released_what_was_anothers(evidence: Evidence) -> Iterator[Example]:
    """A later token had been granted before the release was sent, and yet it was answered with "still yours"."""
    for overlap in evidence.overlaps:
        stale, holder = overlap.earlier, overlap.later
        if not stale.still_ours or stale.fence is None or holder.fence is None or holder.fence <= stale.fence:
            continue
        if is_forgotten(holder, stale, evidence):
            continue  # and was granted first, so that the larger token is the older one
        if not _may_be_holder_again(stale, evidence) and not _was_passed_on(stale, holder, evidence):
            yield Example(f"{stale} was released as still its own, but {holder} had begun before", stale.ended)


def _was_passed_on(stale: Hold, holder: Hold, evidence: Evidence) -> bool:
    """Whether its lease was taken away, and its process, which had not heard yet, has passed it on within its run."""
    released = stale.released or stale.ended
    next_turn = (stale.i, stale.life, (stale.fence or 0) + 1)
    return taken_away(stale, holder.began, evidence) is not None and any(
        (turn.i, turn.life, turn.fence) == next_turn and stale.ended <= turn.began <= released
        for turn in evidence.holds_by_name[stale.name]
    )


def _may_be_holder_again(hold: Hold, evidence: Evidence) -> bool:
    released = hold.released or hold.ended
    return any(
        fault.forgets
        and fault.began <= released
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
