"""N worker processes on one port: the supervisor that keeps them running, and what each of them does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

import structlog
import uvloop
from aiohttp import web
from prometheus_client import CollectorRegistry

from service.app import running_instance
from service.listeners import NOBODY, Listeners
from service.metrics_folder import FilesOfAll, MetricsFolder, OwnFiles
from service.observe import log_lines_dropped
from service.output import dropped_lines
from service.problems import ProblemRunner
from service.scraping import ReadMetrics, no_metrics
from service.settings import Settings, count_in, environment_for_child, metrics_folder

log = structlog.get_logger("chargeonce.workers")

BACKLOG = 1024
READY = b"ready"
START_WAIT_S = 30.0
LOOK_S = 0.5
SHORT_LIFE_S = 2.0
LONGEST_RESTART_PAUSE_S = 5.0
MOST_FAILED_STARTS = 5  # in a row, of every worker: then the service ends
KILL_AFTER_DRAIN_S = 5.0
SECOND_SIGNAL_AFTER_S = 1.0
KEEPALIVE_S = 75.0


class StartFailed(Exception):
    """The service could not be started; the message is one clear line."""


class Listening:
    """A port with a listening socket for each worker, all held open here: what has connected to a worker that dies
    waits for its successor, as long as that one's start does not fail.

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
            self._family, self._address = family, (address[0], self.port, *address[2:])
            self._sockets = [first]
            if sys.platform == "linux":
                first.close()
                self._sockets = [self._bound() for _ in range(workers)]
                for each in self._sockets:
                    each.listen(BACKLOG)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise StartFailed(
                f"cannot listen on {host} port {port} (CHARGEONCE_HOST, CHARGEONCE_PORT): {reason}"
            ) from error

    def fileno_of(self, worker_number: int) -> int:
        """The socket that the worker of this number, counted from 1, accepts from. Raises OSError."""
        index = (worker_number - 1) % len(self._sockets)
        if self._sockets[index].fileno() < 0:
            self._sockets[index] = self._bound()
        return self._sockets[index].fileno()

    def give_up_for_now(self, worker_number: int) -> None:
        """Whoever has connected to this worker is sent away, and nobody connects to it before its successor listens."""
        if sys.platform == "linux":
            self._sockets[worker_number - 1].close()

    def _bound(self) -> socket.socket:
        bound = socket.socket(self._family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if self._family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(self._address)
        return bound

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

    def __init__(
        self, settings: Settings, listening: Listening, *, metrics_parent: Path, look_after: Callable[[], None]
    ) -> None:
        """The workers count together in a folder below `metrics_parent`."""
        self._settings = settings
        self._listening = listening
        self._look_after = look_after
        self._metrics_folder = MetricsFolder(metrics_parent)
        count_in(self._metrics_folder.path)
        self._own_files = OwnFiles(self._metrics_folder.path)
        dropped_lines.tell(log_lines_dropped(CollectorRegistry()).inc)
        self._own_files.look()  # at once: what is removed before the first look cannot be made again
        self._environment = environment_for_child(settings)
        self._workers: list[_Worker] = []
        self._metrics_lost = False
        self._stop_signals = 0
        self._stopped_at_s = -math.inf

    def run(self, on_ready: Callable[[], None]) -> int:
        """Serves until SIGTERM or SIGINT, then drains. Returns the exit status. Raises StartFailed."""
        with stopped_by(self._on_stop_signal), self._wakeups() as wakeups:
            try:
                self._workers = [self._worker(number) for number in range(1, self._settings.workers + 1)]
                self._wait_until_ready(wakeups)
                if not self._stop_signals:
                    on_ready()
                while not self._stop_signals:
                    self._sleep(wakeups)
                    self._keep_metrics()
                    self._restart_dead()
                    if all(worker.failed_starts >= MOST_FAILED_STARTS for worker in self._workers):
                        log.error("no worker comes back: the service ends", workers=len(self._workers))
                        return 1
                    self._look_after()
                return self._drain(wakeups)
            finally:
                self._end()

    def _keep_metrics(self) -> None:
        try:
            self._metrics_folder.keep()
            self._own_files.look()
        except OSError as error:  # a full disk, say: the next look may find it well again
            if not self._metrics_lost:
                log.error("metrics lost", folder=str(self._metrics_folder.path), reason=error.strerror or str(error))
            self._metrics_lost = True
        else:
            if self._metrics_lost:
                log.info("metrics up", folder=str(self._metrics_folder.path))
            self._metrics_lost = False

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
                worker.kill_if_it_does_not_get_ready()
                continue
            if not worker.death_noted:
                self._note_death(worker)
            if worker.may_be_replaced:
                try:
                    successor = worker.successor(self._listening.fileno_of(worker.number), self._environment)
                except OSError as error:  # no memory, too many processes, ...
                    worker.put_off()
                    log.error("worker cannot be started", worker=worker.number, reason=str(error))
                else:
                    self._workers[index] = successor

    def _note_death(self, worker: _Worker) -> None:
        worker.death_noted = True
        self._metrics_folder.forget_gauges_of(worker.pid)
        log.error(
            "worker died",
            worker=worker.number,
            pid=worker.pid,
            status=worker.exit_status,
            while_starting=not worker.is_ready,
        )
        if not worker.is_ready:
            self._listening.give_up_for_now(worker.number)

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
        self._metrics_folder.remove()

    @contextlib.contextmanager
    def _wakeups(self) -> Iterator[socket.socket]:
        """A signal that stops us, and SIGCHLD, end a sleep on this at once."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        sigchld_before = signal.signal(signal.SIGCHLD, lambda *_: None)
        wakeup_before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        try:
            yield ours
        finally:
            signal.set_wakeup_fd(wakeup_before)
            signal.signal(signal.SIGCHLD, sigchld_before)
            ours.close()
            theirs.close()

    def _on_stop_signal(self) -> None:
        # One order may come twice: `timeout` tells its child, and then the group.
        now_s = time.monotonic()
        if now_s >= self._stopped_at_s + SECOND_SIGNAL_AFTER_S:
            self._stopped_at_s = now_s
            self._stop_signals += 1


class _Worker:
    """One worker process, seen from the supervisor. Either side notices the other's end by the socket between them."""

    def __init__(
        self,
        number: int,
        listening_fd: int,
        environment: Mapping[str, str],
        *,
        restart_pause_s: float = 0.0,
        failed_before: int = 0,
    ) -> None:
        self.number = number
        self.parent_end, child_end = socket.socketpair()
        self.parent_end.setblocking(False)
        self.death_noted = False
        self._started_at_s = time.monotonic()
        self._restart_pause_s = restart_pause_s
        self._failed_before = failed_before
        self._ready = False
        fds = (listening_fd, child_end.fileno())
        try:
            self._process = subprocess.Popen(
                # -P: not what is called service, or json, in the folder where we happen to be.
                [sys.executable, "-P", "-m", "service", "worker", *map(str, (number, *fds))],
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
                if self._ready:
                    self._failed_before = 0
        return self._ready

    @property
    def may_be_replaced(self) -> bool:
        return time.monotonic() >= self._started_at_s + self._restart_pause_s

    @property
    def failed_starts(self) -> int:
        """How many of this number have died in a row before they were ready, this one included."""
        failed = not self.is_ready and self.exit_status is not None
        return self._failed_before + failed

    def successor(self, listening_fd: int, environment: Mapping[str, str]) -> _Worker:
        """A new worker of this number. Raises OSError."""
        following = _Worker(
            self.number,
            listening_fd,
            environment,
            restart_pause_s=self._longer_pause_s(),
            failed_before=self.failed_starts,
        )
        self.parent_end.close()
        return following

    def put_off(self) -> None:
        """It has no successor yet: that one's start has failed."""
        self._failed_before += 1
        self._restart_pause_s = self._longer_pause_s()
        self._started_at_s = time.monotonic()

    def _longer_pause_s(self) -> float:
        """One that keeps dying young comes back more and more slowly."""
        lived_s = time.monotonic() - self._started_at_s
        if self.is_ready and lived_s > SHORT_LIFE_S:
            return 0.0
        return min(LONGEST_RESTART_PAUSE_S, self._restart_pause_s * 2 + 0.1)

    def kill_if_it_does_not_get_ready(self) -> None:
        """One that hangs in its start keeps those waiting who have connected to it."""
        if not self.is_ready and time.monotonic() > self._started_at_s + START_WAIT_S:
            self.send(signal.SIGKILL)

    def send(self, number: signal.Signals) -> None:
        if self.exit_status is None:
            self._process.send_signal(number)

    def end(self) -> None:
        self.send(signal.SIGKILL)
        self._process.wait()
        self.parent_end.close()


@contextlib.contextmanager
def stopped_by(on_signal: Callable[[], object]) -> Iterator[None]:
    """Hears SIGTERM, Ctrl-C, and a terminal that is closed, unless we were started to outlive it (nohup).

    Afterwards they are ignored until the process is gone: what was to be drained is drained, and one more would kill an
    interpreter that is ending, and with it the exit status. For the main thread.
    """
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        numbers.remove(signal.SIGHUP)
    for number in numbers:
        signal.signal(number, lambda *_: on_signal())
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)


def work(settings: Settings, *, number: int, listening_fd: int, supervisor_fd: int) -> None:
    """The life of one worker process: serve until SIGTERM or the supervisor's end, then drain."""
    own_files, all_files = OwnFiles(metrics_folder()), FilesOfAll(metrics_folder())
    wait_politely()
    listening, supervisor = socket.socket(fileno=listening_fd), socket.socket(fileno=supervisor_fd)
    uvloop.run(_work(settings, number, own_files, all_files, listening, supervisor))


def wait_politely() -> None:
    """From now on, who wakes up here and in our children waits until whoever is at work has finished its slice.

    On a busy machine that means fewer switches, and more requests that go together. Elsewhere than on Linux: nothing.
    """
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def collect_garbage_less_often() -> None:
    """What stands now stays, and need not be looked at again: 9 % of a worker's CPU at the default thresholds.

    The young are looked at in small numbers, or a collection takes 80 ms where there are tens of thousands of leases.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 5, 400)


async def _work(
    settings: Settings,
    number: int,
    own_files: OwnFiles,
    all_files: FilesOfAll,
    listening: socket.socket,
    supervisor: socket.socket,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # The supervisor never writes, so what can be read is its end.
    supervisor.setblocking(False)
    loop.add_reader(supervisor.fileno(), stop.set)
    instance_id = settings.worker_instance_id(number)
    looking = loop.create_task(_look_after(own_files, all_files), name="metrics files")

    def on_ready() -> None:
        supervisor.send(READY)
        log.info("worker ready", instance=instance_id, pid=os.getpid())

    async def stopped() -> None:
        await stop.wait()
        loop.remove_reader(supervisor.fileno())

    # Not the loop's own handlers: as it closes it gives the signals back their defaults.
    with stopped_by(lambda: loop.call_soon_threadsafe(stop.set)):
        await serve_instance(
            settings,
            instance_id=instance_id,
            listening=listening,
            until=stopped,
            on_ready=on_ready,
            read_metrics=all_files.text,
        )
    looking.cancel()


async def _look_after(own_files: OwnFiles, all_files: FilesOfAll) -> None:
    while True:
        with contextlib.suppress(OSError):  # a full disk, say: the next look may find it well again
            own_files.look()
            all_files.look()
        await asyncio.sleep(LOOK_S)


async def serve_instance(
    settings: Settings,
    *,
    instance_id: str,
    listening: socket.socket,
    until: Callable[[], Awaitable[object]],
    on_ready: Callable[[], None],
    listeners: Listeners = NOBODY,
    read_metrics: ReadMetrics = no_metrics,
) -> None:
    """One instance that serves from this socket until `until` returns, and then drains."""
    async with running_instance(
        settings, instance_id=instance_id, listeners=listeners, read_metrics=read_metrics
    ) as instance:
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
