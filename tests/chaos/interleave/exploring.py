"""Steps real handlers through all orders, judges each, and gives every violation as a case that can be run again."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue

from .handler import Handler, Report, Servers
from .judging import judge
from .ledger import Ledger
from .mutants import MUTANTS, mutated
from .orders import GUARDS, STEPS, Case, all_orders, crash_cases, sampled_orders
from .scenes import CRASHED, IDS_PER_RUN, PLAYED, SCENES, Cast
from .stepper import Played, Stepper
from .watch import StepperError, Watch

PROCESSES = 2  # each waits half of its time for the servers
ENOUGH_TO_SHARE = 100
SPARE_HANDLERS = 3


@dataclass(frozen=True, slots=True)
class Violation:
    """An order in which something did not hold. `order` and `crash` are what `--replay` and `--crash` take."""

    order: str
    crash: str | None
    what: str


@dataclass(slots=True)
class Exploration:
    """What was stepped through: `orders` in which nobody was to die, `crashes` in which the victim did, and `spared`:
    those in which it never came to the point of its death."""

    orders: int = 0
    crashes: int = 0
    spared: int = 0
    seconds: float = 0.0
    violations: list[Violation] = field(default_factory=list)


Outcome = tuple[Case, str | None, list[str]]  # the case, where its victim died, what is wrong


def explore(
    database_url: str,
    redis_url: str,
    *,
    handlers: int = 2,
    budget: int | None = None,
    seed: int = 1,
    crash: str | None = None,
    mutant: str | None = None,
) -> Exploration:
    """All orders of two handlers and all deaths of one of them; of more handlers `budget` orders a scene.

    `crash`: only those in which the victim dies at this point. The database is migrated, and nobody else charges in it
    meanwhile; what is there stays as it is. A mutant takes constraints from its schema for good.
    """
    cases = planned(handlers, budget, seed)
    if crash is not None:
        cases = [case for case in cases if case.crash is not None and case.crash.point == crash]
    return explore_cases(database_url, redis_url, cases, mutant=mutant)


def planned(handlers: int, budget: int | None, seed: int) -> list[Case]:
    """The cases of an exploration."""
    rng = random.Random(seed)
    cases = []
    for guard, scene in PLAYED:
        orders = all_orders(STEPS, STEPS)
        if handlers > 2 or budget is not None:
            orders = list(sampled_orders(handlers, budget or 100, rng))
        cases += [Case(guard, scene, order) for order in orders]
        if handlers == 2 and (guard, scene) in CRASHED:
            deaths = list(crash_cases(guard, scene))
            cases += deaths if budget is None else rng.sample(deaths, min(budget, len(deaths)))
    return cases


def explore_cases(
    database_url: str, redis_url: str, cases: Sequence[Case], *, mutant: str | None = None
) -> Exploration:
    """These cases, each with appointments and people of its own."""
    began_at_s = time.perf_counter()
    with closing(Ledger(database_url)) as ledger:
        if mutant is not None:
            ledger.run(MUTANTS[mutant].schema)
        first_id, deadlocks = ledger.first_id(), ledger.deadlocks()
        explored = _counted(_outcomes(database_url, redis_url, cases, first_id, mutant))
        if deadlocks := ledger.deadlocks() - deadlocks:
            explored.violations.append(Violation("-", None, f"Postgres had to end {deadlocks} deadlocks"))
    explored.seconds = time.perf_counter() - began_at_s
    return explored


def _outcomes(
    database_url: str, redis_url: str, cases: Sequence[Case], first_id: int, mutant: str | None
) -> list[Outcome]:
    if len(cases) < ENOUGH_TO_SHARE:
        return _part(database_url, redis_url, cases, first_id, mutant)
    shares = [cases[number::PROCESSES] for number in range(PROCESSES)]
    outcomes = []
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = []
        for share in shares:
            running.append(pool.submit(_part, database_url, redis_url, share, first_id, mutant))
            first_id += IDS_PER_RUN * len(share)
        for part in running:
            outcomes += part.result()
    return outcomes


def _part(database_url: str, redis_url: str, cases: Sequence[Case], first_id: int, mutant: str | None) -> list[Outcome]:
    outcomes = run_cases(database_url, redis_url, cases, first_id=first_id, mutant=mutant)
    return [(played.case, played.died_at, wrong) for played, wrong in outcomes]


def _counted(outcomes: Sequence[Outcome]) -> Exploration:
    explored = Exploration()
    for case, died_at, wrong in outcomes:
        if case.crash is None:
            explored.orders += 1
        elif died_at is None:
            explored.spared += 1
        else:
            explored.crashes += 1
        crash = None if case.crash is None else str(case.crash)
        explored.violations += [Violation(case.code, crash, what) for what in wrong]
    return explored


def replay(database_url: str, redis_url: str, case: Case, *, mutant: str | None = None) -> tuple[Played, list[str]]:
    """One case again, with its trace, and what is wrong."""
    with closing(Ledger(database_url)) as ledger:
        if mutant is not None:
            ledger.run(MUTANTS[mutant].schema)
        first_id = ledger.first_id()
    (outcome,) = run_cases(database_url, redis_url, [case], first_id=first_id, mutant=mutant)
    return outcome


def run_cases(
    database_url: str, redis_url: str, cases: Sequence[Case], *, first_id: int, mutant: str | None = None
) -> list[tuple[Played, list[str]]]:
    """Each case as it went, and what is wrong with it."""
    with ExitStack() as stack:
        ledger = stack.enter_context(closing(Ledger(database_url)))
        stack.enter_context(mutated(mutant))
        ids = range(first_id, first_id + IDS_PER_RUN * len(cases), IDS_PER_RUN)
        casts = [SCENES[case.scene](id_, case.handlers) for case, id_ in zip(cases, ids, strict=True)]
        ledger.seed(casts)
        watch = stack.enter_context(closing(Watch(database_url, redis_url)))
        plays: list[Played] = []
        for guard in GUARDS:
            servers = Servers(
                database_url=database_url, database_port=ledger.port, redis_url=None if guard == "row" else redis_url
            )
            mine = [(case, cast) for case, cast in zip(cases, casts, strict=True) if case.guard == guard]
            deaths = sum(case.crash is not None for case, _ in mine)
            with crew(servers, spare=min(SPARE_HANDLERS, deaths - 1)) as handlers:
                stepper = Stepper(watch, handlers.reports)
                plays += [handlers.play(stepper, case, cast) for case, cast in mine]
        tables = ledger.read([played.cast for played in plays])
        return [(played, judge(played, table)) for played, table in zip(plays, tables, strict=True)]


class Crew:
    """Handlers that are ready, and others that get ready meanwhile, to take the place of those that die."""

    def __init__(self, servers: Servers, *, spare: int) -> None:
        self.reports: SimpleQueue[Report] = SimpleQueue()
        self._servers = servers
        self._spare = spare
        self._handlers: list[Handler] = []
        self._all: list[Handler] = []

    def play(self, stepper: Stepper, case: Case, cast: Cast) -> Played:
        """One case. Whoever has died in it, or got stuck, is replaced."""
        wanted = case.handlers + (case.crash is not None)
        while len(self._handlers) < wanted + (self._spare if case.crash else 0):
            self._handlers.append(self._new())
        ready = self._handlers[:wanted]
        for handler in ready:
            handler.is_ready.wait()
            if handler.failure is not None:
                raise StepperError(f"a handler could not be made ready: {handler.failure!r}") from handler.failure
        played = stepper.play(case, cast, ready[: case.handlers], ready[-1] if case.crash else None)
        if played.is_stuck:
            self._handlers.clear()
        elif played.died_at is not None:
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
def crew(servers: Servers, *, spare: int) -> Iterator[Crew]:
    """Handlers for a series of cases; gone afterwards."""
    made = Crew(servers, spare=spare)
    try:
        yield made
    finally:
        made.close()
