"""Faults of Postgres, on a real one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg2
import pytest
from psycopg2.errors import LockNotAvailable, QueryCanceled

from tests.chaos.faults import KINDS, FaultMissed
from tests.chaos.faults.postgres import IDLE, IN_STATEMENT
from tests.chaos.small_world import SmallWorld, ask, in_thread
from tests.harness import wait_until


@pytest.fixture
async def fire(world: SmallWorld) -> Callable[..., Any]:
    """Fires a fault at the first instance."""

    def fire(name: str, **parameters: Any) -> Any:
        return asyncio.ensure_future(KINDS[name].run(world, parameters, world.instances[1]))

    return fire


async def sessions(world: SmallWorld) -> tuple[Any, Any]:
    """The first instance's, and the second's."""
    return await in_thread(world.instances[1].session), await in_thread(world.instances[2].session)


def is_lost(session: psycopg2.extensions.connection) -> bool:
    """Whether the session is gone."""
    try:
        ask(session, "SELECT 1")
    except (psycopg2.OperationalError, psycopg2.InterfaceError):
        return True
    return False


def logged_since(world: SmallWorld, size: int) -> str:
    """What Postgres has logged from here on."""
    return world.ground.postgres.log.read_bytes()[size:].decode()


def log_size(world: SmallWorld) -> int:
    """How much it has logged."""
    return world.ground.postgres.log.stat().st_size


async def test_a_terminated_instance_has_lost_its_sessions_and_no_other(
    world: SmallWorld, fire: Callable[..., Any]
) -> None:
    theirs, anothers = await sessions(world)
    await fire("terminate_backend")
    assert await in_thread(is_lost, theirs)
    assert not await in_thread(is_lost, anothers)
    theirs.close()
    anothers.close()


@pytest.mark.parametrize("name", ["terminate_backend", "kill_backend"])
async def test_without_a_session_it_is_missed(fire: Callable[..., Any], name: str) -> None:
    with pytest.raises(FaultMissed, match="session"):
        await fire(name)


async def test_a_cancelled_statement_fails_and_its_session_lives(world: SmallWorld, fire: Callable[..., Any]) -> None:
    theirs, anothers = await sessions(world)
    running = asyncio.ensure_future(in_thread(ask, theirs, "SELECT pg_sleep(60)"))
    await fire("cancel_backend", lasts_s=0.1)
    with pytest.raises(QueryCanceled):
        await running
    assert not await in_thread(is_lost, theirs)
    theirs.close()
    anothers.close()


async def test_a_killed_backend_ends_every_session_and_postgres_recovers(
    world: SmallWorld, fire: Callable[..., Any]
) -> None:
    both = await sessions(world)
    pid, size = world.ground.postgres.pid, log_size(world)
    await fire("kill_backend")
    assert [await in_thread(is_lost, session) for session in both] == [True, True]
    assert "all server processes terminated; reinitializing" in logged_since(world, size)
    assert world.ground.postgres.pid == pid
    await in_thread(world.check_whole)
    for session in both:
        session.close()


@pytest.mark.parametrize("name", ["postgres_quit", "postgres_kill"])
async def test_postgres_comes_back_from_its_log(world: SmallWorld, fire: Callable[..., Any], name: str) -> None:
    both = await sessions(world)
    pid, size = world.ground.postgres.pid, log_size(world)
    await fire(name)
    assert [await in_thread(is_lost, session) for session in both] == [True, True]
    assert "database system was not properly shut down; automatic recovery" in logged_since(world, size)
    assert world.ground.postgres.pid != pid
    await in_thread(world.check_whole)
    for session in both:
        session.close()


@pytest.mark.parametrize(("name", "mode"), [("row_sitter", IDLE), ("row_sitter", IN_STATEMENT), ("lock_timeout", IDLE)])
async def test_a_sitter_has_the_row_until_it_dies(
    world: SmallWorld, fire: Callable[..., Any], name: str, mode: str
) -> None:
    with closing(await in_thread(world.instances[1].session)) as session:
        sitting = fire(name, mode=mode, lasts_s=0.2)
        await in_thread(wait_until, lambda: not _can_be_locked(world, session))
        assert not sitting.done()
        await sitting
        assert await in_thread(_can_be_locked, world, session)


def _can_be_locked(world: SmallWorld, session: psycopg2.extensions.connection) -> bool:
    try:
        ask(session, "SET lock_timeout = 20")  # which a table's lock heeds too, NOWAIT being for rows only
        ask(session, "SELECT id FROM appointment_info WHERE id = %s FOR UPDATE", world.appointment_id)
    except LockNotAvailable:
        return False
    return True


async def test_a_sitter_that_finds_the_row_taken_is_missed(
    world: SmallWorld, fire: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.chaos.faults.strangers.LOCK_WAIT_MS", 50)
    with closing(await in_thread(world.instances[1].session)) as session:
        await in_thread(ask, session, "BEGIN; LOCK TABLE appointment_info")
        with pytest.raises(FaultMissed, match="lock timeout"):
            await fire("row_sitter", mode=IDLE, lasts_s=0.1)


async def test_a_storm_makes_many_checkpoints(world: SmallWorld, fire: Callable[..., Any]) -> None:
    with closing(await in_thread(world.instances[1].session)) as session:
        counting = "SELECT num_requested FROM pg_stat_checkpointer"
        ((before,),) = await in_thread(ask, session, counting)
        await fire("checkpoint", lasts_s=0.2)
        await in_thread(wait_until, lambda: ask(session, counting)[0][0] > before)


async def test_while_every_session_is_taken_there_is_none_to_be_had(
    world: SmallWorld, fire: Callable[..., Any]
) -> None:
    exhausted = fire("connections_exhausted", lasts_s=0.3)
    await in_thread(wait_until, lambda: _is_full(world))
    assert not exhausted.done()
    await exhausted
    await in_thread(world.check_whole)


def _is_full(world: SmallWorld) -> bool:
    try:
        world.instances[1].session().close()
    except psycopg2.OperationalError as error:
        return "too many clients" in str(error)
    return False
