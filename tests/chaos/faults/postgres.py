"""Faults of Postgres: its sessions ended, its processes killed, its rows and tables held, its slots and disk taken."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from random import Random
from typing import Any

import psycopg2

from tests.chaos.faults.kinds import (
    Fault,
    FaultKind,
    FaultMissed,
    InstanceHandle,
    World,
    alone_with,
    draw_lasting,
    in_thread,
)
from tests.chaos.faults.strangers import Flood, Sitter
from tests.chaos.ground import PostgresServer
from tests.harness import PATIENCE_S

CONNECT_WAIT_S = 2
IDLE, IN_STATEMENT = "idle", "in a statement"
CANCEL_PAUSE_S = 0.02
CHECKPOINT_PAUSE_S = 0.01
RECOVERY_POLL_S = 0.005
FLOOD_PAUSE_S = 0.01

# A session is an instance's if it comes through the instance's proxy, whatever it calls itself.
THEIRS = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND client_port = ANY(%s)"


@asynccontextmanager
async def _alone(world: World) -> AsyncIterator[PostgresServer]:
    """The server, no other fault's meanwhile. Raises FaultMissed, also for a server that takes no session of ours."""
    async with alone_with(world, "postgres"):
        try:
            yield world.ground.postgres
        except (psycopg2.Error, OSError) as error:
            raise FaultMissed(f"Postgres did not take it: {str(error).strip()}") from error


def ask(server: PostgresServer, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """One statement's rows, in a session of its own. Raises psycopg2.Error."""
    with closing(psycopg2.connect(server.url, connect_timeout=CONNECT_WAIT_S, application_name="faults")) as session:
        session.autocommit = True
        with session.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []


async def terminate_backend(world: World, fault: Fault, target: InstanceHandle) -> None:
    """The target's sessions are ended."""
    async with _alone(world) as server:
        ports = target.database.upstream_ports()
        ended = await in_thread(ask, server, f"SELECT pg_terminate_backend(pid) {THEIRS}", ports)
    if not ended:
        raise FaultMissed("the instance has no session in Postgres")


async def cancel_backend(world: World, fault: Fault, target: InstanceHandle | None) -> None:
    """Whatever statements of instances run are cancelled, again and again."""
    statement = f"SELECT pg_cancel_backend(pid) {THEIRS} AND state = 'active'"
    async with _alone(world) as server:
        cancelled = await _over_and_over(fault, lambda: ask(server, statement, _ports_of_all(world)), CANCEL_PAUSE_S)
    if not cancelled:
        raise FaultMissed("no instance ran a statement")


def _ports_of_all(world: World) -> list[int]:
    return [port for instance in world.instances.values() for port in instance.database.upstream_ports()]


async def checkpoint(world: World, fault: Fault, target: InstanceHandle | None) -> None:
    """One checkpoint after the other."""
    async with _alone(world) as server:
        await _over_and_over(fault, lambda: ask(server, "CHECKPOINT"), CHECKPOINT_PAUSE_S)


async def _over_and_over(fault: Fault, work: Callable[[], list[tuple[Any, ...]]], pause_s: float) -> int:
    """How many rows that were in all."""
    count = 0
    end_at_s = time.monotonic() + fault["lasts_s"]
    while time.monotonic() < end_at_s:
        count += len(await in_thread(work))
        await asyncio.sleep(pause_s)
    return count


async def kill_backend(world: World, fault: Fault, target: InstanceHandle | None) -> None:
    """One session's process is killed; all others are ended by the server, which recovers."""
    async with _alone(world) as server:
        rows = await in_thread(ask, server, f"SELECT pid {THEIRS}", _ports_of_all(world))
        if not rows:
            raise FaultMissed("no instance has a session in Postgres")
        pid = world.rng.choice(sorted(rows))[0]
        await in_thread(_kill_backend, server, pid)


def _kill_backend(server: PostgresServer, pid: int) -> None:
    with closing(psycopg2.connect(server.url, connect_timeout=CONNECT_WAIT_S)) as witness:
        try:
            server.kill_backend(pid)
        except ProcessLookupError as error:
            raise FaultMissed("the session has just ended") from error
        with contextlib.suppress(psycopg2.OperationalError), witness.cursor() as cursor:
            cursor.execute(f"SELECT pg_sleep({PATIENCE_S})")  # the crash ends this session too, and sooner
            raise FaultMissed("Postgres has not noticed")
    _wait_until_it_takes_sessions(server)


def _wait_until_it_takes_sessions(server: PostgresServer) -> None:
    give_up_at_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            ask(server, "SELECT 1")
        except psycopg2.OperationalError:
            if time.monotonic() > give_up_at_s:
                raise
            time.sleep(RECOVERY_POLL_S)
        else:
            return


async def postgres_quit(world: World, fault: Fault, target: InstanceHandle | None) -> None:
    """Ended by SIGQUIT, and started again."""
    await _down_and_up(world, PostgresServer.quit)


async def postgres_kill(world: World, fault: Fault, target: InstanceHandle | None) -> None:
    """Every process killed, and started again."""
    await _down_and_up(world, PostgresServer.kill)


async def _down_and_up(world: World, end: Callable[[PostgresServer], None]) -> None:
    async with _alone(world) as server:
        try:
            await in_thread(end, server)
        finally:
            await in_thread(server.start)


async def row_sitter(world: World, fault: Fault, target: InstanceHandle | None) -> None:
    """A stranger locks a hot appointment's row, and dies in its transaction."""
    appointments = world.hot_appointments()
    if not appointments:
        raise FaultMissed("no appointment is hot now")
    appointment_id = world.rng.choice(appointments)
    lock = f"SELECT id FROM appointment_info WHERE id = {appointment_id:d} FOR UPDATE"
    await _sit(world, fault, lock)


async def lock_timeout(world: World, fault: Fault, target: InstanceHandle | None) -> None:
    """A stranger locks the whole table, longer than anybody waits for a row."""
    await _sit(world, fault, "LOCK TABLE appointment_info IN EXCLUSIVE MODE")


async def _sit(world: World, fault: Fault, lock: str) -> None:
    """Not alone with the server: it may be killed under the sitter."""
    sitter = Sitter(world.ground.postgres)
    try:
        await in_thread(sitter.take, lock)
        if fault["mode"] == IN_STATEMENT:
            sitter.begin_long_statement()
        await asyncio.sleep(fault["lasts_s"])
    except psycopg2.Error as error:
        raise FaultMissed(f"the lock could not be had: {str(error).strip()}") from error
    finally:
        await in_thread(sitter.die)


async def connections_exhausted(world: World, fault: Fault, target: InstanceHandle | None) -> None:
    """Every session that Postgres has to give is taken, also one that becomes free."""
    async with _alone(world) as server:
        flood = Flood(server.port)
        try:
            await in_thread(flood.take_all)
            end_at_s = time.monotonic() + fault["lasts_s"]
            while time.monotonic() < end_at_s:
                await asyncio.sleep(FLOOD_PAUSE_S)
                await in_thread(flood.take_all)  # what others have given back meanwhile
        finally:
            flood.leave()
            await in_thread(_wait_until_it_takes_sessions, server)


def draw_sitting(rng: Random, lease_ttl_s: float) -> dict[str, Any]:
    """What the sitter does as it dies, and when that is."""
    return {"mode": rng.choice((IDLE, IN_STATEMENT)), "lasts_s": round(rng.uniform(0.2, 1.2), 3)}


def draw_table(rng: Random, lease_ttl_s: float) -> dict[str, Any]:
    """Longer than the second for which the product waits for a row."""
    return {"mode": IDLE, "lasts_s": round(rng.uniform(1.05, 1.3), 3)}


KINDS = (
    FaultKind(
        name="terminate_backend",
        scope="link:<i>:database",
        does="pg_terminate_backend of every session of one instance.",
        run=terminate_backend,
        targeted=True,
        ambient=True,
    ),
    FaultKind(
        name="cancel_backend",
        scope="postgres",
        does="pg_cancel_backend of every statement that runs, every 20 ms.",
        run=cancel_backend,
        draw=draw_lasting(0.1, 0.6),
        ambient=True,
    ),
    FaultKind(
        name="kill_backend",
        scope="postgres",
        does="SIGKILL to one session's process: Postgres ends all the others and recovers from its log.",
        run=kill_backend,
        ambient=True,
    ),
    FaultKind(
        name="postgres_quit",
        scope="postgres",
        does="SIGQUIT to Postgres, an immediate shutdown, and a start that recovers from its log.",
        run=postgres_quit,
        ambient=True,
    ),
    FaultKind(
        name="postgres_kill",
        scope="postgres",
        does="SIGKILL to every process of Postgres at once, and a start that recovers from its log.",
        run=postgres_kill,
        ambient=True,
    ),
    FaultKind(
        name="row_sitter",
        scope="postgres",
        does="A stranger locks a hot appointment's row and dies, idle or in mid-statement, without a goodbye.",
        run=row_sitter,
        draw=draw_sitting,
        ambient=True,
    ),
    FaultKind(
        name="lock_timeout",
        scope="postgres",
        does="A stranger locks the table of appointments for longer than anybody waits for a row.",
        run=lock_timeout,
        draw=draw_table,
        ambient=True,
    ),
    FaultKind(
        name="checkpoint",
        scope="postgres",
        does="One CHECKPOINT after the other.",
        run=checkpoint,
        draw=draw_lasting(0.2, 1.0),
        ambient=True,
    ),
    FaultKind(
        name="connections_exhausted",
        scope="postgres",
        does="Strangers take every session that Postgres has to give.",
        run=connections_exhausted,
        draw=draw_lasting(0.3, 1.2),
        ambient=True,
    ),
)
