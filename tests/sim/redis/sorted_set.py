"""A sorted set: members by score, then by their bytes."""

from __future__ import annotations

from bisect import bisect_left, insort


class SortedSet:
    """`order` and `scores` hold the same."""

    __slots__ = ("order", "scores")

    def __init__(self) -> None:
        self.order: list[tuple[float, bytes]] = []
        self.scores: dict[bytes, float] = {}

    def put(self, member: bytes, score: float) -> None:
        """Adds the member, or moves it."""
        self.remove(member)
        self.scores[member] = score
        insort(self.order, (score, member))

    def remove(self, member: bytes) -> bool:
        """Whether it was there."""
        score = self.scores.pop(member, None)
        if score is None:
            return False
        del self.order[bisect_left(self.order, (score, member))]
        return True

    def rank(self, member: bytes) -> int | None:
        """Its place, 0 for the lowest score."""
        score = self.scores.get(member)
        return None if score is None else bisect_left(self.order, (score, member))

    def copy(self) -> SortedSet:
        """Another one with the same members."""
        other = SortedSet()
        other.order, other.scores = self.order.copy(), self.scores.copy()
        return other
