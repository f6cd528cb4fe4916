"""What this instance has seen of its locks since it last told the others: counted as it happens, about 1 µs each."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from locks import events
from locks.clock import SYSTEM, Clock
from locks.events import LockEvent
from locks.for_whom import read_for_whom
from locks.histogram import LogHistogram, bucket_of

# Bounds on what one instance remembers of one second; what is beyond them is counted, but not named.
MOST_HOT = 1000
MOST_INCIDENTS = 50
MOST_HOLDS = 100
NAMES_PER_CELL = 3
MOST_CONTENDED = 10_000
# A hold as long as this one is of interest though nobody waited for it.
LONG_HOLD_S = 1.0


@dataclass(slots=True)
class HotSeen:
    """Waits for one lock."""

    waits: int = 0
    total_wait_s: float = 0.0
    longest_wait_s: float = 0.0

    def add(self, waits: int, total_wait_s: float, longest_wait_s: float) -> None:
        """More of them."""
        self.waits += waits
        self.total_wait_s += total_wait_s
        self.longest_wait_s = max(self.longest_wait_s, longest_wait_s)


@dataclass(frozen=True, slots=True)
class NotedIncident:
    """Something that somebody may have to act on."""

    at_s: float  # Clock.wall_s
    kind: str
    name: str
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NotedHold:
    """A hold that has ended, of a lock that was waited for, or a long one."""

    name: str
    began_at_s: float  # Clock.wall_s
    held_s: float
    fencing_token: int
    for_whom: str
    end: str


@dataclass(slots=True)
class Second:
    """What was seen within about a second."""

    counts: dict[str, int] = field(default_factory=dict)
    wait: LogHistogram = field(default_factory=LogHistogram)
    hold: LogHistogram = field(default_factory=LogHistogram)
    hot: dict[str, HotSeen] = field(default_factory=dict)
    cells: dict[str, dict[str, int]] = field(default_factory=dict)  # w<bucket> or h<bucket> -> lock -> how often
    incidents: list[NotedIncident] = field(default_factory=list)
    holds: deque[NotedHold] = field(default_factory=lambda: deque(maxlen=MOST_HOLDS))


class Seen:
    """A listener to a Locker, and to whoever has more to count. For one event loop."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self._wall_s = clock.wall_s
        self._now = Second()
        self._contended: dict[str, None] = {}  # locks that were waited for here, until their next end

    def take(self) -> Second:
        """What was seen since the last call."""
        taken, self._now = self._now, Second()
        return taken

    def count(self, key: str, by: int = 1) -> None:
        """Counts something of one's own, beside what the locks do."""
        counts = self._now.counts
        counts[key] = counts.get(key, 0) + by

    def note(self, kind: str, name: str, **detail: Any) -> None:
        """An incident. The first fifty of a second are kept."""
        if len(self._now.incidents) < MOST_INCIDENTS:
            self._now.incidents.append(NotedIncident(self._wall_s(), kind, name, detail))

    def on_lock_event(self, event: LockEvent) -> None:
        """A listener for a Locker."""
        match event:
            case events.Acquired():
                self.on_acquired(event)
            case events.Released():
                self.on_released(event)
            case events.Waiting():
                if len(self._contended) < MOST_CONTENDED:
                    self._contended[event.name] = None
            case events.GaveUp():
                self._gave_up(event)
            case events.Lost():
                self._lost(event)
            case events.Exported():
                self._held(event, "exported")
            case events.Forced():
                self.count("forced")
                self.note("forced", event.name, fencing_token=event.fencing_token)
            case _:
                pass

    # The two below are nearly all that happens, and are called directly by whoever knows the event's kind.

    def on_acquired(self, event: events.Acquired) -> None:
        """A lease was granted."""
        now = self._now
        counts, bucket = now.counts, bucket_of(event.waited_s)
        counts["acquired"] = counts.get("acquired", 0) + 1
        now.wait.counts[bucket] += 1
        if event.queued:
            self._waited(event.name, event.waited_s, bucket)
            self._contended[event.name] = None  # whoever held it before has taken the mark with it
        if event.takeover:
            self.count("takeovers")
            self.note(
                "takeover", event.name, fencing_token=event.fencing_token, waited_ms=round(event.waited_s * 1000, 1)
            )

    def on_released(self, event: events.Released) -> None:
        """A lease was given back."""
        now = self._now
        counts, bucket = now.counts, bucket_of(event.held_s)
        counts["released"] = counts.get("released", 0) + 1
        now.hold.counts[bucket] += 1
        if event.name in self._contended or event.held_s >= LONG_HOLD_S:
            self._note_hold(event, "released", bucket)

    def _gave_up(self, event: events.GaveUp) -> None:
        self.count(f"gave_up:{event.outcome}")
        bucket = bucket_of(event.waited_s)
        self._now.wait.counts[bucket] += 1
        if event.queued:
            self._waited(event.name, event.waited_s, bucket)
            if event.outcome in ("busy", "store-down"):
                waited_ms = round(event.waited_s * 1000, 1)
                self.note("gave-up", event.name, outcome=event.outcome, waited_ms=waited_ms)

    def _lost(self, event: events.Lost) -> None:
        self.count(f"lost:{event.reason.value}")
        owner = read_for_whom(event.for_whom).owner
        self.note(
            "lost",
            event.name,
            reason=event.reason.value,
            fencing_token=event.fencing_token,
            held_ms=round(event.held_s * 1000, 1),
            **({"owner": owner} if owner is not None else {}),
        )
        self._held(event, f"lost:{event.reason.value}")

    def _held(self, event: events.Lost | events.Exported, end: str) -> None:
        bucket = bucket_of(event.held_s)
        self._now.hold.counts[bucket] += 1
        self._note_hold(event, end, bucket)

    def _waited(self, name: str, waited_s: float, bucket: int) -> None:
        self.count("contended")
        hot = self._now.hot
        seen = hot.get(name)
        if seen is None:
            if len(hot) >= MOST_HOT:
                return
            seen = hot[name] = HotSeen()
        seen.add(1, waited_s, waited_s)
        self._name_in_cell(f"w{bucket}", name)

    def _note_hold(self, event: events.Released | events.Lost | events.Exported, end: str, bucket: int) -> None:
        name, held_s = event.name, event.held_s
        self._contended.pop(name, None)
        began_at_s = self._wall_s() - held_s
        self._now.holds.append(NotedHold(name, began_at_s, held_s, event.fencing_token, event.for_whom, end))
        self._name_in_cell(f"h{bucket}", name)

    def _name_in_cell(self, cell: str, name: str) -> None:
        names = self._now.cells.setdefault(cell, {})
        if name in names or len(names) < NAMES_PER_CELL:
            names[name] = names.get(name, 0) + 1
