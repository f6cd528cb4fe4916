"""One life of an instance: the real application, or one of the guards it is compared with, with one more listener."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

import uvloop

from service.observe import set_up_logs
from service.settings import load_settings
from service.workers import wait_politely
from tests.chaos.guards import serve_guard
from tests.chaos.history import History
from tests.chaos.points import Points

LOCK_AND_ROW = "lock-and-row"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What all lives of a run's instances have in common."""

    history: str
    harness: str  # the path of its unix socket
    guard: str
    log_folder: str
    settings: dict[str, str]  # CHARGEONCE_ variables that are the same for all
    own_settings: dict[str, dict[str, str]]  # instance number -> those that are its own


def live(plan: Plan, *, instance: int, life: int, listening: socket.socket) -> None:
    """Serves until SIGTERM, then drains. For a process that was forked for it, which ends after this."""
    os.setpgid(0, 0)
    _write_to(Path(plan.log_folder) / f"instance-{instance}.log")
    os.environ |= plan.settings | plan.own_settings[str(instance)]
    os.environ["CHARGEONCE_INSTANCE_ID"] = f"chaos-{instance}"
    wait_politely()
    uvloop.run(_live(plan, instance=instance, life=life, listening=listening))


async def _live(plan: Plan, *, instance: int, life: int, listening: socket.socket) -> None:
    settings = load_settings()
    set_up_logs(settings.log_level, settings.log_format)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    history = History(Path(plan.history))
    harness = socket.socket(socket.AF_UNIX)
    harness.connect(plan.harness)
    points = Points(history, instance=instance, life=life, harness=harness)
    watching: list[asyncio.Task[None]] = []

    async def stopped() -> None:
        await stop.wait()

    def on_ready() -> None:
        history.write("born", i=instance, life=life, pid=os.getpid())
        points.hello(os.getpid())
        watching.append(asyncio.get_running_loop().create_task(points.watch()))

    try:
        await serve_guard(
            plan.guard,
            settings,
            instance_id=settings.worker_instance_id(1),
            listening=listening,
            until=stopped,
            on_ready=on_ready,
            listeners=points.listeners,
        )
    finally:
        for task in watching:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _write_to(log: Path) -> None:
    """Standard output and error of this process, from now on."""
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
