"""Facts that a charging transaction emits, in its event loop. A listener must neither raise nor block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RowsLocked:
    """The transaction holds these appointments' rows; `held_elsewhere` are those that another session holds."""

    appointment_ids: Sequence[int]
    held_elsewhere: Sequence[int]


@dataclass(frozen=True, slots=True)
class Decided:
    """Each request under the locked rows has its verdict; nothing is written yet."""

    appointment_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Committing:
    """What is to be written goes out next, and COMMIT with it."""

    appointment_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Committed:
    """The transaction has ended: so many entries and charges in it, so many seconds from its first statement."""

    entries: int
    charges: int
    transaction_s: float
    appointment_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Settled:
    """It was unknown what became of a COMMIT, and reading has told."""

    appointment_ids: Sequence[int]
    had_committed: bool


ChargeEvent = RowsLocked | Decided | Committing | Committed | Settled
Listener = Callable[[ChargeEvent], None]


def ignore(event: ChargeEvent) -> None:
    """The listener of those who do not listen."""
