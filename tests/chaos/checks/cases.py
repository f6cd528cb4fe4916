"""A hand-written history, and what the checkers have to say of it."""

from __future__ import annotations

from collections.abc import Iterable

from tests.chaos.checks.evidence import Event
from tests.chaos.checks.histories import HandWritten
from tests.chaos.checks.judging import judge


class Case:
    """`breaks`: exactly the properties that this history breaks; a good one breaks none."""

    def __init__(self, name: str, history: HandWritten, breaks: Iterable[str] = ()) -> None:
        self.name = name
        self.events: list[Event] = history.events
        self.breaks = frozenset(breaks)

    def is_judged_rightly(self) -> bool:
        """Whether the checkers find broken what is, and nothing else."""
        return self.found_broken() == self.breaks

    def found_broken(self) -> frozenset[str]:
        """The properties that the checkers find broken."""
        return frozenset(verdict.property for verdict in judge(self.events) if verdict.holds is False)
