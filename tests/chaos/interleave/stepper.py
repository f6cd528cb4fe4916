"""Steps handlers through one order. A handler that waits for another one cannot take its step, and the step is skipped.

After each step everything is quiet: every handler stands at a point, has ended, or waits for one that stands (the
servers say so). So whatever happens next is caused by the next step alone, and the same order gives the same trace.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from service.entering import lock_name

from .handler import Handler, Part, Report
from .orders import Case
from .scenes import Ask, Cast
from .watch import PATIENCE_S, StepperError, Watch

# A handler that has said nothing for so long may be waiting: then the servers are asked, and ever more seldom.
LOOK_AFTER_S, LOOK_AT_LEAST_EVERY_S = 0.001, 0.02
FREEING = ("committed", "released", "lost", "done", "died")  # nobody who waits goes on before one of these


@dataclass(slots=True)
class Seen:
    """One event in the trace. `step` counts the steps; what two handlers did within one is in the handlers' order."""

    step: int
    handler: int
    point: str
    event: Any

    def __str__(self) -> str:
        return f"{self.step}:{self.handler}:{self.point}"


@dataclass(slots=True)
class Played:
    """What came of one order."""

    case: Case
    cast: Cast
    parts: list[Part]
    trace: list[Seen] = field(default_factory=list)
    died_at: str | None = None
    is_stuck: bool = False
    left_locked: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _State:
    """How far a handler is, as far as it has said."""

    handler: Handler
    part: Part
    at: str | None = None  # where it stands; None while it moves or waits
    is_over: bool = False
    waits_for: str | None = None  # the lock's name
    holds_rows: bool = False
    is_known_to_wait: bool = False  # as of the last look at the servers; nothing has been freed since

    @property
    def moves(self) -> bool:
        """Whether it may be heard of without being let go."""
        return self.at is None and not self.is_over and not self.is_known_to_wait


class Stepper:
    """For one order after the other, with handlers that it is given."""

    def __init__(self, watch: Watch, reports: SimpleQueue[Report]) -> None:
        self._watch = watch
        self._reports = reports
        self._states: list[_State] = []
        self._dead: list[_State] = []
        self._seen: list[Seen] = []
        self._step = 0

    def play(self, case: Case, cast: Cast, handlers: Sequence[Handler], successor: Handler | None) -> Played:
        """Steps through the order; where the victim has died, `successor` enters in its place afterwards."""
        self._case, self._states, self._dead, self._step = case, [], [], 0
        crash = case.crash
        played = self._played = Played(case, cast, [])
        for number, handler in enumerate(handlers):
            self._begin(handler, number, cast.parts[number], crash.point if crash and crash.victim == number else None)
        self._settle()
        for digit in case.order:
            state = self._states[int(digit)]
            if state.at is not None:
                self._let_go(state)
        self._run_out()
        if played.died_at is not None:
            assert crash is not None
            assert successor is not None
            self._begin(successor, len(handlers), cast.parts[crash.victim], None)
            self._settle()
            self._run_out()
        elif not played.is_stuck and case.guard != "row":
            names = [lock_name(appointment_id) for appointment_id in cast.appointment_ids]
            played.left_locked = [name for name in names if self._watch.queue_of(name) != (None, 0)]
        return played

    def _begin(self, handler: Handler, number: int, asks: Sequence[Ask], dies_at: str | None) -> None:
        part = Part(number, asks, self._case.stops, dies_at)
        self._played.parts.append(part)
        self._states.append(_State(handler, part))
        handler.enter(part)

    def _run_out(self) -> None:
        """What is left: the lowest handler first, to its end or until it waits."""
        while any(not state.is_over for state in self._states):
            standing = next((state for state in self._states if state.at is not None), None)
            if standing is not None:
                self._let_go(standing)
            elif not self._end_leases_of_the_dead():
                self._played.is_stuck = True
                return

    def _let_go(self, state: _State) -> None:
        self._step += 1
        state.at = None
        state.handler.go_on()
        self._settle()

    def _end_leases_of_the_dead(self) -> bool:
        names = {state.waits_for for state in self._states if state.waits_for and not state.is_over}
        dead_leases = {lease_id for state in self._dead for lease_id in state.handler.lease_ids}
        ended = [name for name in names if self._watch.queue_of(name)[0] in dead_leases]
        for name in ended:
            self._watch.end_lease(name)
        if ended:
            self._somebody_may_go_on()
            self._settle()
        return bool(ended)

    def _settle(self) -> None:
        """Returns when everything is quiet. Raises StepperError."""
        give_up_at_s, look_after_s = time.monotonic() + PATIENCE_S, LOOK_AFTER_S
        self._seen.clear()
        while moving := [state for state in self._states if state.moves]:
            try:
                report = self._reports.get(timeout=look_after_s)
            except Empty:
                if self._all_wait(moving) and self._reports.empty():
                    for state in moving:
                        state.is_known_to_wait = True
                    break
                look_after_s = min(2 * look_after_s, LOOK_AT_LEAST_EVERY_S)
                if time.monotonic() > give_up_at_s:
                    raise StepperError(f"{self._case.code}: a handler neither moves nor waits") from None
            else:
                self._hear(report)
        self._seen.sort(key=lambda seen: seen.handler)
        self._played.trace += self._seen

    def _hear(self, report: Report) -> None:
        state = next((each for each in self._states if each.handler is report.handler), None)
        if state is None:
            return  # of a handler that is just being made, or was cleared away
        point, event = report.point, report.event
        self._seen.append(Seen(self._step, state.part.number, point, event))
        if point in FREEING:
            state.holds_rows = False
            self._somebody_may_go_on()
        if point == "waiting":
            state.waits_for = event.name
        elif point in ("acquired", "gave_up"):
            state.waits_for = None
        elif point == "rows_locked":
            state.holds_rows = True
        elif point == "done":
            state.is_over = True
        elif point == "died":
            self._bury(state)
        elif point == "failed":
            raise StepperError(f"{self._case.code}: a handler failed") from event
        if report.stands:
            state.at = point
            if point == "acquired" and self._case.guard == "lapsed":
                self._watch.end_lease(event.name)

    def _somebody_may_go_on(self) -> None:
        for state in self._states:
            state.is_known_to_wait = False

    def _bury(self, state: _State) -> None:
        state.is_over = True
        self._dead.append(state)
        self._played.died_at = state.part.dies_at
        self._watch.until_gone(state.handler.ports)

    def _all_wait(self, moving: Sequence[_State]) -> bool:
        """Whether each of them waits for one that stands, is dead, or waits itself."""
        in_line = [state for state in self._states if state.waits_for and state.at is None and not state.is_over]
        for name in {state.waits_for for state in in_line if state.waits_for}:
            holder, count = self._watch.queue_of(name)
            still = [state for state in self._states if state.at is not None] + self._dead
            if count < sum(state.waits_for == name for state in in_line):
                return False
            if not any(holder in state.handler.lease_ids for state in still):
                return False
        others = [state for state in moving if state.waits_for is None]
        if not others:
            return True
        if not any(state.holds_rows for state in self._states):
            return False
        for state in others:
            state.handler.sessions = state.handler.sessions or self._watch.sessions(state.handler.ports)
        blocked = self._watch.blocked([pid for state in others for pid in state.handler.sessions])
        return all(blocked & set(state.handler.sessions) for state in others)
