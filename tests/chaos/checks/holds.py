"""Holds of locks as their holders recorded them, each inside the hold at the server: two that overlap really did."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]
Process = tuple[int | str, int]
Lease = tuple[str, int | None]

OPEN_END = "open"
DIED = "died"
_ENDINGS = frozenset({"releasing", "lost", "exported"})


@dataclass(slots=True)  # not frozen: it is completed while the history is read
class Hold:
    """One hold; times in ns. `how`: the point that ended it, `died`, `until` (its lease was over) or `open`.

    `renewed`: when it was told of more time. `until`: when its lease ends by its holder's own clock, and the hold with
    it; `first_until`: as it was granted. None: the history does not tell. `is_adopted`: another had it before.
    `was_queued`: it had waited, so that another may have handed the lock over.
    `is_outside`: its holder is a client or a program that counts by itself: nobody is to tell it.
    `lease_ns`: how long its lease is, where that is not known of the run.
    `kept_until`: when the lease that was exported is over at the server at the latest.
    `left`: when its holder came to its end, which is later than `ended` where its lease was over before; None: never.
    `lost_after`: when it was told of a loss although it had given it back. `loss_reason`: what it was told of a loss.
    `released`, `still_ours`: when the release was answered, and how; None where it was not.
    """

    name: str
    fence: int | None
    i: int | str
    life: int
    began: int
    waited_ns: int
    until: int | None = None
    ended: int = 0
    how: str = OPEN_END
    renewed: list[int] = field(default_factory=list)
    released: int | None = None
    still_ours: bool | None = None
    first_until: int | None = None
    is_adopted: bool = False
    is_outside: bool = False
    lease_ns: int | None = None
    kept_until: int | None = None
    was_queued: bool = False
    left: int | None = None
    lost_after: int | None = None
    loss_reason: str | None = None

    def told_before(self, t: int) -> int:
        """When its holder was last told, not after `t`, that it has a lease."""
        return max((at for at in self.renewed if at <= t), default=self.began)

    def __str__(self) -> str:
        return f"{self.name} held by {self.i} (life {self.life}, fence {self.fence})"


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two holds of one lock at the same time, from `began` to `ended` (ns). `earlier` began first."""

    earlier: Hold
    later: Hold

    @property
    def began(self) -> int:
        """When the second one began."""
        return self.later.began

    @property
    def ended(self) -> int:
        """When the first one ended."""
        return min(self.earlier.ended, self.later.ended)


def holds_of(points: Sequence[Event], deaths: Sequence[Event], *, last_t: int) -> list[Hold]:
    """The holds in the order of their beginnings. `points`, `deaths`: in the order of time."""
    reading = _Reading()
    for event in sorted((*points, *deaths), key=_time):
        reading.read(event)
    return reading.finish(last_t)


def overlaps_of(holds: Sequence[Hold]) -> Iterator[Overlap]:
    """Every pair of these holds of one lock that overlap; an end that touches a beginning is none."""
    active: list[Hold] = []
    for hold in holds:
        active = [other for other in active if other.ended > hold.began]
        for other in active:
            if hold.ended > hold.began:
                yield Overlap(other, hold)
        active.append(hold)


def _time(event: Event) -> int:
    t: int = event["t"]
    return t


class _Reading:
    def __init__(self) -> None:
        self._holds: list[Hold] = []
        self._open: dict[Process, dict[Lease, list[Hold]]] = defaultdict(dict)
        self._unanswered: dict[Process, dict[Lease, list[Hold]]] = defaultdict(dict)
        self._last: dict[tuple[Process, Lease], Hold] = {}  # that its holder has left

    def read(self, event: Event) -> None:
        if event["e"] == "died":
            self._died(event)
            return
        point = event["p"]
        if point == "acquired" or (point == "adopted" and "until" in event):
            self._acquired(event)
        elif point == "extended":
            self._extended(event)
        elif point in _ENDINGS:
            self._ended(event, point)
        elif point == "released":
            self._released(event)

    def finish(self, last_t: int) -> list[Hold]:
        for leases in self._open.values():
            for holds in leases.values():
                for hold in holds:
                    _end(hold, last_t, OPEN_END)
        return self._holds

    def _acquired(self, event: Event) -> None:
        i, name = event["i"], event["name"]
        if not is_its_own(i, name):
            return
        waited_ns = round((event.get("waited_s") or 0.0) * 1e9)
        until = event.get("until")
        hold = Hold(name, event.get("fence"), i, event.get("life", 0), event["t"], waited_ns, until)
        hold.first_until, hold.is_adopted = until, event["p"] == "adopted"
        if "lease_s" in event:
            hold.lease_ns = round(event["lease_s"] * 1e9)
        hold.is_outside, hold.was_queued = bool(event.get("outside")), bool(event.get("queued"))
        self._holds.append(hold)
        # Had it one with this token before, what is told of a release is told of this one.
        self._unanswered[_process(event)].pop(_lease(event), None)
        self._open[_process(event)].setdefault(_lease(event), []).append(hold)

    def _extended(self, event: Event) -> None:
        for hold in self._open[_process(event)].get(_lease(event), ()):
            hold.renewed.append(event["t"])
            if event.get("until") is not None:
                hold.until = event["until"]

    def _ended(self, event: Event, how: str) -> None:
        hold = _take(self._open[_process(event)], _lease(event))
        if hold is None:
            before = self._last.get((_process(event), _lease(event)))
            if before is not None and how == "lost" and before.left is not None:
                before.lost_after = event["t"]
        else:
            hold.left = event["t"]
            hold.kept_until = event.get("kept_until")
            hold.loss_reason = event.get("reason")
            self._last[_process(event), _lease(event)] = hold
            hold.until = event.get("until", hold.until)  # the last word: a grant may be confirmed without a point
            _end(hold, event["t"], how)
            self._unanswered[_process(event)].setdefault(_lease(event), []).append(hold)

    def _released(self, event: Event) -> None:
        unanswered = self._unanswered[_process(event)]
        if _lease(event) not in unanswered:
            self._ended_some_time_before(event)
        hold = _take(unanswered, _lease(event))
        if hold is not None:
            hold.released, hold.still_ours = event["t"], event.get("still_ours")

    def _ended_some_time_before(self, event: Event) -> None:
        """Its end was not recorded: what is certain ends where it was last told of.

        Where ends are, the release that was answered is an earlier lease's, which had the same token.
        """
        holds = self._open[_process(event)].get(_lease(event))
        if holds and holds[0].until is not None:
            return
        hold = _take(self._open[_process(event)], _lease(event))
        if hold is not None:
            _end(hold, hold.told_before(event["t"]), "released")
            self._unanswered[_process(event)].setdefault(_lease(event), []).append(hold)

    def _died(self, event: Event) -> None:
        for holds in self._open.pop(_process(event), {}).values():
            for hold in holds:
                _end(hold, event["t"], DIED)


def is_its_own(i: int | str, name: str) -> bool:
    """Leases of other names than appointments' an instance holds for clients, who record them themselves."""
    return isinstance(i, str) or name.startswith("appointment:")


def _process(event: Event) -> Process:
    return event["i"], event.get("life", 0)


def _lease(event: Event) -> Lease:
    return event["name"], event.get("fence")


def _take(holds: dict[Lease, list[Hold]], lease: Lease) -> Hold | None:
    """The first of this lease's holds, which is taken out."""
    found = holds.get(lease)
    if not found:
        return None
    hold = found.pop(0)
    if not found:
        del holds[lease]
    return hold


def _end(hold: Hold, t: int, how: str) -> None:
    if hold.until is not None and hold.until < t:
        t, how = hold.until, "until"
    hold.ended, hold.how = max(t, hold.began), how
