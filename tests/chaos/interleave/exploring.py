"""Steps real handlers through all orders, judges each, and gives every violation as a case that can be run again."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from queue import SimpleQueue

from .handler import Handler, Report, Servers
from .judging import judge
from .ledger import Ledger
from .mutants import MUTANTS, mutated
from .orders import STEPS, Case, all_orders, crash_cases, sampled_orders
from .scenes import CRASHED, IDS_PER_RUN, PLAYED, SCENES
from .stepper import Played, Stepper
from .watch import Watch

SPARE_HANDLERS = 3


@dataclass(frozen=True, slots=True)
class Violation:
    """An order in which something did not hold. `order` and `crash` are what `--replay` and `--crash` take."""

    order: str
    crash: str | None
    what: str


@dataclass(slots=True)
class Exploration:
    """What was stepped through: `orders` without a death, `crashes` in which the victim did die."""

    orders: int = 0
    crashes: int = 0
    seconds: float = 0.0
    violations: list[Violation] = field(default_factory=list)


def explore(
    database_url: str,
    redis_url: str,
    *,
    handlers: int = 2,
    budget: int | None = None,
    seed: int = 1,
    crashes: bool = True,
    mutant: str | None = None,
) -> Exploration:
    """All orders of two handlers, a sample of `budget` orders a scene of more, and all deaths of one of two.

    The database is migrated; what is there stays as it is. A mutant takes constraints from its schema for good.
    """
    return explore_cases(database_url, redis_url, planned(handlers, budget, seed, crashes=crashes), mutant=mutant)


def planned(handlers: int, budget: int | None, seed: int, *, crashes: bool) -> list[Case]:
    """The cases of an exploration, those of one guard next to each other."""
    rng = random.Random(seed)
    cases = []
    for guard, scene in PLAYED:
        if handlers == 2 and budget is None:
            orders = all_orders(STEPS, STEPS)
        else:
            orders = list(sampled_orders(handlers, budget or 100, rng))
        cases += [Case(guard, scene, order) for order in orders]
        if crashes and handlers == 2 and (guard, scene) in CRASHED:
            deaths = list(crash_cases(guard, scene))
            cases += deaths if budget is None else rng.sample(deaths, min(budget, len(deaths)))
    return cases


def explore_cases(
    database_url: str, redis_url: str, cases: Sequence[Case], *, mutant: str | None = None
) -> Exploration:
    """These cases, each with appointments and people of its own."""
    began_at_s = time.perf_counter()
    explored = Exploration()
    for played, wrong in run_cases(database_url, redis_url, cases, mutant=mutant):
        if played.died_at is None:
            explored.orders += 1
        else:
            explored.crashes += 1
        crash = None if played.case.crash is None else str(played.case.crash)
        explored.violations += [Violation(played.case.code, crash, what) for what in wrong]
    explored.seconds = time.perf_counter() - began_at_s
    return explored


def replay(database_url: str, redis_url: str, case: Case, *, mutant: str | None = None) -> tuple[Played, list[str]]:
    """One case again, with its trace, and what is wrong."""
    (outcome,) = run_cases(database_url, redis_url, [case], mutant=mutant)
    return outcome


def run_cases(
    database_url: str, redis_url: str, cases: Sequence[Case], *, mutant: str | None = None
) -> list[tuple[Played, list[str]]]:
    """Each case as it went, and what is wrong with it."""
    with ExitStack() as stack:
        ledger = stack.enter_context(closing(Ledger(database_url)))
        if mutant is not None:
            ledger.run(MUTANTS[mutant].schema)
        stack.enter_context(mutated(mutant))
        first_id, most = ledger.first_id(), max(case.handlers for case in cases)
        ids = range(first_id, first_id + IDS_PER_RUN * len(cases), IDS_PER_RUN)
        casts = [SCENES[case.scene](id_, most) for case, id_ in zip(cases, ids, strict=True)]
        ledger.seed(casts)
        watch = stack.enter_context(closing(Watch(database_url, redis_url)))
        plays: list[Played] = []
        for guard in dict.fromkeys(case.guard for case in cases):
            servers = Servers(
                database_url=database_url, database_port=ledger.port, redis_url=None if guard == "row" else redis_url
            )
            with crew(servers) as handlers:
                stepper = Stepper(watch, handlers.reports)
                for case, cast in zip(cases, casts, strict=True):
                    if case.guard == guard:
                        plays.append(handlers.play(stepper, case, cast))
        tables = ledger.read([played.cast for played in plays])
        return [(played, judge(played, table)) for played, table in zip(plays, tables, strict=True)]


class Crew:
    """Handlers that are ready, and others that get ready meanwhile, to take the place of those that die."""

    def __init__(self, servers: Servers) -> None:
        self.reports: SimpleQueue[Report] = SimpleQueue()
        self._servers = servers
        self._handlers: list[Handler] = []
        self._all: list[Handler] = []

    def play(self, stepper: Stepper, case: Case, cast: object) -> Played:
        """One case. Whoever has died, or got stuck in it, is replaced."""
        wanted = case.handlers + (case.crash is not None)
        while len(self._handlers) < wanted + (SPARE_HANDLERS if case.crash else 0):
            self._handlers.append(self._new())
        ready = self._handlers[:wanted]
        for handler in ready:
            handler.is_ready.wait()
        played = stepper.play(case, cast, ready[: case.handlers], ready[-1] if case.crash else None)  # type: ignore[arg-type]
        if played.died_at is not None:
            assert case.crash is not None
            self._handlers.remove(ready[case.crash.victim])
        return played

    def close(self) -> None:
        """Ends all of them."""
        for handler in self._all:
            handler.close()

    def _new(self) -> Handler:
        self._all.append(Handler(self._servers, self.reports))
        return self._all[-1]


@contextmanager
def crew(servers: Servers) -> Iterator[Crew]:
    """Handlers for a series of cases; gone afterwards."""
    made = Crew(servers)
    try:
        yield made
    finally:
        made.close()


def first_few(violations: Sequence[Violation], count: int = 5) -> list[Violation]:
    """For showing."""
    return list(islice(violations, count))
