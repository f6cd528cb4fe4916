"""Facts that the locks emit, as they happen. Whoever listens counts, logs or shows them; what it raises is logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from locks.errors import LossReason

_log = logging.getLogger("locks")


class WakeSource(StrEnum):
    """What made a waiter look again, or not wait at all."""

    NONE = "none"  # the first call got the lock
    HANDOFF = "handoff"  # the releasing holder's script granted the lock
    MESSAGE = "message"  # told that the lock is free
    TRACKING = "tracking"  # the server said that the lock's key has changed
    TIMER = "timer"  # the holder's lease should have run out
    HEARTBEAT = "heartbeat"  # the regular sign of life found the lock free
    RECONNECT = "reconnect"  # a lost connection had come back


# `for_whom`, where an event has it, is the text of locks.for_whom, which read_for_whom() takes apart.


@dataclass(frozen=True, slots=True)
class Waiting:
    """A caller has joined the queue of a held lock."""

    name: str


class Acquired(NamedTuple):
    """A lease was granted. `queued`: its Waiting was emitted before. `takeover`: its predecessor lapsed meanwhile.

    `handoff_s`: from the release, or from another process' message of it, to the lease; None without a handoff.
    """

    name: str
    fencing_token: int
    waited_s: float
    wake_source: WakeSource
    queued: bool
    takeover: bool
    handoff_s: float | None


@dataclass(frozen=True, slots=True)
class GaveUp:
    """A caller stopped waiting: its time was over, it was cancelled or dismissed, or the store went out of reach."""

    name: str
    waited_s: float
    outcome: str  # busy, cancelled, dismissed, store-down
    queued: bool


@dataclass(frozen=True, slots=True)
class Extended:
    """A lease got more time."""

    name: str
    fencing_token: int


@dataclass(frozen=True, slots=True)
class Unknown:
    """A renewal went unanswered: the old deadline stands."""

    name: str
    fencing_token: int


@dataclass(frozen=True, slots=True)
class Lost:
    """A holder has found out that its lease is gone."""

    name: str
    fencing_token: int
    held_s: float
    reason: LossReason
    for_whom: str = ""


class Releasing(NamedTuple):
    """A holder does nothing under its lease from here on: the command that gives it back goes out next."""

    name: str
    fencing_token: int
    for_whom: str = ""


class Released(NamedTuple):
    """A holder gave its lease back. `handed_over`: straight to the next waiter; `still_ours`: it had not lapsed."""

    name: str
    fencing_token: int
    held_s: float
    still_ours: bool
    handed_over: bool
    for_whom: str = ""


@dataclass(frozen=True, slots=True)
class Exported:
    """A holder has passed its lease on to whoever adopts it; this process neither extends nor releases it any more."""

    name: str
    fencing_token: int
    held_s: float
    for_whom: str = ""


@dataclass(frozen=True, slots=True)
class Adopted:
    """A lease that another holder had exported is this process' now."""

    name: str
    fencing_token: int


@dataclass(frozen=True, slots=True)
class Forced:
    """This process has ended somebody's lease by force."""

    name: str
    fencing_token: int


@dataclass(frozen=True, slots=True)
class StoreUp:
    """Redis answers again, or for the first time."""


@dataclass(frozen=True, slots=True)
class StoreLost:
    """The connection to Redis broke, or Redis stopped answering."""

    reason: str


LockEvent = (
    Waiting
    | Acquired
    | GaveUp
    | Extended
    | Unknown
    | Lost
    | Releasing
    | Released
    | Exported
    | Adopted
    | Forced
    | StoreUp
    | StoreLost
)
Listener = Callable[[LockEvent], None]


def ignore(event: LockEvent) -> None:
    """The listener of those who do not listen."""


def harmless(listener: Listener) -> Listener:
    """The listener, but for what it raises: the first such error is logged, and none goes any further.

    Whoever emits is in the midst of something: of granting a lease, renewing many, or telling one holder of its loss.
    """
    if listener is ignore:
        return ignore
    is_known = False

    def tell(event: LockEvent) -> None:
        nonlocal is_known
        try:
            listener(event)
        except (Exception, asyncio.CancelledError):
            if not is_known:
                is_known = True
                _log.exception("a listener raised at %s; what it raises later is not logged", type(event).__name__)

    return tell
