"""A ground that stands for several runs, each on empty tables, each judged."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg2
import uvloop

from db.errors import DatabaseError
from db.migrate import migrate
from service.embedded import EmbeddedError
from tests.chaos.checks import Thresholds, Verdict, exit_code, judge
from tests.chaos.checks.canary import plant
from tests.chaos.checks.draft import CannotPlant
from tests.chaos.checks.judging import judge_one
from tests.chaos.every_kind import PLAIN
from tests.chaos.ground import Ground
from tests.chaos.guards import SCHEMA_OF_GUARD
from tests.chaos.history import Event, read_history
from tests.chaos.mutants import MUTANTS
from tests.chaos.nursery import Nursery, NurseryError
from tests.chaos.run import RATE, RunError, run
from tests.chaos.schedule import Schedule
from tests.chaos.worlds import WORLDS


@dataclass(frozen=True, slots=True)
class Judged:
    """One run, and what the checkers say of it."""

    schedule: Schedule
    history: Path
    events: Sequence[Event]
    verdicts: Sequence[Verdict]

    @property
    def broken(self) -> list[str]:
        """The properties that do not hold."""
        return [verdict.property for verdict in self.verdicts if verdict.holds is False]

    @property
    def exit_code(self) -> int:
        """0 when every property holds, 1 when one is broken, 2 when it cannot be told."""
        return exit_code(self.verdicts)


class Standing:
    """The servers of a world, or of a mutant's settings, and runs on them one after the other. Blocking."""

    def __init__(self, folder: Path, *, world: str = PLAIN, postgres_settings: dict[str, str] | None = None) -> None:
        """Raises RunError where this world cannot be had here."""
        self._folder = folder
        self._world = world
        self._postgres_settings = postgres_settings or {}
        self._stack = ExitStack()
        self._runs = 0
        self.ground: Any = None

    def __enter__(self) -> Self:
        try:
            self._nursery = self._stack.enter_context(Nursery())
            self.ground = self._stack.enter_context(self._open())
        except (NurseryError, EmbeddedError, DatabaseError, OSError, RuntimeError) as error:
            self._stack.close()
            raise RunError(f"the servers do not start: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(
        self,
        schedule: Schedule,
        history: Path,
        *,
        rate: float = RATE,
        thresholds: Thresholds | None = None,
    ) -> Judged:
        """Makes the run and judges it. Raises RunError."""
        self._runs += 1
        folder = self._folder / f"run-{self._runs}"
        folder.mkdir(mode=0o700)
        history.unlink(missing_ok=True)
        self._renew(schedule)
        self.ground.turns.clear()  # they are of the last run's event loop
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(schedule, self.ground, self._nursery, folder, history, rate=rate))
        events = read_history(history)
        judged = Judged(schedule, history, events, judge(events, thresholds=thresholds))
        if not judged.broken:
            _plant(events, schedule.seed)
        return judged

    def _open(self) -> Any:
        if self._world == PLAIN:
            return Ground(self._folder / "ground", postgres_settings=self._postgres_settings)
        world = WORLDS[self._world]
        if (why := world.needs()) is not None:
            raise RunError(f"the world {self._world} cannot be had here: {why}")
        return world.open(self._folder / "ground", postgres_settings=self._postgres_settings)

    def _renew(self, schedule: Schedule) -> None:
        """Empty tables, as migrated but for what would hide a guard's or mutant's defect; an empty Redis."""
        if getattr(self.ground, "valkey", None) is not None:
            self.ground.valkey.flush()
        _run(self.ground.database_url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
        migrate(self.ground.database_url)
        changes = SCHEMA_OF_GUARD[schedule.guard]
        if schedule.mutant is not None:
            changes += MUTANTS[schedule.mutant].schema
        _run(self.ground.database_url, *changes)


def _plant(events: Sequence[Event], seed: int) -> None:
    """A lie in the history, which the checkers must see. Raises RunError when they do not."""
    try:
        planted, breaks = plant(events, random.Random(seed))
    except CannotPlant:
        return  # too little has happened
    if judge_one(breaks, planted).holds is not False:
        raise RunError(f"the checkers did not see a lie that was planted against {breaks}: they cannot be trusted")


def _run(database_url: str, *statements: str) -> None:
    with closing(psycopg2.connect(database_url, connect_timeout=5)) as session:
        session.autocommit = True
        with session.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
