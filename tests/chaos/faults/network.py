"""Faults of one instance's connections, made by the proxies that they lead through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from random import Random
from typing import Any

from tests.chaos.faults.kinds import (
    Draw,
    Fault,
    FaultKind,
    FaultMissed,
    InstanceHandle,
    Run,
    World,
    draw_lasting,
    draw_nothing,
)
from tests.chaos.proxy import ChaosProxy, Way

TRAP_WAIT_S = 1.0
COMMIT = b"COMMIT"
ANY_REQUEST = b""
# Only the script that takes free locks has an argument that begins with a tab: what is remembered of its grant.
GRANT = b"\r\n\t"

Spell = Callable[[ChaosProxy, Fault], AbstractContextManager[None]]  # how a proxy is while a fault lasts
SERVERS = ("redis", "database")


@contextmanager
def _delayed(proxy: ChaosProxy, fault: Fault) -> Iterator[None]:
    try:
        for way in Way:
            proxy.delay(way, fault["delay_ms"] / 1000)
        yield
    finally:
        for way in Way:
            proxy.delay(way, 0.0)


@contextmanager
def _refused(proxy: ChaosProxy, fault: Fault) -> Iterator[None]:
    try:
        proxy.refuse()
        proxy.cut()
        yield
    finally:
        proxy.accept()


def _held(*ways: Way) -> Spell:
    @contextmanager
    def held(proxy: ChaosProxy, fault: Fault) -> Iterator[None]:
        try:
            for way in ways:
                proxy.hold(way)
            yield
        finally:
            for way in ways:
                proxy.let_through(way)

    return held


def _proxy_of(target: InstanceHandle, server: str) -> ChaosProxy:
    return target.redis if server == "redis" else target.database


def _lasting(server: str, spell: Spell) -> Run:
    async def run(world: World, fault: Fault, target: InstanceHandle) -> None:
        with spell(_proxy_of(target, server), fault):
            await asyncio.sleep(fault["lasts_s"])

    return run


def _cutting(server: str) -> Run:
    async def run(world: World, fault: Fault, target: InstanceHandle) -> None:
        if not _proxy_of(target, server).cut():
            raise FaultMissed(f"the instance has no connection to its {server}")

    return run


# A trap is laid before the first wait, so that the instance cannot go on without meeting it.


async def lose_commit_reply(world: World, fault: Fault, target: InstanceHandle) -> None:
    """The next COMMIT is done, and its connection gone before the answer."""
    await _sprung(target.database.lose_reply_once(at=COMMIT), "COMMIT")


async def lose_commit_request(world: World, fault: Fault, target: InstanceHandle) -> None:
    """The next COMMIT is not done, since its connection is gone before."""
    await _sprung(target.database.lose_request_once(at=COMMIT), "COMMIT")


async def lose_redis_reply(world: World, fault: Fault, target: InstanceHandle) -> None:
    """The next command, or the next that asks for a free lock, is done, and its connection gone before the answer."""
    of_grant = fault.get("of") == "grant"
    trap = target.redis.lose_reply_once(at=GRANT if of_grant else ANY_REQUEST)
    await _sprung(trap, "request for a free lock" if of_grant else "command for Redis")


async def _sprung(trap: asyncio.Future[None], what: str) -> None:
    try:
        await asyncio.wait_for(trap, TRAP_WAIT_S)
    except TimeoutError:
        raise FaultMissed(f"no {what} came within {TRAP_WAIT_S:g} s") from None


def draw_delay(rng: Random, lease_ttl_s: float) -> dict[str, Any]:
    """Each way so much, and how long."""
    return {"delay_ms": round(rng.uniform(5.0, 150.0), 1), "lasts_s": round(rng.uniform(0.2, 1.2), 3)}


def draw_command(rng: Random, lease_ttl_s: float) -> dict[str, Any]:
    """Which command's answer is lost."""
    return {"of": rng.choice(("any", "grant"))}


def _kinds_of(server: str) -> Iterator[FaultKind]:
    silence = draw_lasting(0.1, 1.2)
    of_all: tuple[tuple[str, str, Run, Draw], ...] = (
        ("link_delay", "everything arrives up to 150 ms later, each way", _lasting(server, _delayed), draw_delay),
        ("link_cut", "every connection is reset", _cutting(server), draw_nothing),
        ("link_hold", "silence both ways, connections open", _lasting(server, _held(*Way)), silence),
        (
            "one_way_hold_requests",
            "requests do not arrive, and answers do",
            _lasting(server, _held(Way.REQUESTS)),
            silence,
        ),
        (
            "one_way_hold_replies",
            "requests arrive, and answers do not",
            _lasting(server, _held(Way.REPLIES)),
            silence,
        ),
        ("link_refuse", "every connection is reset and new ones are refused", _lasting(server, _refused), silence),
    )
    for name, does, run, draw in of_all:
        yield FaultKind(
            name=f"{name}_{server}",
            scope=f"link:<i>:{server}",
            does=f"Between one instance and its {server}: {does}.",
            run=run,
            draw=draw,
            ambient=True,
        )


KINDS = (
    *[kind for server in SERVERS for kind in _kinds_of(server)],
    FaultKind(
        name="lose_commit_reply",
        scope="link:<i>:database",
        does="The instance's next COMMIT goes through, and its answer is lost with the connection.",
        run=lose_commit_reply,
        targeted=True,
        lets_go=True,
    ),
    FaultKind(
        name="lose_commit_request",
        scope="link:<i>:database",
        does="The connection of the instance's next COMMIT is reset before Postgres hears of it.",
        run=lose_commit_request,
        targeted=True,
        lets_go=True,
    ),
    FaultKind(
        name="lose_redis_reply",
        scope="link:<i>:redis",
        does="The instance's next command for Redis, or next grant, is done, and its answer lost with the connection.",
        run=lose_redis_reply,
        draw=draw_command,
        targeted=True,
        lets_go=True,
    ),
)
