"""The points of an instance: what its locks and charges tell anyway, written down, and where faults are fired.

At an armed point the instance stands still and asks the harness, which does what the schedule says: let it go on, kill
it, freeze it, or do something to a server while it stands there.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from db import events as db
from db.events import ChargeEvent
from locks import events as locks
from locks.events import LockEvent
from locks.for_whom import read_for_whom
from service.listeners import Listeners
from tests.chaos.history import History, now_ns

TARGET_POINTS = (
    "waiting",
    "acquired",
    "rows_locked",
    "decided",
    "committing",
    "committed",
    "releasing",
    "released",
    "extended",
    "lost",
)

HARNESS = "harness"  # the process whose loop has the proxies, as the history names it
STALL_LOOK_S = 0.02
STALL_NS = 25_000_000  # takeovers are judged to within 50 ms

Facts = dict[str, Any]

_FACTS: dict[type, tuple[str, Callable[[Any], Facts]]] = {
    locks.Waiting: ("waiting", lambda event: {"name": event.name}),
    locks.Acquired: (
        "acquired",
        lambda event: {
            "name": event.name,
            "fence": event.fencing_token,
            "queued": event.queued,
            "takeover": event.takeover,
            "wake": event.wake_source,
            "waited_s": event.waited_s,
        },
    ),
    locks.Extended: ("extended", lambda event: {"name": event.name, "fence": event.fencing_token}),
    locks.Unknown: ("unknown_renewal", lambda event: {"name": event.name, "fence": event.fencing_token}),
    locks.Lost: (
        "lost",
        lambda event: {
            "name": event.name,
            "fence": event.fencing_token,
            "reason": event.reason,
            "r": read_for_whom(event.for_whom).request_id,
        },
    ),
    locks.Releasing: (
        "releasing",
        lambda event: {"name": event.name, "fence": event.fencing_token, "r": read_for_whom(event.for_whom).request_id},
    ),
    locks.Released: (
        "released",
        lambda event: {
            "name": event.name,
            "fence": event.fencing_token,
            "still_ours": event.still_ours,
            "handed_over": event.handed_over,
            "r": read_for_whom(event.for_whom).request_id,
        },
    ),
    locks.GaveUp: (
        "gave_up",
        lambda event: {
            "name": event.name,
            "outcome": event.outcome,
            "queued": event.queued,
            "waited_s": event.waited_s,
        },
    ),
    locks.Exported: ("exported", lambda event: {"name": event.name, "fence": event.fencing_token}),
    locks.Adopted: ("adopted", lambda event: {"name": event.name, "fence": event.fencing_token}),
    locks.Forced: ("forced", lambda event: {"name": event.name, "fence": event.fencing_token}),
    locks.StoreLost: ("store_lost", lambda event: {"reason": event.reason}),
    locks.StoreUp: ("store_up", lambda event: {}),
    db.RowsLocked: (
        "rows_locked",
        lambda event: {"appointments": list(event.appointment_ids), "elsewhere": list(event.held_elsewhere)},
    ),
    db.Decided: ("decided", lambda event: {"appointments": list(event.appointment_ids)}),
    db.Committing: ("committing", lambda event: {"appointments": list(event.appointment_ids)}),
    db.Committed: (
        "committed",
        lambda event: {
            "appointments": list(event.appointment_ids),
            "entries": event.entries,
            "charges": event.charges,
        },
    ),
    db.Settled: (
        "settled",
        lambda event: {"appointments": list(event.appointment_ids), "had_committed": event.had_committed},
    ),
}
_ENDS_HOLD = frozenset(("releasing", "lost", "exported"))


@dataclass(slots=True)
class Armed:
    """The fault that waits for its point: the `nth` from now, for no longer than `patience_s`."""

    id: int
    point: str
    nth: int
    patience_s: float
    since_ns: int = field(default_factory=now_ns)

    def waited_in_vain(self) -> bool:
        """Whether the point did not come in time."""
        return now_ns() - self.since_ns > self.patience_s * 1e9


class Points:
    """The listener of one life of an instance. For its event loop."""

    def __init__(self, history: History, *, instance: int, life: int, harness: socket.socket | None) -> None:
        """`harness`: a connected stream socket, blocking; None where nothing is ever armed."""
        self._history = history
        self._who = {"i": instance, "life": life}
        self._harness = harness
        self._received = b""
        self._armed: Armed | None = None
        self._held: dict[str, int] = {}

    @property
    def listeners(self) -> Listeners:
        """For the instance's locks and charges."""
        return Listeners(self._hear, self._hear)

    def hello(self, pid: int) -> None:
        """Tells the harness who has come, and takes what it arms first."""
        assert self._harness is not None
        self._arm(self._ask({"hello": pid, **self._who}))

    def _hear(self, event: LockEvent | ChargeEvent) -> None:
        point, facts_of = _FACTS[event.__class__]
        facts = facts_of(event)
        self._history.write("point", p=point, **self._who, **facts)
        if point == "acquired":
            self._held[facts["name"]] = facts["fence"]
        elif point in _ENDS_HOLD:
            self._held.pop(facts["name"], None)
        armed = self._armed
        if armed is not None and armed.point == point and _is_targeted(facts):
            armed.nth -= 1
            if armed.nth <= 0:
                self._stand_still(armed, facts)

    def _stand_still(self, armed: Armed, facts: Facts) -> None:
        """Until the harness says that it may go on; what it arms next comes with the same word."""
        self._armed = None
        self._arm(self._ask({"reached": armed.id, "held": self._held, **facts}))

    def _ask(self, question: Facts) -> Facts:
        assert self._harness is not None
        self._harness.sendall(orjson.dumps(question, option=orjson.OPT_APPEND_NEWLINE))
        while b"\n" not in self._received:
            received = self._harness.recv(65536)
            if not received:
                raise SystemExit("the harness is gone")
            self._received += received
        line, _, self._received = self._received.partition(b"\n")
        answer: Facts = orjson.loads(line)
        return answer

    def _arm(self, answer: Facts) -> None:
        if answer.get("arm") is not None:
            self._armed = Armed(**answer["arm"])

    async def watch(self) -> None:
        """Gives up what is armed in vain, and writes down when this process' event loop did not run for a while.

        On a busy machine that lapses leases too.
        """
        async for _ in stalls_written(self._history, self._who):
            if self._armed is not None and self._armed.waited_in_vain():
                missed, self._armed = self._armed, None
                self._arm(self._ask({"missed": missed.id}))


async def stalls_written(history: History, who: Facts) -> AsyncIterator[None]:
    """Ticks for ever, and writes down each time that this event loop has come too late for a tick."""
    while True:
        asleep_at = now_ns()
        await asyncio.sleep(STALL_LOOK_S)
        now = now_ns()
        if now - asleep_at - STALL_LOOK_S * 1e9 > STALL_NS:
            history.write("stall", **who, **{"from": asleep_at, "to": now})
        yield


def _is_targeted(facts: Facts) -> bool:
    """Faults are aimed at the product's main job, not at the lock of its audit or at leases of others."""
    name = facts.get("name")
    return name is None or str(name).startswith("appointment:")
