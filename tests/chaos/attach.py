"""`python -m tests.chaos attach`: the workload and the checkers against a deployment of one's own, faults by the shell.

It makes users and appointments of its own by the API, and looks at theirs alone. What only an instance itself can tell
(the holds of its own locks, its points, takeovers) is not judged; leases over HTTP and python-redis-lock programs are.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shlex
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path

import aiohttp
import psycopg2
import redis
import uvloop
from rich.console import Console

from tests.chaos.arguments import count, natural, positive
from tests.chaos.checks import Verdict, judge
from tests.chaos.clients import Clients
from tests.chaos.deployment import Shell, make_ours, wait_until_alive, write_tables_of
from tests.chaos.history import History, read_history
from tests.chaos.nursery import Nursery
from tests.chaos.report import write_report
from tests.chaos.run import RunError
from tests.chaos.schedule import Schedule
from tests.chaos.standing import Judged
from tests.chaos.telling import tell
from tests.chaos.workload.config import MIX, Config

SECRET = "CHARGEONCE_JWT_SECRET"
ATTACHED = "attached"  # the world that such a history names
QUIET_S = 3.0
PAUSE_S = (1.0, 3.0)  # between two faults
JUDGED = (
    "charged_at_most_once",
    "acknowledged_is_there",
    "refused_not_charged",
    "unknown_is_settled",
    "consume_once_linearizable",
    "balances_conserved",
    "entries_match_answers",
    "holders_do_not_overlap",
    "overlaps_are_explained",
    "fences_rise",
    "alive_after_healing",
)


def main(words: list[str]) -> int:
    """The exit status, as of a run."""
    asked = _parser().parse_args(words)
    secret = os.environ.get(SECRET, "")
    if len(secret) < 32:
        raise RunError(f"{SECRET} must be set to the deployment's secret, with which access tokens are signed")
    shells = [Shell.read(text) for text in asked.fault]
    console = Console()
    with tempfile.TemporaryDirectory(prefix="chaos-attach-") as folder:
        try:
            uvloop.run(_run(asked, Path(folder), secret, shells))
        except (psycopg2.Error, redis.RedisError, aiohttp.ClientError) as error:
            raise RunError(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}") from error
    events = read_history(asked.history)
    schedule = Schedule(seed=asked.seed, instances=len(asked.base_url.split(",")), duration_s=asked.duration_s)
    judged = Judged(schedule, asked.history, events, what_can_be_told(judge(events)))
    tell(console, judged)
    write_report(
        asked.report, events, judged.verdicts, command=shlex.join(["python", "-m", "tests.chaos", "attach", "…"])
    )
    console.print(f"report: {asked.report}", highlight=False)
    return judged.exit_code


def what_can_be_told(verdicts: list[Verdict]) -> list[Verdict]:
    """The verdicts that such a history has the events for: an attached run is asked for no others."""
    return [verdict for verdict in verdicts if verdict.property in JUDGED]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos attach",
        description="Workload and checkers against a deployment. Exit 0: no invariant was"
        " broken, and none that every run is asked for is unknown; 1: one was broken; 2: it could not be run or told."
        f" {SECRET} holds the secret that signs access tokens.",
    )
    parser.add_argument("--base-url", required=True, help="http://host:port of the API; several with commas between")
    parser.add_argument("--database-url", required=True, help="its Postgres; read only")
    parser.add_argument("--redis-url", help="redis://…: runs python-redis-lock programs on the same locks as well")
    parser.add_argument("--duration-s", type=positive, default=60.0)
    parser.add_argument("--seed", type=natural, default=1)
    parser.add_argument("--clients", type=count, default=32)
    parser.add_argument("--rate", type=positive, default=200.0, help="operations a second, at most (200)")
    parser.add_argument("--lease-ttl-s", type=positive, default=2.0, help="the deployment's LEASE_TTL_S (2)")
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="NAME[@SCOPE]=COMMAND",
        help="a shell command that makes a fault and returns when it is over; fired by time, drawn by the seed; SCOPE"
        " is redis where locks or their store may be lost; may be given several times",
    )
    parser.add_argument("--report", type=Path, default=Path("chaos-report.html"))
    parser.add_argument("--history", type=Path, default=Path("chaos-history.jsonl"))
    return parser


async def _run(asked: argparse.Namespace, folder: Path, secret: str, shells: list[Shell]) -> None:
    base_urls = {str(number): url.rstrip("/") for number, url in enumerate(asked.base_url.split(","), 1)}
    await wait_until_alive(base_urls.values())
    with closing(psycopg2.connect(asked.database_url, connect_timeout=5)):
        pass  # so that what is wrong with it is said before anything is made
    rng = random.Random(asked.seed)
    ours = await make_ours(base_urls["1"], secret, duration_s=asked.duration_s, rate=asked.rate)
    asked.history.unlink(missing_ok=True)
    history = History(asked.history)
    history.write(
        "run",
        version=1,
        seed=asked.seed,
        instances=len(base_urls),
        duration_s=asked.duration_s,
        lease_ttl_s=asked.lease_ttl_s,
        world=ATTACHED,
    )
    config = Config(
        history=str(asked.history.resolve()),
        front=str(folder / "front"),
        base_urls=base_urls,
        database_url=asked.database_url,
        redis_url=asked.redis_url,
        jwt_secret=secret,
        seed=asked.seed,
        duration_s=asked.duration_s,
        clients=asked.clients,
        rate=asked.rate,
        lease_ttl_s=asked.lease_ttl_s,
        mix=MIX,
        jobs=ours.jobs,
        register="none",
        sits=False,
        chosen=ours.chosen,
    )
    with Nursery() as nursery, closing(Clients(nursery, folder, config)) as clients:
        await _fire(history, rng, shells, duration_s=asked.duration_s)
        history.write("healing")
        await asyncio.sleep(QUIET_S + 4 * asked.lease_ttl_s)
        if not await clients.stop():
            raise RunError(f"the clients did not end in order: {(folder / 'workload.log').read_text()[-500:]}")
    await asyncio.to_thread(write_tables_of, history, asked.database_url, ours)
    history.write("end", why="over")
    history.close()


async def _fire(history: History, rng: random.Random, shells: list[Shell], *, duration_s: float) -> None:
    """One fault after the other, until the time is over."""
    loop = asyncio.get_running_loop()
    end_s, number = loop.time() + duration_s, 0
    while loop.time() < end_s:
        await asyncio.sleep(min(rng.uniform(*PAUSE_S), max(0.0, end_s - loop.time())))
        if not shells or loop.time() >= end_s:
            continue
        shell, number = rng.choice(shells), number + 1
        history.write("fault", id=number, kind=shell.name, scope=shell.scope, targeted=False)
        status = await _status_of(shell)
        if status:
            history.write("missed", id=number, kind=shell.name, why=f"its command ended with status {status}")
        history.write("healed", id=number, kind=shell.name)


async def _status_of(shell: Shell) -> int:
    process = await asyncio.create_subprocess_shell(
        shell.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return await process.wait()
