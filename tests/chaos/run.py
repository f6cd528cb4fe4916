"""One run: a ground, instances, clients, the faults of a schedule, and everything that happened in one history."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import random
import secrets
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg2
import redis
import sqlalchemy as sa

from tests.chaos.clients import Clients
from tests.chaos.history import History
from tests.chaos.instance import LOCK_AND_ROW, Plan
from tests.chaos.leftovers import threads_too_many, write_left, write_snapshot, write_tables
from tests.chaos.lives import InstanceHandle, Link, Lives, LivesError
from tests.chaos.mutants import MUTANTS
from tests.chaos.nemesis import Nemesis, quietly
from tests.chaos.nursery import Nursery
from tests.chaos.points import HARNESS, stalls_written
from tests.chaos.proxy import ChaosProxy
from tests.chaos.schedule import Schedule
from tests.chaos.workload.config import MIX, Config
from tests.chaos.workload.people import Appointments, Front, front_in, seed

SNAPSHOT_PAUSE_S = 0.5
RATE = 450.0


class RunError(Exception):
    """The run itself could not be made; the message is one line."""


@dataclass(slots=True)
class World:
    """What faults may lay hands on."""

    ground: Any
    lease_ttl_s: float
    instances: dict[int, InstanceHandle]
    rng: random.Random
    appointments: Appointments
    front: Front
    clients: Clients | None = None

    def hot_appointments(self) -> list[int]:
        """Those that crowds enter next."""
        front = self.front.get()
        return list(self.appointments.hot[front : front + 4])

    def burst(self, entries: int) -> None:
        """So many more entries at once."""
        if self.clients is not None:
            self.clients.burst(entries)


async def run(
    schedule: Schedule, ground: Any, nursery: Nursery, folder: Path, history_path: Path, *, rate: float = RATE
) -> None:
    """Runs the schedule on a ground that is migrated and empty. Raises RunError."""
    history = History(history_path)
    history.write("run", **_facts(schedule))
    history.write("schedule", faults=schedule.faults)
    appointments = Appointments.for_duration(schedule.duration_s)
    try:
        await asyncio.to_thread(seed, ground.database_url, appointments)
        with front_in(folder / "front") as front:
            await _Running(schedule, ground, nursery, folder, history, front, rate=rate).run()
    except (LivesError, psycopg2.Error, redis.RedisError, OSError) as error:
        raise RunError(f"{type(error).__name__}: {error}".strip().split("\n")[0]) from error
    finally:
        history.write("end", why="over")
        history.close()


class _Running:
    def __init__(
        self,
        schedule: Schedule,
        ground: Any,
        nursery: Nursery,
        folder: Path,
        history: History,
        front: Front,
        *,
        rate: float,
    ) -> None:
        self._schedule = schedule
        self._nursery = nursery
        self._ground = ground
        self._folder = folder
        self._history = history
        self._rate = rate
        appointments = Appointments.for_duration(schedule.duration_s)
        self._world = World(ground, schedule.lease_ttl_s, {}, random.Random(schedule.seed), appointments, front)
        self._nemesis = Nemesis(schedule, history, self._world)
        self._lives = Lives(
            nursery, folder, history, self._nemesis, redis_port=_port_of(getattr(ground, "valkey", None))
        )
        self._proxies: list[ChaosProxy] = []

    async def run(self) -> None:
        """From the first fork to the last look."""
        try:
            plan = await self._planned()
            await self._lives.start(
                plan, mutant=self._schedule.mutant, environment=getattr(self._ground, "instance_environment", {})
            )
            with closing(self._clients(plan)) as clients:
                await self._under_faults(clients)
        finally:
            await self._lives.stop()
            for proxy in self._proxies:
                await proxy.close()

    async def _under_faults(self, clients: Clients) -> None:
        self._world.clients = clients
        loop = asyncio.get_running_loop()
        watching, snapshots = loop.create_task(self._watch()), loop.create_task(self._snapshots())
        await self._nemesis.run(self._schedule.duration_s)
        for handle in self._world.instances.values():
            handle.thaw()
        self._history.write("healing")
        await asyncio.sleep(self._schedule.quiet_leases * self._schedule.lease_ttl_s)
        await quietly(snapshots)
        await quietly(watching)
        if clients.ended:
            raise RunError(f"the clients have ended; see {self._folder / 'workload.log'}")
        if not await clients.stop():
            raise RunError(f"the clients did not end in order; see {self._folder / 'workload.log'}")
        await self._look_at_the_end()
        if self._nemesis.errors:
            raise RunError(f"a fault could not be made: {self._nemesis.errors[0]}")

    async def _look_at_the_end(self) -> None:
        threads = threads_too_many(self._lives.living())
        await asyncio.gather(*[handle.end() for handle in self._world.instances.values()])
        processes = self._lives.living()
        database_url = self._ground.database_url
        redis_url = self._ground.redis_url if _port_of(getattr(self._ground, "valkey", None)) else None
        await asyncio.to_thread(
            write_left,
            self._history,
            database_url,
            redis_url,
            processes=processes,
            threads=threads,
            settle_s=self._schedule.settle_s,
        )
        await asyncio.to_thread(write_tables, self._history, database_url)

    async def _planned(self) -> Plan:
        own: dict[str, dict[str, str]] = {}
        for number in range(1, self._schedule.instances + 1):
            link = await self._link()
            self._world.instances[number] = self._lives.add(number, link)
            own[str(number)] = {
                "CHARGEONCE_DATABASE_URL": _through(self._ground.database_url, link.database),
                "CHARGEONCE_REDIS_URL": _through(self._ground.redis_url, link.redis),
            }
        return Plan(
            history=str(self._history.path),
            harness=self._lives.socket_path,
            guard=self._schedule.guard,
            log_folder=str(self._folder),
            settings=_settings(self._schedule, self._folder) | getattr(self._ground, "settings", {}),
            own_settings=own,
        )

    async def _link(self) -> Link:
        """Proxies of its own, where there is one server to lead to."""
        database = await self._proxy(sa.make_url(self._ground.database_url).port)
        valkey = getattr(self._ground, "valkey", None)
        return Link(database=database, redis=None if valkey is None else await self._proxy(valkey.port))

    async def _proxy(self, port: int | None) -> ChaosProxy:
        proxy = await ChaosProxy.start("127.0.0.1", port or 5432)
        self._proxies.append(proxy)
        return proxy

    def _clients(self, plan: Plan) -> Clients:
        schedule = self._schedule
        config = Config(
            history=str(self._history.path),
            front=str(self._folder / "front"),
            base_urls={str(number): handle.base_url for number, handle in self._world.instances.items()},
            database_url=self._ground.database_url,
            redis_url=self._ground.redis_url if schedule.guard == LOCK_AND_ROW and self._proxied_redis() else None,
            jwt_secret=plan.settings["CHARGEONCE_JWT_SECRET"],
            seed=schedule.seed,
            duration_s=schedule.duration_s,
            clients=schedule.clients,
            rate=self._rate,
            lease_ttl_s=schedule.lease_ttl_s,
            mix=schedule.mix or MIX,
            lease_clients=schedule.lease_clients,
            oversleeps=schedule.oversleeps,
            register="unfenced" if schedule.mutant and MUTANTS[schedule.mutant].register_unfenced else "fenced",
        )
        return Clients(self._nursery, self._folder, config)

    def _proxied_redis(self) -> bool:
        return getattr(self._ground, "valkey", None) is not None

    async def _watch(self) -> None:
        """The proxies are in this loop: when it stands still, everybody waits for their servers."""
        async for _ in stalls_written(self._history, {"i": HARNESS, "life": 1}):
            pass

    async def _snapshots(self) -> None:
        while True:
            with contextlib.suppress(psycopg2.Error):  # a fault has the database now
                await asyncio.to_thread(write_snapshot, self._history, self._ground.database_url)
            await asyncio.sleep(SNAPSHOT_PAUSE_S)


def _settings(schedule: Schedule, folder: Path) -> dict[str, str]:
    """What every instance is told; the rest is the product's own default."""
    settings = {
        "LEASE_TTL_S": schedule.lease_ttl_s,
        "LOCK_WAIT_S": schedule.lock_wait_s,
        "CHARGE_TIMEOUT_S": 3.0,
        "JWT_SECRET": secrets.token_hex(32),
        "AGORA_APP_ID": secrets.token_hex(16),
        "AGORA_APP_CERTIFICATE": secrets.token_hex(16),
        "AUDIT_INTERVAL_S": 5,
        "DRAIN_TIMEOUT_S": 5,
        "DATA_DIR": folder / "data",
        "LOG_LEVEL": "warning",
    }
    return {f"CHARGEONCE_{name}": str(value) for name, value in settings.items()}


def _through(url: str, proxy: ChaosProxy | None) -> str:
    if proxy is None:
        return url
    return sa.make_url(url).set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)


def _port_of(server: Any) -> int | None:
    return None if server is None else int(server.port)


def _facts(schedule: Schedule) -> dict[str, Any]:
    facts = asdict(schedule)
    del facts["faults"]
    machine = {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }
    return {**facts, "machine": machine}
