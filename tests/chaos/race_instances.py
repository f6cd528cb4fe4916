"""The instances of one guard as the race sees them: started, awaited, let go on where they have stopped, ended."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

from tests.chaos.race_ground import Track
from tests.harness import ROOT, clean_environment

HOST = "127.0.0.1"
READY_WITHIN_S = 30.0
STOP_WITHIN_S = 30.0
END_WITHIN_S = 10.0
LOG_TAIL_BYTES = 800
INSTANCES = 3
LEASE_TTL_S = 0.6
# Whoever waits while a holder is paused is to be answered in the end, not refused.
LONGER_THAN_A_PAUSE = {
    "lock_wait_s": "8",
    "row_lock_timeout_s": "6",
    "statement_timeout_s": "6.5",
    "idle_in_transaction_timeout_s": "8",
    "charge_timeout_s": "8",
}


class RaceFailed(Exception):
    """The race could not be run; the message is one clear line."""


class Instances:
    """Several processes under one guard, each on a port of its own. They share nothing but Postgres and Valkey."""

    def __init__(self, process: asyncio.subprocess.Process, ports: Sequence[int], jwt_secret: str, log: Path) -> None:
        """`process`: their parent, which leads their process group and ends with them."""
        self.ports = ports
        self.jwt_secret = jwt_secret
        self._process = process
        self._log = log
        self._ready = asyncio.Semaphore(0)
        self._stops: dict[int, asyncio.Event] = {}

    async def hear(self) -> None:
        """Takes in what they say, until their end."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            word, _, appointment_id = line.decode().strip().partition(" ")
            if word == "ready":
                self._ready.release()
            elif word == "stopping":
                self._stop_at(int(appointment_id)).set()

    async def wait_until_ready(self) -> None:
        """Raises RaceFailed."""
        ready = asyncio.create_task(self._all_ready())
        end = asyncio.create_task(self._process.wait())
        done, pending = await asyncio.wait({ready, end}, timeout=READY_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        for each in pending:
            each.cancel()
        if ready not in done:
            raise RaceFailed(f"the instances did not become ready{self._tail()}")

    async def stopped_at(self, appointment_id: int) -> None:
        """Waits until one of them stops itself at this appointment. Raises RaceFailed."""
        try:
            await asyncio.wait_for(self._stop_at(appointment_id).wait(), STOP_WITHIN_S)
        except TimeoutError:
            raise RaceFailed(f"no instance has decided on the appointment {appointment_id}{self._tail()}") from None

    def go_on(self) -> None:
        """Lets them go on where one has stopped itself; harmless while they run."""
        self._send(signal.SIGCONT)

    async def drain(self) -> None:
        """They end in order. Raises RaceFailed where one does not, or had died before."""
        assert self._process.stdin is not None
        self.go_on()
        self._process.stdin.close()
        try:
            status = await asyncio.wait_for(self._process.wait(), END_WITHIN_S)
        except TimeoutError:
            raise RaceFailed(f"the instances did not end{self._tail()}") from None
        if status != 0:
            raise RaceFailed(f"an instance has died{self._tail()}")

    async def kill(self) -> None:
        """They are gone when this returns; harmless twice."""
        self._send(signal.SIGKILL)
        await self._process.wait()

    async def _all_ready(self) -> None:
        for _ in self.ports:
            await self._ready.acquire()

    def _stop_at(self, appointment_id: int) -> asyncio.Event:
        return self._stops.setdefault(appointment_id, asyncio.Event())

    def _send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _tail(self) -> str:
        text = self._log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
        return f"; the log ends: {text}" if text else ""


@asynccontextmanager
async def running_instances(
    guard: str, track: Track, folder: Path, *, stop_at: Collection[int]
) -> AsyncIterator[Instances]:
    """INSTANCES of them, ready; gone at the end, whatever happens. Raises RaceFailed."""
    claims = folder / f"{guard}-claims"
    claims.mkdir()
    jwt_secret = secrets.token_hex(32)
    instances = await _start(
        [sys.executable, "-m", "tests.chaos.race_instance", guard, "--claims", str(claims)],
        ["--stop-at", *map(str, stop_at)],
        _environment(track, folder, jwt_secret),
        jwt_secret,
        folder / f"{guard}.log",
    )
    hearing = asyncio.create_task(instances.hear())
    try:
        await instances.wait_until_ready()
        yield instances
        await instances.drain()
    finally:
        await instances.kill()
        hearing.cancel()


async def _start(
    command: Sequence[str], more: Sequence[str], environment: Mapping[str, str], jwt_secret: str, log_path: Path
) -> Instances:
    with ExitStack() as stack:
        log = stack.enter_context(log_path.open("ab"))
        doors = [stack.enter_context(socket.create_server((HOST, 0), backlog=1024)) for _ in range(INSTANCES)]
        fds = [door.fileno() for door in doors]
        process = await asyncio.create_subprocess_exec(
            *command,
            "--listening-fds",
            *map(str, fds),
            *more,
            cwd=ROOT,
            env=dict(environment),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            pass_fds=fds,
            start_new_session=True,  # a Ctrl-C reaches them through us alone
        )
        return Instances(process, [door.getsockname()[1] for door in doors], jwt_secret, log_path)


def _environment(track: Track, folder: Path, jwt_secret: str) -> Mapping[str, str]:
    return clean_environment(
        database_url=track.database_url,
        redis_url=track.redis_url,
        data_dir=str(folder / "data"),
        jwt_secret=jwt_secret,
        agora_app_id=secrets.token_hex(16),
        agora_app_certificate=secrets.token_hex(16),
        lease_ttl_s=str(LEASE_TTL_S),
        **LONGER_THAN_A_PAUSE,
        audit_interval_s="0",
        log_level="error",
    )
