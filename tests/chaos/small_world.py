"""A world for tests of faults: the real servers and proxies, and two processes that do nothing but live."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from random import Random
from typing import Any

import psycopg2

from tests.chaos.ground import Ground
from tests.chaos.proxy import ChaosProxy
from tests.harness import wait_until
from tests.servers.wire import Wire

LEASE_TTL_S = 0.3
LIFE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("ready", flush=True)
while True:
    time.sleep(60)
"""


class SmallInstance:
    """One process at a time, and the proxies of an instance; `ends` are the exit statuses of its lives."""

    def __init__(self, number: int, database: ChaosProxy, redis: ChaosProxy) -> None:
        self.number = number
        self.database = database
        self.redis = redis
        self.ends: list[int] = []
        self._process: asyncio.subprocess.Process

    @property
    def pid(self) -> int:
        """Of the process that it is now."""
        return self._process.pid

    async def begin(self) -> None:
        """A new life."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-S", "-E", "-c", LIFE, stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None
        await self._process.stdout.readline()

    async def end(self, number: signal.Signals) -> None:
        """The end of a life."""
        self._process.send_signal(number)
        self.ends.append(await self._process.wait())

    async def somebody_waits(self, *, within_s: float) -> bool:
        """As InstanceHandle.somebody_waits: it holds nothing."""
        return False

    async def kill(self) -> None:
        """As InstanceHandle.kill."""
        await self.end(signal.SIGKILL)
        await self.begin()

    async def drain(self) -> None:
        """As InstanceHandle.drain."""
        await self.end(signal.SIGTERM)
        await self.begin()

    def freeze(self) -> None:
        """As InstanceHandle.freeze."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """As InstanceHandle.thaw."""
        self._process.send_signal(signal.SIGCONT)

    def stands_still(self) -> bool:
        """Whether its process is stopped."""
        return stands_still(self.pid)

    def redis_client(self) -> Wire:
        """A connection through its proxy, for another thread than the loop's. Raises OSError."""
        return Wire(self.redis.port)

    def session(self) -> psycopg2.extensions.connection:
        """A session through its proxy, for another thread than the loop's. Raises psycopg2.Error."""
        session = psycopg2.connect(
            f"postgresql://chargeonce@127.0.0.1:{self.database.port}/chargeonce?sslmode=disable&connect_timeout=10"
        )
        session.autocommit = True
        return session


class SmallWorld:
    """As the World of a run."""

    def __init__(self, ground: Ground, instances: dict[int, SmallInstance], appointment_id: int) -> None:
        self.ground = ground
        self.instances = instances
        self.lease_ttl_s = LEASE_TTL_S
        self.rng = Random(7)
        self.appointment_id = appointment_id

    def hot_appointments(self) -> list[int]:
        """The only one."""
        return [self.appointment_id]

    def check_whole(self) -> None:
        """Fails when any fault is still to be felt. Blocks."""
        for instance in self.instances.values():
            wait_until(lambda instance=instance: not instance.stands_still(), what="a process that runs")  # type: ignore[misc]
            with instance.redis_client() as client:
                assert client.ask("SET", "whole", instance.number) == "OK"
            with closing(instance.session()) as session:
                ask(session, "SELECT id FROM appointment_info WHERE id = %s FOR UPDATE NOWAIT", self.appointment_id)


@asynccontextmanager
async def small_world(ground: Ground) -> AsyncIterator[SmallWorld]:
    """Two instances on this ground; gone afterwards."""
    ground.turns.clear()  # of an earlier loop
    instances = {}
    for number in (1, 2):
        database = await ChaosProxy.start("127.0.0.1", ground.postgres.port)
        redis = await ChaosProxy.start("127.0.0.1", ground.valkey.port)
        instances[number] = SmallInstance(number, database, redis)
        await instances[number].begin()
    try:
        yield SmallWorld(ground, instances, await in_thread(_appointment, ground))
    finally:
        for instance in instances.values():
            await instance.end(signal.SIGKILL)
            await instance.database.close()
            await instance.redis.close()


def _appointment(ground: Ground) -> int:
    with closing(psycopg2.connect(ground.database_url)) as session:
        session.autocommit = True
        rows = ask(session, "INSERT INTO appointment_info (user_id, invitee_user_id) VALUES (1, 2) RETURNING id")
    return int(rows[0][0])


def ask(session: psycopg2.extensions.connection, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """One statement's rows. Raises psycopg2.Error."""
    with session.cursor() as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []


async def in_thread(work: Callable[..., Any], *arguments: Any) -> Any:
    """Blocking work beside the loop, which runs the proxies."""
    return await asyncio.to_thread(work, *arguments)


def stands_still(pid: int) -> bool:
    """Whether this process is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def is_refused(port: int) -> bool:
    """Whether nobody listens on this port."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False
