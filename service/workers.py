"""N worker processes on one port: the supervisor that keeps them running, and what each of them does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

import structlog
import uvloop
from aiohttp import web
from prometheus_client.multiprocess import mark_process_dead

from service.app import running_instance
from service.data_folder import is_alive
from service.listeners import NOBODY, Listeners
from service.observe import count_for_this_process
from service.problems import ProblemRunner
from service.settings import Settings, environment_for_child

log = structlog.get_logger("chargeonce.workers")

BACKLOG = 1024
READY = b"ready"
METRICS_PREFIX = "chargeonce-metrics-"
START_WAIT_S = 30.0
LOOK_S = 0.5
SHORT_LIFE_S = 2.0
LONGEST_RESTART_PAUSE_S = 5.0
KILL_AFTER_DRAIN_S = 5.0
KEEPALIVE_S = 75.0


class StartFailed(Exception):
    """The service could not be started; the message is one clear line."""


class Listening:
    """A port with a listening socket for each worker, all held open here: what has connected to a worker that dies
    waits for its successor.

    On Linux the kernel spreads connections over the sockets. One socket for all would let the worker that happens to
    wake first take a whole burst (measured: 64 connections, all in one of two workers). Elsewhere SO_REUSEPORT does
    not spread, and the workers share one.
    """

    def __init__(self, host: str, port: int, *, workers: int) -> None:
        """Raises StartFailed."""
        try:
            resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            family, address = resolved[0], resolved[4]
            # Alone first: with SO_REUSEPORT a second start by mistake would succeed, and take half of the connections.
            first = socket.create_server(address, family=family, backlog=BACKLOG)
            self.port: int = first.getsockname()[1]
            self._sockets = [first]
            if sys.platform == "linux":
                first.close()
                bound = (address[0], self.port, *address[2:])
                self._sockets = [
                    socket.create_server(bound, family=family, backlog=BACKLOG, reuse_port=True) for _ in range(workers)
                ]
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise StartFailed(
                f"cannot listen on {host} port {port} (CHARGEONCE_HOST, CHARGEONCE_PORT): {reason}"
            ) from error

    def fileno_of(self, worker_number: int) -> int:
        """The socket that the worker of this number, counted from 1, accepts from."""
        return self._sockets[(worker_number - 1) % len(self._sockets)].fileno()

    def close(self) -> None:
        """Nobody can connect any more."""
        for each in self._sockets:
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Supervisor:
    """Starts the workers, starts anew those that die, and drains them at the end. For the main thread."""

    def __init__(self, settings: Settings, listening: Listening, *, look_after: Callable[[], None]) -> None:
        self._settings = settings
        self._listening = listening
        self._look_after = look_after
        self._metrics_dir = _metrics_folder()
        self._environment = {
            **environment_for_child(settings),
            "PROMETHEUS_MULTIPROC_DIR": str(self._metrics_dir),
        }
        self._workers: list[_Worker] = []
        self._stop_signals = 0

    def run(self, on_ready: Callable[[], None]) -> int:
        """Serves until SIGTERM or SIGINT, then drains. Returns the exit status. Raises StartFailed."""
        with self._signals() as wakeups:
            try:
                self._workers = [self._worker(number) for number in range(1, self._settings.workers + 1)]
                self._wait_until_ready(wakeups)
                if not self._stop_signals:
                    on_ready()
                while not self._stop_signals:
                    self._sleep(wakeups)
                    self._restart_dead()
                    self._look_after()
                return self._drain(wakeups)
            finally:
                self._end()

    def _worker(self, number: int) -> _Worker:
        return _Worker(number, self._listening.fileno_of(number), self._environment)

    def _wait_until_ready(self, wakeups: socket.socket) -> None:
        give_up_at_s = time.monotonic() + START_WAIT_S
        while not self._stop_signals and not all(worker.is_ready for worker in self._workers):
            for worker in self._workers:
                if worker.exit_status is not None:
                    raise StartFailed(f"worker {worker.number} ended with status {worker.exit_status} while starting")
            if time.monotonic() > give_up_at_s:
                raise StartFailed(f"the workers were not ready within {START_WAIT_S:g} s")
            self._sleep(wakeups, [worker.parent_end for worker in self._workers if not worker.is_ready])

    def _sleep(self, wakeups: socket.socket, others: list[socket.socket] | None = None) -> None:
        readable, _, _ = select.select([wakeups, *(others or [])], [], [], LOOK_S)
        if wakeups in readable:
            wakeups.recv(4096)

    def _restart_dead(self) -> None:
        for index, worker in enumerate(self._workers):
            if worker.exit_status is None:
                continue
            if not worker.death_noted:
                worker.death_noted = True
                mark_process_dead(worker.pid, self._metrics_dir)  # type: ignore[no-untyped-call]
                log.error("worker died", worker=worker.number, pid=worker.pid, status=worker.exit_status)
            if worker.may_be_replaced:
                self._workers[index] = worker.replacement(self._listening.fileno_of(worker.number), self._environment)

    def _drain(self, wakeups: socket.socket) -> int:
        log.info("draining", workers=len(self._workers))
        for worker in self._workers:
            worker.send(signal.SIGTERM)
        kill_at_s = time.monotonic() + self._settings.drain_timeout_s + KILL_AFTER_DRAIN_S
        signals_before = self._stop_signals
        while any(worker.exit_status is None for worker in self._workers):
            if time.monotonic() > kill_at_s or self._stop_signals > signals_before:
                log.error("workers killed: they took too long to drain, or a second signal came")
                return 1
            self._sleep(wakeups)
        return 0

    def _end(self) -> None:
        for worker in self._workers:
            worker.end()
        self._listening.close()
        shutil.rmtree(self._metrics_dir, ignore_errors=True)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[socket.socket]:
        """SIGTERM and SIGINT are counted; these and SIGCHLD end a sleep at once."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        before = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
        }
        wakeup_before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        try:
            yield ours
        finally:
            signal.set_wakeup_fd(wakeup_before)
            for number, handler in before.items():
                signal.signal(number, handler)
            ours.close()
            theirs.close()

    def _on_signal(self, number: int, frame: object) -> None:
        if number != signal.SIGCHLD:
            self._stop_signals += 1


def _metrics_folder() -> Path:
    """Where the workers of this serve count together. What a supervisor that was killed has left is removed."""
    for left in Path(tempfile.gettempdir()).glob(f"{METRICS_PREFIX}*"):
        supervisor_pid = left.name.removeprefix(METRICS_PREFIX).partition("-")[0]
        if supervisor_pid.isdigit() and not is_alive(int(supervisor_pid)):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{METRICS_PREFIX}{os.getpid()}-"))


class _Worker:
    """One worker process, seen from the supervisor. Either side notices the other's end by the socket between them."""

    def __init__(
        self, number: int, listening_fd: int, environment: Mapping[str, str], *, restart_pause_s: float = 0.0
    ) -> None:
        self.number = number
        self.parent_end, child_end = socket.socketpair()
        self.parent_end.setblocking(False)
        self.death_noted = False
        self._started_at_s = time.monotonic()
        self._restart_pause_s = restart_pause_s
        self._ready = False
        fds = (listening_fd, child_end.fileno())
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service", "worker", *map(str, (number, *fds))],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                pass_fds=fds,
                start_new_session=True,  # Ctrl-C in the terminal reaches the supervisor, which drains
            )
        finally:
            child_end.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        return self._process.poll()

    @property
    def is_ready(self) -> bool:
        if not self._ready:
            with contextlib.suppress(BlockingIOError):
                self._ready = self.parent_end.recv(len(READY)) == READY
        return self._ready

    @property
    def may_be_replaced(self) -> bool:
        return time.monotonic() >= self._started_at_s + self._restart_pause_s

    def replacement(self, listening_fd: int, environment: Mapping[str, str]) -> _Worker:
        """A new worker of this number; one that keeps dying young comes back more and more slowly."""
        self.parent_end.close()
        lived_s = time.monotonic() - self._started_at_s
        pause_s = 0.0 if lived_s > SHORT_LIFE_S else min(LONGEST_RESTART_PAUSE_S, self._restart_pause_s * 2 + 0.1)
        return _Worker(self.number, listening_fd, environment, restart_pause_s=pause_s)

    def send(self, number: signal.Signals) -> None:
        if self.exit_status is None:
            self._process.send_signal(number)

    def end(self) -> None:
        self.send(signal.SIGKILL)
        self._process.wait()
        self.parent_end.close()


def work(settings: Settings, *, number: int, listening_fd: int, supervisor_fd: int) -> None:
    """The life of one worker process: serve until SIGTERM or the supervisor's end, then drain."""
    count_for_this_process()
    wait_politely()
    uvloop.run(_work(settings, number, socket.socket(fileno=listening_fd), socket.socket(fileno=supervisor_fd)))


def wait_politely() -> None:
    """From now on, who wakes up here and in our children waits until whoever is at work has finished its slice.

    On a busy machine that means fewer switches, and more requests that go together. Elsewhere than on Linux: nothing.
    """
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def collect_garbage_less_often() -> None:
    """What stands now stays, and need not be looked at again: 9 % of a worker's CPU at the default thresholds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


async def _work(settings: Settings, number: int, listening: socket.socket, supervisor: socket.socket) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    # The supervisor never writes, so what can be read is its end.
    supervisor.setblocking(False)
    loop.add_reader(supervisor.fileno(), stop.set)
    instance_id = settings.worker_instance_id(number)

    def on_ready() -> None:
        supervisor.send(READY)
        log.info("worker ready", instance=instance_id, pid=os.getpid())

    async def stopped() -> None:
        await stop.wait()
        loop.remove_reader(supervisor.fileno())

    await serve_instance(settings, instance_id=instance_id, listening=listening, until=stopped, on_ready=on_ready)


async def serve_instance(
    settings: Settings,
    *,
    instance_id: str,
    listening: socket.socket,
    until: Callable[[], Awaitable[object]],
    on_ready: Callable[[], None],
    listeners: Listeners = NOBODY,
) -> None:
    """One instance that serves from this socket until `until` returns, and then drains."""
    async with running_instance(settings, instance_id=instance_id, listeners=listeners) as instance:
        collect_garbage_less_often()
        runner = ProblemRunner(
            instance.app,
            access_log=None,
            handle_signals=False,
            handler_cancellation=True,  # whoever hangs up leaves the line, and pays only for what was under way
            keepalive_timeout=KEEPALIVE_S,
            shutdown_timeout=1.0,
        )
        await runner.setup()
        await web.SockSite(runner, listening, backlog=BACKLOG).start()
        on_ready()
        await until()
        drained = await instance.drain(settings.drain_timeout_s)
        await runner.cleanup()
        log.info("worker drained" if drained else "worker stopped before all was done", instance=instance_id)
