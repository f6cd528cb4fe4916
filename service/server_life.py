"""The life of one embedded server: started, waited for, and started again on its port and data whenever it dies."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from service import child_process
from service.child_process import ChildProcess, EmbeddedError, Program, unprivileged_identity
from service.data_folder import EARLIER_SERVER_WAIT_S, FolderLock, Owner, bound_log, one_line_errors

READY_WAIT_S = 60.0
READY_POLL_S = 0.005
MAX_PORT_ATTEMPTS = 10
SHORT_LIFE_S = 10.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True)
class ServerDied:
    """A server has ended by itself, or cannot be started again yet; the report is one line."""

    report: str


@dataclass(frozen=True, slots=True)
class ServerUpAgain:
    """A server that had died takes clients again."""

    server: str


class Keeper:
    """Starts a ready server again whenever it dies, more and more slowly when it keeps dying, and waits for nothing."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._runs = True
        self._ready_since_s: float | None = time.monotonic()
        self._ended_at_s = self._tried_at_s = 0.0
        self._pause_s = 0.0
        self._said = ""

    def step(self) -> ServerDied | ServerUpAgain | None:
        """Does what can be done at once; None when nothing is left to do or to say for now."""
        try:
            with one_line_errors(self._server.data_dir):
                if not self._runs:
                    return self._start_again()
                if self._server.child.exit_status() is not None:
                    return self._say(self._obituary())
                return self._look_after()
        except EmbeddedError as error:
            return self._say(str(error))

    def _start_again(self) -> ServerDied | None:
        server, now_s = self._server, time.monotonic()
        if now_s < self._tried_at_s + self._pause_s:
            return None
        self._tried_at_s = now_s
        self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s + FIRST_PAUSE_S)
        self._runs = server.launch_again()
        if not self._runs and now_s > self._ended_at_s + EARLIER_SERVER_WAIT_S:
            return self._say(f"embedded {server.name} waits for its last processes, which do not leave {server.folder}")
        return None

    def _obituary(self) -> str:
        server, ready_since_s = self._server, self._ready_since_s
        self._runs, self._ready_since_s, self._ended_at_s = False, None, time.monotonic()
        if ready_since_s is None:
            return f"embedded {server.name} does not start again: {server.reason()}"
        if self._ended_at_s > ready_since_s + SHORT_LIFE_S:
            self._pause_s = 0.0
        ended, last_line = server.child.how_it_ended(), server.last_line()
        return f"embedded {server.name} died ({ended}); its log, {server.log}, ends with: {last_line}"

    def _look_after(self) -> ServerDied | ServerUpAgain | None:
        server = self._server
        if self._ready_since_s is None:
            if server.is_ready():
                self._ready_since_s, self._said = time.monotonic(), ""
                return ServerUpAgain(server.name)
            if time.monotonic() > self._tried_at_s + READY_WAIT_S:
                return self._say(f"embedded {server.name} is not ready after {READY_WAIT_S:g} s; see {server.log}")
        else:
            with contextlib.suppress(OSError):  # a full disk is no reason to end
                bound_log(server.log)
        return None

    def _say(self, report: str) -> ServerDied | None:
        """The report, once as long as it is the same."""
        if report == self._said:
            return None
        self._said = report
        return ServerDied(report)


class Server(ABC):
    """One embedded server in its own folder below the data folder."""

    name: str
    stop_signal: signal.Signals
    child: ChildProcess

    def __init__(self, data_dir: Path, short_name: str, password: str, programs: Sequence[Path]) -> None:
        self.data_dir = data_dir
        self.folder = data_dir / short_name
        self.log = data_dir / f"{short_name}.log"
        self.password = password
        self.port = 0
        self.identity = unprivileged_identity(programs)
        self._lock_path = data_dir / f"{short_name}.lock"
        self._attempts = 0

    # In both launches the child holds the lock once it is closed here, so that it is free exactly when the last
    # process of the server is gone.

    def launch(self) -> None:
        """Starts the process on a free port, once no process of an earlier start is left in its folder."""
        with contextlib.closing(FolderLock(self._lock_path)) as lock:
            if not lock.take(EARLIER_SERVER_WAIT_S):
                raise EmbeddedError(
                    f"{self.name} of an earlier start (pid {lock.holder().pid}) does not leave {self.folder}"
                )
            self.prepare(lock)
            self.port = free_port()
            self._start(lock)

    def launch_again(self) -> bool:
        """Starts the process on the port and the data that it had, and waits for nothing.

        False while a process of its last start is left. Raises EmbeddedError.
        """
        with contextlib.closing(FolderLock(self._lock_path)) as lock:
            if not lock.take_now():
                return False
            # Asked before the start, so that we do not send the server's password to whoever listens there.
            if is_taken(self.port):
                raise EmbeddedError(f"embedded {self.name} waits for its port {self.port}: another program has it now")
            self._start(lock)
            return True

    def _start(self, lock: FolderLock) -> None:
        self.child = self.start_process(lock)
        with contextlib.suppress(OSError):  # a full disk; the number only serves a message
            lock.write_holder(Owner(self.child.pid, ""))

    def wait_ready(self) -> None:
        """Returns as soon as it takes clients. Raises EmbeddedError with the reason from its log."""
        deadline = time.monotonic() + READY_WAIT_S
        while not self.is_ready():
            if self.child.exit_status() is not None:
                self._launch_on_another_port()
            elif time.monotonic() > deadline:
                raise EmbeddedError(f"embedded {self.name} is not ready after {READY_WAIT_S:g} s; see {self.log}")
            time.sleep(READY_POLL_S)

    def _launch_on_another_port(self) -> None:
        self._attempts += 1
        if "Address already in use" not in self.child.output() or self._attempts >= MAX_PORT_ATTEMPTS:
            raise EmbeddedError(f"embedded {self.name} in {self.folder} does not start: {self.reason()}")
        self.launch()

    def start_child(
        self, command: Sequence[str | Path], folder: Path, stdin: IO[bytes], lock: FolderLock
    ) -> ChildProcess:
        """Starts a program of this server, tied to our life."""
        return child_process.start_child(
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

    def last_line(self) -> str:
        """What its last process has logged last; empty when that was nothing."""
        lines = [line.strip() for line in self.child.output().splitlines() if line.strip()]
        return lines[-1] if lines else ""

    @abstractmethod
    def prepare(self, lock: FolderLock) -> None:
        """The folder is there and fit for a first start."""

    @abstractmethod
    def start_process(self, lock: FolderLock) -> ChildProcess:
        """The server itself, on self.port."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it takes clients; asks cheaply."""

    @abstractmethod
    def url(self) -> str:
        """Its address, password included."""

    @abstractmethod
    def reason(self) -> str:
        """Why it ended, in its own words, on one line."""


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_taken(port: int) -> bool:
    """Whether a server could not listen on it at this moment."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: ended connections do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
