"""The process of all clients.

Standard input: {"burst": entries}, and {"stop": true} or its end, which ends it once every answer is there.
"""

from __future__ import annotations

import asyncio
import json
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

THREADS = 6
DONE = b"done"


async def run(config: Config) -> None:
    """Everything, until the stop."""
    history = History(Path(config.history))
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    )
    base_urls = {int(number): url for number, url in config.base_urls.items()}
    with front_in(Path(config.front)) as front, ThreadPoolExecutor(THREADS) as threads:
        client = Client(session, history, base_urls, jwt_secret=config.jwt_secret)
        entrants = Entrants(client, config, front, threads)
        stopping = entrants.stopping
        async with session, asyncio.TaskGroup() as tasks:
            for number in range(1, config.clients + 1):
                tasks.create_task(entrants.client(number))
            for number in range(1, config.lease_clients + 1):
                tasks.create_task(LeaseClient(client, config, history, threads, number=number).run(stopping))
            tasks.create_task(grant_until(stopping, client, config))
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


def work(config_path: Path) -> None:
    """The whole of it; DONE on standard output when it has ended in order."""
    wait_politely()
    uvloop.run(run(Config.load(config_path)))
    sys.stdout.buffer.write(DONE)
    sys.stdout.buffer.flush()
