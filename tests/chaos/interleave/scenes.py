"""Who enters what: the casts of the orders, each with appointments, people and coupons of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

IDS_PER_RUN = 4


class Ask(NamedTuple):
    """One entry that a handler is asked for."""

    appointment_id: int
    user_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """`appointments`: (id, inviter, invitee). `purses`: coupons by user. `parts`: the entries that each handler is
    asked for at once. `charges`: how many appointments are charged in the end."""

    appointments: Sequence[tuple[int, int, int]]
    purses: Mapping[int, int]
    parts: Sequence[Sequence[Ask]]
    charges: int

    @property
    def appointment_ids(self) -> list[int]:
        """Those of this cast."""
        return [appointment[0] for appointment in self.appointments]


def pair(first: int, handlers: int) -> Cast:
    """Both participants of one appointment enter, and either could pay."""
    people = (first, first + 1)
    return Cast(
        appointments=[(first, *people)],
        purses=dict.fromkeys(people, 2),
        parts=[[Ask(first, people[number % 2])] for number in range(handlers)],
        charges=1,
    )


def purse(first: int, handlers: int) -> Cast:
    """One payer enters two appointments at a time, with coupons for one."""
    return Cast(
        appointments=[(first, first, first + 1), (first + 1, first, first + 2)],
        purses={first: 1},
        parts=[[Ask(first + number % 2, first)] for number in range(handlers)],
        charges=1,
    )


def batches(first: int, handlers: int) -> Cast:
    """Batches of the same two appointments in crossing order, their payers crossed too."""
    one, other = first, first + 1
    ways = ([Ask(one, one), Ask(other, other)], [Ask(other, one), Ask(one, other)])
    return Cast(
        appointments=[(one, one, other), (other, other, one)],
        purses={one: 4, other: 4},
        parts=[ways[number % 2] for number in range(handlers)],
        charges=2,
    )


def payers(first: int, handlers: int) -> Cast:
    """Batches of different appointments whose payers are the same two people in crossing order."""
    one, other, guest = first, first + 1, first + 2
    ways = ([Ask(first, one), Ask(first + 1, other)], [Ask(first + 2, other), Ask(first + 3, one)])
    return Cast(
        appointments=[(first + k, inviter, guest) for k, inviter in enumerate((one, other, other, one))],
        purses={one: 4, other: 4},
        parts=[ways[number % 2] for number in range(handlers)],
        charges=4,
    )


SCENES: Mapping[str, Callable[[int, int], Cast]] = {"pair": pair, "purse": purse, "batches": batches, "payers": payers}
# Several entries of one handler at a time are one batch only where no locks of their own stand before it.
PLAYED = (
    ("row", "pair"),
    ("row", "purse"),
    ("row", "batches"),
    ("row", "payers"),
    ("lapsed", "pair"),
    ("lock", "pair"),
)
CRASHED = (("row", "pair"), ("row", "purse"), ("lapsed", "pair"), ("lock", "pair"))
