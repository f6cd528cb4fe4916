"""A history to be falsified: a copy in which events and rows are changed, while the original stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, TypeVar

from tests.chaos.checks.evidence import Event, Evidence
from tests.chaos.checks.holds import Hold

Row = dict[str, Any]
T = TypeVar("T")

HOLD_POINTS = frozenset({"acquired", "extended", "releasing", "released", "lost", "exported"})


class CannotPlant(Exception):
    """The history has nothing that this lie could be told about."""


class Draft:
    """`evidence`: of the original. Every change raises CannotPlant where there is nothing to change."""

    def __init__(self, events: Sequence[Event], rng: Random) -> None:
        self.evidence = Evidence(events)
        self._events = list(events)
        self._rng = rng

    @property
    def events(self) -> list[Event]:
        """What has become of the history, in the order of time."""
        return sorted(self._events, key=_time)

    def one_of(self, candidates: Sequence[T]) -> T:
        """Any of them."""
        if not candidates:
            raise CannotPlant
        return self._rng.choice(candidates)

    def add(self, e: str, t: int, **facts: Any) -> None:
        """A further event."""
        self._events.append({"e": e, "t": t, **facts})

    def replace(self, event: Event, **facts: Any) -> None:
        """The same event with other facts."""
        place = next(place for place, other in enumerate(self._events) if other is event)
        self._events[place] = {**event, **facts}

    def remove(self, is_wanted: Callable[[Event], bool]) -> None:
        """The events go."""
        self._events = [event for event in self._events if not is_wanted(event)]

    def add_row(self, table: str, **values: Any) -> None:
        """A further row of a final table; the columns left out are null."""
        chunk = self.one_of([event for event in self._events if _is_of(event, table)])
        row = [values.get(column) for column in chunk["columns"]]
        self.replace(chunk, rows=[*chunk["rows"], row])

    def change_rows(self, table: str, change: Callable[[Row], Row | None]) -> None:
        """Each row of a final table becomes what `change` makes of it; None: it goes."""
        chunks = [event for event in self._events if _is_of(event, table)]
        if not chunks:
            raise CannotPlant
        for chunk in chunks:
            columns = chunk["columns"]
            changed = [change(dict(zip(columns, row, strict=True))) for row in chunk["rows"]]
            self.replace(chunk, rows=[[row[column] for column in columns] for row in changed if row is not None])

    def change_hold(self, hold: Hold, **facts: Any) -> None:
        """The points of a hold have other facts."""
        for event in self._points_of(hold):
            self.replace(event, **facts)

    def swap_fences(self, one: Hold, other: Hold) -> None:
        """The points of two holds have each other's token."""
        points = (self._points_of(one), self._points_of(other))
        for events, fence in zip(points, (other.fence, one.fence), strict=True):
            for event in events:
                self.replace(event, fence=fence)

    def _points_of(self, hold: Hold) -> list[Event]:
        return [event for event in self._events if _is_point_of(event, hold)]


def _time(event: Event) -> int:
    t: int = event["t"]
    return t


def _is_of(event: Event, table: str) -> bool:
    return bool(event["e"] == "rows" and event["table"] == table)


def _is_point_of(event: Event, hold: Hold) -> bool:
    return bool(
        event["e"] == "point"
        and event["p"] in HOLD_POINTS
        and (event["i"], event.get("life", 0), event["name"], event.get("fence"))
        == (hold.i, hold.life, hold.name, hold.fence)
    )
