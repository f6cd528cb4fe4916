"""Orders of steps: every one of two handlers, a seeded sample of three, and those in which one of them dies.

An order is a text of digits: the handler that takes the next step. A handler's step goes from the point where it stands
to the next one. What is left of a handler after the order's end is run afterwards, the lowest handler first.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

STEPS = 5

GUARDS = ("row", "lapsed", "lock")
# Where a handler stands still. Five of each are on every handler's way: "waiting" is only on that of one who waits.
STOPS = {
    "row": ("start", "rows_locked", "decided", "committing", "committed"),
    "lapsed": ("start", "acquired", "rows_locked", "committing", "releasing"),
    "lock": ("start", "waiting", "acquired", "rows_locked", "committing", "releasing"),
}
# Where somebody dies, nobody stands between two points with no word to a server between them: such orders are the same.
STOPS_WITH_DEATH = {
    "row": ("start", "rows_locked", "committing", "committed"),
    "lapsed": ("start", "acquired", "rows_locked", "releasing"),
    "lock": ("start", "waiting", "acquired", "rows_locked", "releasing"),
}
STEPS_WITH_DEATH = 4
# The step in which a handler comes to the point of its death. "commit_sent": COMMIT is on the wire, nothing is read.
DEATHS = {
    "row": {"rows_locked": 1, "decided": 2, "committing": 2, "commit_sent": 3, "committed": 3},
    "lapsed": {"acquired": 1, "rows_locked": 2, "decided": 3, "committing": 3, "commit_sent": 3, "releasing": 3},
    "lock": {
        "waiting": 1,
        "acquired": 1,
        "rows_locked": 2,
        "decided": 3,
        "committing": 3,
        "commit_sent": 3,
        "committed": 3,
        "releasing": 3,
    },
}


@dataclass(frozen=True, slots=True)
class Crash:
    """This handler's process dies as it reaches the point for the first time."""

    victim: int
    point: str

    def __str__(self) -> str:
        return f"{self.victim}@{self.point}"


@dataclass(frozen=True, slots=True)
class Case:
    """One order, and all that is needed to run it again."""

    guard: str
    scene: str
    order: str
    crash: Crash | None = None

    @property
    def code(self) -> str:
        """For `--replay`."""
        return f"{self.guard}/{self.scene}/{self.order}"

    @property
    def stops(self) -> tuple[str, ...]:
        """Where its handlers stand still."""
        return (STOPS if self.crash is None else STOPS_WITH_DEATH)[self.guard]

    @property
    def handlers(self) -> int:
        """How many take part."""
        return max(map(int, self.order)) + 1


def all_orders(first_steps: int, second_steps: int) -> list[str]:
    """Every order of so many steps of handler 0 and of handler 1, ascending: 252 for five each."""
    places = range(first_steps + second_steps)
    taken = map(set, combinations(places, first_steps))
    return ["".join("0" if place in own else "1" for place in places) for own in taken]


def sampled_orders(handlers: int, budget: int, rng: random.Random) -> Iterator[str]:
    """Different orders of five steps each, evenly drawn; all of them where there are no more than the budget."""
    seen: set[str] = set()
    steps = [str(handler) for handler in range(handlers)] * STEPS
    budget = min(budget, order_count(handlers))
    while len(seen) < budget:
        rng.shuffle(steps)
        order = "".join(steps)
        if order not in seen:
            seen.add(order)
            yield order


def order_count(handlers: int) -> int:
    """How many orders there are: 252 of two, 756,756 of three."""
    together, each = math.factorial(handlers * STEPS), math.factorial(STEPS)
    return together // int(each**handlers)


def crash_cases(guard: str, scene: str) -> Iterator[Case]:
    """Handler 0 dies at each point, in every order that leads there, with handler 1 wherever it may be by then."""
    for point, steps in DEATHS[guard].items():
        for order in all_orders(steps, STEPS_WITH_DEATH):
            yield Case(guard, scene, order, Crash(0, point))


def parse_case(text: str, crash: str | None, scenes: Sequence[str]) -> Case:
    """`row/pair/0101010101`, or `row/pair/137` for an order of two by its number. Raises ValueError."""
    guard, _, rest = text.partition("/")
    scene, _, order = rest.partition("/")
    if guard not in GUARDS or scene not in scenes or not order.isdecimal():
        raise ValueError(f"a case is GUARD/SCENE/ORDER ({', '.join(GUARDS)}; {', '.join(scenes)}), not {text!r}")
    if len(order) < STEPS:
        orders = all_orders(STEPS, STEPS)
        if int(order) >= len(orders):
            raise ValueError(f"orders of two handlers are numbered 0 to {len(orders) - 1}")
        order = orders[int(order)]
    if re.fullmatch("[0-3]+", order) is None:
        raise ValueError(f"an order's digits are handlers, 0 to 3, not {order!r}")
    return Case(guard, scene, order, None if crash is None else _parse_crash(crash, guard))


def _parse_crash(text: str, guard: str) -> Crash:
    victim, _, point = text.rpartition("@")
    if point not in DEATHS[guard] or victim not in ("", "0", "1", "2"):
        raise ValueError(f"with the guard {guard} a crash is [VICTIM@]POINT ({', '.join(DEATHS[guard])}), not {text!r}")
    return Crash(int(victim or 0), point)
