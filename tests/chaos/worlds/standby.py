"""A world whose Postgres has a synchronous standby, which takes its place when it dies, and gets one of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import psycopg2

from service.embedded_servers import postgres_binary
from tests.chaos.faults.kinds import Fault, FaultKind, FaultMissed, alone_with, draw_lasting, in_thread
from tests.chaos.faults.kinds import World as Run
from tests.chaos.ground import PostgresServer
from tests.chaos.proxy import ChaosProxy
from tests.chaos.worlds.machine import run
from tests.chaos.worlds.recovery import CONNECT_WAIT_S
from tests.chaos.worlds.special_ground import SpecialGround
from tests.chaos.worlds.world import World, why_nothing
from tests.harness import wait_until

SETTINGS = {
    "synchronous_commit": "on",  # answered is flushed at both
    # A standby that has lost its primary asks for it again at once: until then no COMMIT is answered.
    "wal_retrieve_retry_interval": "50ms",
    "wal_receiver_status_interval": "1s",
}
PROMOTE_WAIT_S = 30


class StandbyGround(SpecialGround):
    """`postgres` is the primary at any time, `standby` the one that follows it; None while there is none.

    `followers`: whatever else than instances' proxies must lead to the primary.
    """

    def __init__(self, folder: Path, *, postgres_settings: Mapping[str, str]) -> None:
        self._settings = {**SETTINGS, **postgres_settings}
        super().__init__(folder, postgres_settings=self._settings)
        self.standby: PostgresServer | None = None
        self.followers: list[ChaosProxy] = []
        self._generation = 0

    def complete(self, stack: ExitStack) -> None:
        """The first standby."""
        stack.callback(self._kill_both)
        self.add_standby()

    def add_standby(self) -> None:
        """A copy of the primary that follows it; from the return on no COMMIT is answered that it does not have."""
        assert self.standby is None, "there is one"
        self._generation += 1
        name = f"standby_{self._generation}"
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        standby = PostgresServer(folder, settings=self._settings)
        self._copy_primary(standby, name)
        self.standby = standby
        standby.start()
        wait_until(lambda: self._state_of(name) == "async", what="a standby that streams")
        _ask(self.postgres, f"ALTER SYSTEM SET synchronous_standby_names = '{name}'", "SELECT pg_reload_conf()")
        wait_until(lambda: self._state_of(name) == "sync", what="a synchronous standby")

    def fail_over(self) -> None:
        """The primary is killed and the standby takes its place: `postgres` is the new one, and takes writes."""
        dead, standby = self.postgres, self.standby
        assert standby is not None, "there is none to take over"
        dead.kill()
        _ask(standby, f"SELECT pg_promote(true, {PROMOTE_WAIT_S})")
        self.postgres, self.standby = standby, None
        shutil.rmtree(dead.folder, ignore_errors=True)

    def _kill_both(self) -> None:
        self.postgres.kill()
        if self.standby is not None:
            self.standby.kill()

    def _copy_primary(self, standby: PostgresServer, name: str) -> None:
        primary = f"host=127.0.0.1 port={self.postgres.port} user=chargeonce application_name={name}"
        options = ["--checkpoint=fast", "--no-sync", "--wal-method=stream", "--write-recovery-conf"]
        run(postgres_binary("pg_basebackup"), "--pgdata", standby.folder, "--dbname", primary, *options)
        owner = self.postgres.folder.stat()
        for path in [*standby.folder.rglob("*"), standby.folder]:
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)

    def _state_of(self, name: str) -> str | None:
        states = _ask(
            self.postgres,
            f"SELECT sync_state FROM pg_stat_replication WHERE application_name = '{name}' AND state = 'streaming'",
        )
        return states[0][0] if states else None


async def postgres_failover(run: Run, fault: Fault, target: object) -> None:
    """The standby takes the killed primary's place, and gets a new standby."""
    ground = run.ground
    assert isinstance(ground, StandbyGround)
    async with alone_with(run, "postgres"):
        if ground.standby is None:
            raise FaultMissed("there is no standby")
        try:
            await in_thread(ground.fail_over)
        finally:
            for proxy in [*(instance.database for instance in run.instances.values()), *ground.followers]:
                proxy.point_at("127.0.0.1", ground.postgres.port)
            if ground.standby is None:
                await in_thread(ground.add_standby)


async def standby_away(run: Run, fault: Fault, target: object) -> None:
    """The standby is killed, and comes back."""
    ground = run.ground
    assert isinstance(ground, StandbyGround)
    async with alone_with(run, "postgres"):
        standby = ground.standby
        if standby is None:
            raise FaultMissed("there is no standby")
        try:
            await in_thread(standby.kill)
            await asyncio.sleep(fault["lasts_s"])
        finally:
            await in_thread(standby.start)


WORLD = World(
    name="standby",
    does="Postgres with a synchronous standby.",
    open=StandbyGround,
    kinds=(
        FaultKind(
            name="postgres_failover",
            scope="postgres",
            does="SIGKILL to every process of the primary; its synchronous standby is promoted, and gets one too.",
            run=postgres_failover,
            ambient=True,
        ),
        FaultKind(
            name="standby_away",
            scope="postgres",
            does="SIGKILL to the synchronous standby: no COMMIT is answered until it is back, up to 1.5 s later.",
            run=standby_away,
            draw=draw_lasting(0.3, 1.5),
            ambient=True,
        ),
    ),
    needs=why_nothing,
)


def _ask(postgres: PostgresServer, *statements: str) -> list[tuple[Any, ...]]:
    """The rows of the last statement."""
    rows: list[tuple[Any, ...]] = []
    with closing(psycopg2.connect(postgres.url, connect_timeout=CONNECT_WAIT_S)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
                with suppress(psycopg2.ProgrammingError):
                    rows = cursor.fetchall()
    return rows
