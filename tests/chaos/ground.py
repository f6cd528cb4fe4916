"""The ground that instances stand on: one Postgres and one Valkey, our own children, to be killed and started again.

All methods block, and may be called from any thread.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import IO, Self

from db.migrate import migrate
from service.child_process import ChildProcess, EmbeddedError, Program, start_tied_by_watcher
from service.data_folder import EARLIER_SERVER_WAIT_S, FolderLock
from service.embedded_servers import POSTGRES_SETTINGS, Postgres
from tests.chaos.valkey_server import ValkeyServer
from tests.harness import PATIENCE_S
from tests.servers.kinds import server_binary
from tests.servers.processes import unused_port

__all__ = ["STRANGER", "Ground", "PostgresServer", "ValkeyServer"]

POLL_S = 0.002

SETTINGS = {
    **POSTGRES_SETTINGS,
    # One call instead of one a file, before a crash is recovered from: half the time, and as safe.
    "recovery_init_sync_method": "syncfs",
}

STRANGER = "stranger"  # a user that there is not: asked for a password, it can sit in a session's slot without one

# A password's proof costs both ends 3 ms of work a connection, and a fault may cost every connection of every instance.
WHO_IS_LET_IN = f"""
host all {STRANGER} 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
host replication all 127.0.0.1/32 trust
"""


class Ground:
    """A migrated Postgres and an empty Valkey for one run, and no process of them when it is left.

    folder: where they live, kept afterwards; without one they live in a temporary folder, gone afterwards.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        postgres_settings: Mapping[str, str] | None = None,
        postgres_environment: Mapping[str, str] | None = None,
        valkey_settings: Sequence[str] = (),
    ) -> None:
        self._given_folder = folder
        self._postgres_settings = postgres_settings
        self._postgres_environment = postgres_environment
        self._valkey_settings = valkey_settings
        self._stack = ExitStack()
        self.postgres: PostgresServer
        self.valkey: ValkeyServer
        self.turns: dict[str, asyncio.Lock] = {}  # whose turn it is to harm "postgres" or "redis"

    @property
    def database_url(self) -> str:
        """Postgres itself, by no proxy."""
        return self.postgres.url

    @property
    def redis_url(self) -> str:
        """Valkey itself, by no proxy."""
        return self.valkey.url

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = self._given_folder
            if folder is None:
                folder = Path(tempfile.mkdtemp(prefix="chaos-ground-"))
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            self.valkey = ValkeyServer(server_binary("valkey"), folder, settings=self._valkey_settings)
            stack.callback(self.valkey.close)
            self.valkey.start()
            self.postgres = PostgresServer(
                folder, settings=self._postgres_settings, environment=self._postgres_environment
            )
            stack.callback(self.postgres.kill)
            self.postgres.start()
            migrate(self.postgres.url)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class PostgresServer:
    """The product's embedded Postgres, on one port for all its lives, with settings and environment of its own."""

    def __init__(
        self, folder: Path, *, settings: Mapping[str, str] | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self._server = _ChaosPostgres(folder, {**SETTINGS, **(settings or {})}, environment or {})
        self.port = self._server.port
        self.url = self._server.url()
        self.folder = self._server.folder
        self.log = self._server.log
        self._turn = threading.RLock()  # one start or end at a time
        self._look = threading.Lock()  # the child's end is noticed by one thread

    @property
    def pid(self) -> int:
        """The postmaster's."""
        return self._server.child.pid

    def start(self) -> None:
        """Returns once it takes clients, after crash recovery where that is due; harmless when it runs already."""
        with self._turn:
            if self.alive():
                return
            self._server.make_cluster_once()
            give_up_at_s = time.monotonic() + PATIENCE_S
            while not self._server.launch_again():
                self._pause(give_up_at_s)
            while not self._server.is_ready():
                if not self.alive():
                    raise EmbeddedError(f"Postgres in {self.folder} does not start: {self._server.reason()}")
                self._pause(give_up_at_s)

    def kill(self) -> None:
        """Every process of it is killed at one moment, none sees another end; harmless when it is gone."""
        with self._turn:
            if not self.alive():
                return
            os.kill(self.pid, signal.SIGSTOP)  # so that it starts no process that we do not see
            for pid in [*self.child_pids(), self.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._wait_gone()

    def quit(self) -> None:
        """Ended by SIGQUIT, a crash by order: clients are cut, nothing is written; harmless when it is gone."""
        self._end_with(signal.SIGQUIT)

    def stop(self) -> None:
        """Ended in order, as fast as that goes; harmless when it is gone."""
        self._end_with(signal.SIGINT)

    def alive(self) -> bool:
        """Whether there is a postmaster."""
        with self._look:
            child: ChildProcess | None = getattr(self._server, "child", None)  # none before the first start
            return child is not None and child.exit_status() is None

    def kill_backend(self, pid: int) -> None:
        """Kills one of its processes, upon which it ends all others and recovers. Raises ProcessLookupError."""
        if pid not in self.child_pids():
            raise ProcessLookupError(f"Postgres has no process {pid}")
        os.kill(pid, signal.SIGKILL)

    def child_pids(self) -> list[int]:
        """Its processes but the postmaster."""
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except FileNotFoundError:
            return []

    def _end_with(self, number: signal.Signals) -> None:
        with self._turn:
            if self.alive():
                os.kill(self.pid, number)
                self._wait_gone()

    def _wait_gone(self) -> None:
        give_up_at_s = time.monotonic() + PATIENCE_S
        while self.alive() or not self._server.is_left():
            self._pause(give_up_at_s)

    def _pause(self, give_up_at_s: float) -> None:
        if time.monotonic() > give_up_at_s:
            raise EmbeddedError(f"Postgres in {self.folder} takes over {PATIENCE_S:g} s to start or to end")
        time.sleep(POLL_S)


class _ChaosPostgres(Postgres):
    """The product's server but for its settings, its port, and that any thread may start it."""

    def __init__(self, folder: Path, settings: Mapping[str, str], environment: Mapping[str, str]) -> None:
        super().__init__(folder, "not asked for")
        self.port = unused_port()
        self._settings = settings
        self._environment = environment

    def make_cluster_once(self) -> None:
        """The data folder is there, and lets in whoever comes over loopback."""
        if self.folder.exists():
            return
        with closing(FolderLock(self._lock_path)) as lock:
            lock.take(EARLIER_SERVER_WAIT_S)
            self.prepare(lock)
        rules = self.folder / "pg_hba.conf"
        rules.write_text(WHO_IS_LET_IN + rules.read_text())

    def is_left(self) -> bool:
        """Whether no process of its last life is left."""
        with closing(FolderLock(self._lock_path)) as lock:
            return lock.take_now()

    def start_process(self, lock: FolderLock) -> ChildProcess:
        (self.folder / "postmaster.pid").unlink(missing_ok=True)
        settings = {"port": str(self.port), **self._settings}
        flags = [flag for name, value in settings.items() for flag in ("-c", f"{name}={value}")]
        variables = [f"{name}={value}" for name, value in self._environment.items()]
        program: list[str | Path] = [
            "/usr/bin/env",
            *variables,
            self._program,
            "-D",
            self._name_inside(self.folder),
            *flags,
        ]
        with Path(os.devnull).open("rb") as nothing:
            return self.start_child(program, self.folder, nothing, lock)

    def start_child(
        self, command: Sequence[str | Path], folder: Path, stdin: IO[bytes], lock: FolderLock
    ) -> ChildProcess:
        # Tied by a pipe, since the kernel would end it with the thread that has started it.
        return start_tied_by_watcher(
            Program(
                command=command,
                folder=folder,
                log=self.log,
                stdin=stdin,
                held_fd=lock.fd,
                last_signal=self.stop_signal,
                identity=self.identity,
            )
        )
