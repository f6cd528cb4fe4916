"""The process of all clients: `python -m tests.chaos.workload CONFIG`.

Standard input: {"burst": entries}, and {"stop": true} or its end, which ends it once every answer is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import uvloop

from service.workers import wait_politely
from tests.chaos.history import History
from tests.chaos.workload.client import PATIENCE_S, Client
from tests.chaos.workload.config import Config
from tests.chaos.workload.entering import Entrants
from tests.chaos.workload.granting import grant_until
from tests.chaos.workload.leasing import LeaseClient
from tests.chaos.workload.people import front_in

LEASE_CLIENTS = 3
SYNC_PROGRAMS = 2
THREADS = 6
LOOK_S = 0.1


async def run(config: Config, config_path: Path) -> None:
    """Everything, until the stop."""
    history = History(Path(config.history))
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    )
    base_urls = {int(number): f"http://127.0.0.1:{port}" for number, port in config.ports.items()}
    with front_in(Path(config.front)) as front, ThreadPoolExecutor(THREADS) as threads:
        client = Client(session, history, base_urls, jwt_secret=config.jwt_secret)
        entrants = Entrants(client, config, front, threads)
        stopping = entrants.stopping
        async with session, asyncio.TaskGroup() as tasks:
            for number in range(1, config.clients + 1):
                tasks.create_task(entrants.client(number))
            for number in range(1, LEASE_CLIENTS + 1):
                tasks.create_task(LeaseClient(client, config, history, threads, number=number).run(stopping))
            tasks.create_task(grant_until(stopping, client, config))
            if config.redis_url is not None:
                for number in range(1, SYNC_PROGRAMS + 1):
                    tasks.create_task(_keep_running(stopping, config_path, number))
            bursts = tasks.create_task(_obey(entrants))
            await stopping.wait()
            bursts.cancel()


async def _obey(entrants: Entrants) -> None:
    """What the harness says."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    under_way: set[asyncio.Task[None]] = set()
    try:
        while line := await reader.readline():
            said = json.loads(line)
            if "burst" not in said:
                break
            burst = asyncio.get_running_loop().create_task(entrants.burst(said["burst"]))
            under_way.add(burst)
            burst.add_done_callback(under_way.discard)
    finally:
        entrants.stopping.set()
    if under_way:
        await asyncio.wait(under_way, timeout=PATIENCE_S)


async def _keep_running(stopping: asyncio.Event, config_path: Path, number: int) -> None:
    """One synchronous program after the other: each dies some time."""
    while not stopping.is_set():
        program = _sync_program(config_path, number)
        try:
            while program.poll() is None and not stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), LOOK_S)
        finally:
            program.terminate()
            program.wait()


def _sync_program(config_path: Path, number: int) -> subprocess.Popen[bytes]:
    words = ["-m", "tests.chaos.workload.sync_program", str(config_path), str(number)]
    return subprocess.Popen([sys.executable, *words], stdin=subprocess.DEVNULL)


def main() -> None:
    """The command."""
    path = Path(sys.argv[1])
    wait_politely()
    uvloop.run(run(Config.load(path), path))


if __name__ == "__main__":
    main()
