"""`python -m tests.bench.budget`: what one entry costs a worker, CPU microseconds by stage, each stage driven alone.

In this process, on real servers, 32 callers at once; HTTP stages get their load from a process of their own. User and
system time of this process only: what the servers use is in the charge bench. Stages do not add up: a batch is larger
when nothing else is to be done, and caches are warmer.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvloop
from aiohttp import web
from rich.console import Console
from rich.table import Table

from db.decisions import ChargeRequest
from service import app as composed
from service.callers import sign_token
from service.entering import EntryRequest, lock_name
from service.listeners import Listeners
from service.metrics_folder import OwnFiles
from service.observe import Metrics, Observer, set_up_logs
from service.openapi import status_of_codes
from service.participants import KnownParticipants
from service.problems import ProblemRunner
from service.settings import Settings, load_settings, metrics_folder
from service.workers import collect_garbage_less_often, wait_politely

from .ground import Ground, shared_ground

CALLERS = 32
IN_PROCESS, OVER_HTTP = 10_000, 20_000
SECRET = "budget" * 8
ANY_TOKEN = 1 << 50

Entrants = Iterator[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Stage:
    """What was driven, and what it cost this process: CPU microseconds each."""

    name: str
    user_us: float
    system_us: float


def main() -> None:
    """Prints the table."""
    wait_politely()
    console = Console(width=None if sys.stdout.isatty() else 120)
    with tempfile.TemporaryDirectory(prefix="chargeonce-budget-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        with shared_ground(Path(folder), users=2000) as ground:
            stages = uvloop.run(_measured(ground))
    table = Table("stage", title="CPU microseconds of a worker", title_justify="left")
    for column in ("user", "system", "together"):
        table.add_column(column, justify="right")
    for stage in stages:
        both = stage.user_us + stage.system_us
        table.add_row(stage.name, f"{stage.user_us:.1f}", f"{stage.system_us:.1f}", f"{both:.1f}")
    console.print(table)


async def _measured(ground: Ground) -> list[Stage]:
    settings = _settings(ground)
    OwnFiles(metrics_folder())
    observer = Observer(Metrics(status_of_codes()), max_resources=12)
    listeners = Listeners(observer.on_lock_event, observer.on_charge_event)
    locker = composed._locker(settings, "budget", listeners)
    charges = composed._charges(settings, listeners)
    charging = composed._charging(settings, charges, observer)
    charged = composed._charged(settings, charges, locker, observer)
    participants = KnownParticipants(charges, size=settings.charged_cache_size)
    entering = composed._entering(settings, locker, charging, charged, participants, observer)
    await locker.open()
    await locker.up_within(5.0)
    appointments = ground.new_appointments(4 * IN_PROCESS + 2)
    ground.settle()
    fresh = iter(list(enumerate(appointments.payer_ids, appointments.first_id)))
    known = list(itertools.islice(fresh, IN_PROCESS))

    async def lock(appointment_id: int, user_id: int) -> None:
        async with locker.hold(lock_name(appointment_id), lease_ttl_s=2.0, wait_s=3.0, request_id="budget") as lease:
            lease.finish()

    async def charge(appointment_id: int, user_id: int) -> None:
        await charging.submit(ChargeRequest(appointment_id, user_id, ANY_TOKEN), None, guarded_by="row_lock")

    async def enter(appointment_id: int, user_id: int) -> None:
        await entering.enter(EntryRequest(appointment_id, user_id, None, "budget"))

    async def mint(appointment_id: int, user_id: int) -> None:
        entering._mint.mint(channel=lock_name(appointment_id), user_id=user_id, now=time.time())

    collect_garbage_less_often()
    try:
        stages = [
            await _driven("lock: hold and finish, with its events counted", lock, known),
            await _driven("charge: batches of up to 32, without a lock", charge, known),
            await _driven("room token", mint, known),
            await _driven("entering, first: lock, charge, token", enter, itertools.islice(fresh, IN_PROCESS)),
            await _driven("entering, charged, but not known here: lock, charge read, token", enter, known),
            await _driven("entering, again: no lock, charge read, token", enter, known),
        ]
        appointment_id, user_id = known[0]
        stages.append(await _over_http("over HTTP: a bare aiohttp handler", _bare(), appointment_id, user_id))
        async with composed.running_instance(settings, instance_id="budget") as instance:
            name = "over HTTP: entering again, all of it"
            stages.append(await _over_http(name, instance.app, appointment_id, user_id))
        return stages
    finally:
        await charged.close()
        await charging.close()
        await locker.close()


def _settings(ground: Ground) -> Settings:
    os.environ.update({name: value for name, value in ground.environment().items() if name.startswith("CHARGEONCE_")})
    keys = {"agora_app_id": "a" * 32, "agora_app_certificate": "b" * 32, "jwt_secret": SECRET}
    return load_settings(**keys)


def _bare() -> web.Application:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 700, headers={"Content-Type": "application/json", "Cache-Control": "no-store"})

    application = web.Application()
    application.router.add_post("/v1/appointments/{appointment_id}/entries", answer)
    return application


async def _driven(name: str, once: Callable[[int, int], Awaitable[None]], entrants: Entrants | list) -> Stage:  # type: ignore[type-arg]
    todo = iter(entrants)

    async def caller() -> None:
        for appointment_id, user_id in todo:
            await once(appointment_id, user_id)

    before = resource.getrusage(resource.RUSAGE_SELF)
    await asyncio.gather(*[caller() for _ in range(CALLERS)])
    return _stage(name, before, IN_PROCESS)


async def _over_http(name: str, application: web.Application, appointment_id: int, user_id: int) -> Stage:
    with tempfile.TemporaryFile("w") as nowhere:
        set_up_logs("info", "json", nowhere)
        runner = ProblemRunner(application, access_log=None, handle_signals=False, handler_cancellation=True)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            token = sign_token(SECRET, user_id=user_id, scopes=(), ttl_s=3600, now=time.time())
            await _load(port, appointment_id, token, OVER_HTTP // 10)
            before = resource.getrusage(resource.RUSAGE_SELF)
            await _load(port, appointment_id, token, OVER_HTTP)
            return _stage(name, before, OVER_HTTP)
        finally:
            await runner.cleanup()


async def _load(port: int, appointment_id: int, token: str, count: int) -> None:
    arguments = [str(port), str(appointment_id), token, str(count), str(CALLERS)]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.bench.budget_load", *arguments)
    if await process.wait() != 0:
        raise RuntimeError("not every answer was a success")


def _stage(name: str, before: resource.struct_rusage, count: int) -> Stage:
    after = resource.getrusage(resource.RUSAGE_SELF)
    return Stage(
        name,
        (after.ru_utime - before.ru_utime) / count * 1e6,
        (after.ru_stime - before.ru_stime) / count * 1e6,
    )


if __name__ == "__main__":
    main()
