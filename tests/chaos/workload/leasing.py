"""Programs in any language: a lease over HTTP guards a register in Postgres, which checks the fencing token itself."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import psycopg2

from tests.chaos.history import History, now_ns
from tests.chaos.workload.client import Answer, Client
from tests.chaos.workload.config import Config
from tests.chaos.workload.people import SERVICE_USER

TTL_MS = 700
WAIT_MS = 1500
PAUSE_S = 0.1
FORGETS = 0.08  # of the leases are never given back, as by a client that dies
EXTENDS = 0.4

FENCED = "UPDATE chaos_register SET fence = %s, value = %s, op = %s WHERE name = %s AND fence <= %s"
UNFENCED = "UPDATE chaos_register SET fence = %s, value = %s, op = %s WHERE name = %s AND %s IS NOT NULL"
LOG = "INSERT INTO chaos_register_log (name, fence, op, accepted) VALUES (%s, %s, %s, %s)"


class LeaseClient:
    """One such program: takes a lease, writes under it, perhaps extends it, gives it back, again and again."""

    def __init__(
        self, client: Client, config: Config, history: History, threads: ThreadPoolExecutor, *, number: int
    ) -> None:
        self._client = client
        self._config = config
        self._history = history
        self._threads = threads
        self._who: dict[str, Any] = {"i": f"http-{number}", "life": 1}
        self._rng = random.Random(f"{config.seed}/lease/{number}")
        self._writes = 0

    async def run(self, stopping: asyncio.Event) -> None:
        """Until the stop."""
        while not stopping.is_set():
            await self._turn(self._rng.choice(self._config.jobs))
            await asyncio.sleep(self._rng.uniform(0, PAUSE_S))

    async def _turn(self, name: str) -> None:
        leases = f"/v1/locks/{quote(name, safe='')}/leases"
        taken = await self._ask("POST", leases, "lease", name, body={"ttl_ms": TTL_MS, "wait_ms": WAIT_MS})
        if taken.kind != "ok":
            return
        fence, lease = taken.body["fencing_token"], f"{leases}/{quote(taken.body['lease_id'], safe='')}"
        if _is_over(taken):
            await self._write(name, fence)  # it has heard of its lease too late, and does not know
            return
        self._point("acquired", name, fence, until=_end_of(taken))
        await self._write(name, fence)
        if self._rng.random() < EXTENDS:
            await self._extend(lease, name, fence)
        if self._rng.random() < self._config.oversleeps:
            await asyncio.sleep(TTL_MS / 1000 * self._rng.uniform(1.0, 1.6))
            if self._rng.random() < 0.5:
                await self._extend(lease, name, fence)
            await self._write(name, fence)
        if self._rng.random() >= FORGETS:
            self._point("releasing", name, fence)
            await self._ask("DELETE", lease, "finish", name)

    async def _extend(self, lease: str, name: str, fence: int) -> None:
        extended = await self._ask("PUT", lease, "extend", name, body={"ttl_ms": TTL_MS})
        if extended.kind == "ok" and not _is_over(extended):
            self._point("extended", name, fence, until=_end_of(extended))

    async def _ask(self, method: str, path: str, f: str, name: str, **more: Any) -> Answer:
        instance = self._rng.choice(list(self._client.base_urls))
        return await self._client.ask(method, path, caller=SERVICE_USER, instance=instance, f=f, name=name, **more)

    def _point(self, p: str, name: str, fence: int, **more: int) -> None:
        self._history.write("point", p=p, **self._who, name=name, fence=fence, **more)

    async def _write(self, name: str, fence: int) -> None:
        if self._config.register == "none":
            return
        self._writes += 1
        op = f"{self._who['i']}-w{self._writes}"
        self._history.write("invoke", op=op, f="write", name=name, fence=fence)
        statement = UNFENCED if self._config.register == "unfenced" else FENCED
        try:
            accepted = await asyncio.get_running_loop().run_in_executor(
                self._threads, _written, self._config.database_url, statement, name, fence, op
            )
        except psycopg2.Error as error:
            self._history.write("unknown", op=op, reason=type(error).__name__)
        else:
            if accepted:
                self._history.write("ok", op=op, status=200, fence=fence, name=name)
            else:
                self._history.write("refused", op=op, status=409, code="stale", charged=False)


def _end_of(answer: Answer) -> int:
    """When the lease that was given or extended is over (ns), counted from when it was asked for."""
    return answer.asked_at + TTL_MS * 1_000_000


def _is_over(answer: Answer) -> bool:
    return now_ns() >= _end_of(answer)


def _written(database_url: str, statement: str, name: str, fence: int, op: str) -> bool:
    """Whether the register took it; the log's order is the register's, whose row is locked until both are committed."""
    session = psycopg2.connect(database_url, application_name="register", connect_timeout=2)
    try:
        with session, session.cursor() as cursor:
            cursor.execute(statement, (fence, f"{name} {now_ns()}", op, name, fence))
            accepted = cursor.rowcount == 1
            cursor.execute(LOG, (name, fence, op, accepted))
        return accepted
    finally:
        session.close()
