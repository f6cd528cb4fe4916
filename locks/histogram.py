"""Histograms with logarithmic buckets: the same everywhere, so that those of many instances add up."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Self

# Half an octave each: 0.1 ms, 0.14 ms, 0.2 ms … 105 s, and one bucket for whatever takes longer.
BOUNDS_S: tuple[float, ...] = tuple(0.0001 * 2 ** (step / 2) for step in range(41))
BUCKET_COUNT = len(BOUNDS_S) + 1


def bucket_of(seconds: float) -> int:
    """The bucket's number: the first one whose upper bound is not below `seconds`."""
    return bisect_left(BOUNDS_S, seconds)


class LogHistogram:
    """How often a time fell into each bucket; `counts[n]` is of those up to BOUNDS_S[n], the last of all longer."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts = [0] * BUCKET_COUNT

    @classmethod
    def of(cls, times_s: Iterable[float]) -> Self:
        """Of these times."""
        histogram = cls()
        counts = histogram.counts
        for seconds in times_s:
            counts[bisect_left(BOUNDS_S, seconds)] += 1
        return histogram

    @classmethod
    def from_sparse(cls, counts: Mapping[int, int] | Iterable[tuple[int, int]]) -> Self:
        """From the buckets that are not empty; numbers that no bucket has, and counts below 0, are left out."""
        histogram = cls()
        for bucket, count in counts.items() if isinstance(counts, Mapping) else counts:
            if 0 <= bucket < BUCKET_COUNT and count > 0:
                histogram.counts[bucket] += count
        return histogram

    def sparse(self) -> dict[int, int]:
        """The buckets that are not empty."""
        return {bucket: count for bucket, count in enumerate(self.counts) if count}

    def add(self, seconds: float) -> None:
        """One more time."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1

    def merge(self, other: LogHistogram) -> None:
        """All of another's times too."""
        self.counts = [own + others for own, others in zip(self.counts, other.counts, strict=True)]

    def __or__(self, other: LogHistogram) -> LogHistogram:
        """Both together."""
        both = LogHistogram()
        both.counts = [own + others for own, others in zip(self.counts, other.counts, strict=True)]
        return both

    @property
    def count(self) -> int:
        """How many times."""
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """Seconds: the upper bound of the bucket that the time at this share (0 to 1) lies in; 0.0 when empty.

        Times beyond the last bound are told as the last bound.
        """
        rank = share * self.count
        return BOUNDS_S[min(self._bucket_at(rank), len(BOUNDS_S) - 1)] if rank > 0 else 0.0

    def is_beyond(self, share: float) -> bool:
        """Whether the time at this share is longer than any bound."""
        rank = share * self.count
        return rank > 0 and self._bucket_at(rank) == len(BOUNDS_S)

    def _bucket_at(self, rank: float) -> int:
        seen = 0
        for bucket, count in enumerate(self.counts):
            seen += count
            if seen >= rank:
                return bucket
        raise AssertionError("a rank is not above the count")
