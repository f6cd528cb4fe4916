"""What processes leave for one another outside the server: exported texts, clients who hold what was lent to them."""

from __future__ import annotations

from typing import Generic, TypeVar

from tests.sim.process import Process

Thing = TypeVar("Thing")


class Shelf(Generic[Thing]):
    """Each thing is there from the moment at which its process has left it: a tick is ahead of the world's time."""

    def __init__(self) -> None:
        self._left: list[tuple[Process, float, Thing]] = []

    def leave(self, process: Process, thing: Thing) -> None:
        """A process leaves it now, by true time, if it lives until then."""
        self._left.append((process, process.now_s, thing))

    def seen_by(self, process: Process) -> list[Thing]:
        """What is there for a process now, in the order in which it was left."""
        return [
            thing for by, left_s, thing in self._left if by is process or left_s <= min(process.now_s, by.died_at_s)
        ]

    def take(self, thing: Thing) -> None:
        """It is there for nobody any more."""
        self._left = [each for each in self._left if each[2] is not thing]
