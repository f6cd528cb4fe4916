"""`python -m tests.chaos.interleave`: exit 0 when everything held, 1 when something did not, 2 when it cannot look."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import redis
from sqlalchemy.exc import SQLAlchemyError

from db.errors import DatabaseError
from db.events import Committed
from db.migrate import migrate
from service.child_process import EmbeddedError
from tests.bench.ground import shared_servers

from .exploring import Exploration, explore, replay
from .mutants import MUTANTS
from .orders import DEATHS, Case, parse_case
from .scenes import SCENES
from .stepper import Played, Seen
from .watch import StepperError

SHOWN_VIOLATIONS = 5
CANNOT_LOOK = (StepperError, EmbeddedError, OSError, DatabaseError, psycopg2.Error, SQLAlchemyError, redis.RedisError)


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    case = _case(parser, options)
    try:
        with _servers(options) as (database_url, redis_url):
            if case is not None:
                return _tell_replay(*replay(database_url, redis_url, case, mutant=options.mutant))
            explored = explore(
                database_url,
                redis_url,
                handlers=options.handlers,
                budget=options.budget,
                seed=options.seed,
                crash=options.crash,
                mutant=options.mutant,
            )
            return _tell(explored, options.mutant)
    except CANNOT_LOOK as error:
        print(f"could not be stepped through: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.interleave", description=sys.modules[__package__].__doc__
    )
    parser.add_argument("--handlers", type=int, choices=(2, 3), default=2)
    parser.add_argument("--budget", type=int, metavar="N", help="orders a scene, drawn; default: all of 2, 100 of 3")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--replay", metavar="ORDER", help="one case: GUARD/SCENE/ORDER or GUARD/SCENE/NUMBER")
    points = sorted({point for deaths in DEATHS.values() for point in deaths})
    parser.add_argument("--crash", metavar="POINT", help=f"only deaths at this point ({', '.join(points)})")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="break the transaction first, to see it found")
    parser.add_argument("--database-url", help="an own, empty database; with --redis-url; default: embedded servers")
    parser.add_argument("--redis-url")
    return parser


def _case(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Case | None:
    if (options.database_url is None) != (options.redis_url is None):
        parser.error("--database-url and --redis-url go together")
    if options.replay is None:
        if options.crash is not None and not any(options.crash in deaths for deaths in DEATHS.values()):
            parser.error(f"nobody can die at {options.crash}")
        return None
    try:
        return parse_case(options.replay, options.crash, list(SCENES))
    except ValueError as error:
        parser.error(str(error))


@contextmanager
def _servers(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Migrated."""
    if options.database_url is not None:
        migrate(options.database_url)
        yield options.database_url, options.redis_url
        return
    with tempfile.TemporaryDirectory(prefix="interleave-") as folder, shared_servers(Path(folder)) as urls:
        migrate(urls[0])
        yield urls


def _tell(explored: Exploration, mutant: str | None) -> int:
    print(
        f"{explored.orders:,} orders and {explored.crashes:,} deaths ({explored.spared:,} more did not come to theirs)"
        f" in {explored.seconds:.1f} s: {len(explored.violations):,} violations"
    )
    again = "" if mutant is None else f" --mutant {mutant}"
    for violation in explored.violations[:SHOWN_VIOLATIONS]:
        crash = "" if violation.crash is None else f" --crash {violation.crash}"
        print(f"  {violation.what}\n    python -m tests.chaos.interleave --replay {violation.order}{crash}{again}")
    if len(explored.violations) > SHOWN_VIOLATIONS:
        print(f"  and {len(explored.violations) - SHOWN_VIOLATIONS:,} more")
    return 1 if explored.violations else 0


def _tell_replay(played: Played, wrong: Sequence[str]) -> int:
    for seen in played.trace:
        print(f"{seen.step:>4}  {'      ' * 3 * seen.handler}{seen.point}{_detail(seen)}")
    for part in played.parts:
        for answer in part.answers:
            print(f"handler {part.number}: {answer.outcome}, charge {answer.charge_id}, payer {answer.payer_id}")
    for what in wrong:
        print(f"VIOLATION: {what}")
    return 1 if wrong else 0


def _detail(seen: Seen) -> str:
    if isinstance(seen.event, Committed):
        return f" ({seen.event.charges} charged)"
    token = getattr(seen.event, "fencing_token", None)
    return "" if token is None else f" (token …{token % 1_000_000:06})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
