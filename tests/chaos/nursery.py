"""The process that all programs of a run are forked from: importing everything anew costs 1.5 s of CPU a program.

The harness asks for a program over a socket, with the file descriptors that are to be its own; when the harness ends,
this process does, and all that were forked from it are killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

ROOT = Path(__file__).resolve().parents[2]
PR_SET_PDEATHSIG = 1
START_WAIT_S = 60.0
LONGEST_MESSAGE = 65536
MOST_FDS = 64


class NurseryError(Exception):
    """It does not start; the message is one line."""


class Child:
    """A program that was forked for the harness. `out`: what it writes on standard output, for whoever reads it."""

    def __init__(self, pid: int, stdin: int, out: int) -> None:
        self.pid = pid
        self.out = out
        self._stdin = stdin
        self._pidfd = os.pidfd_open(pid)

    def tell(self, line: Mapping[str, object]) -> None:
        """A line on its standard input; nothing when it has ended."""
        with contextlib.suppress(OSError):
            os.write(self._stdin, json.dumps(line).encode() + b"\n")

    def wait(self, wait_s: float) -> bool:
        """Whether it ends within this time."""
        return bool(select.select([self._pidfd], [], [], wait_s)[0])

    def end(self, *, wait_s: float) -> None:
        """Its standard input ends; what does not end by that is killed, with its process group. Harmless twice."""
        if self._stdin < 0:
            return
        os.close(self._stdin)
        self._stdin = -1
        if not self.wait(wait_s):
            self.kill()
        os.close(self._pidfd)
        with contextlib.suppress(OSError):
            os.close(self.out)

    def kill(self) -> None:
        """SIGKILL to its process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait(START_WAIT_S)


class Nursery:
    """The harness' end. Blocking; for one thread at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.nursery", str(theirs.fileno())],
                cwd=ROOT,
                env=_without_settings(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        ours.settimeout(START_WAIT_S)
        self._socket = ours
        if ours.recv(LONGEST_MESSAGE) != b"ready":
            raise NurseryError("the nursery does not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._socket is not None
        assert self._process is not None
        self._socket.close()
        self._process.wait()

    def fork(
        self,
        program: str,
        config: Path,
        *,
        log: Path,
        fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        """A program of PROGRAMS that reads this config. `environment`: it is executed anew, with these as well."""
        assert self._socket is not None
        their_stdin, stdin = os.pipe()
        out, their_out = os.pipe()
        errors = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        asked = {"program": program, "config": str(config), "environment": dict(environment or {})}
        try:
            socket.send_fds(self._socket, [json.dumps(asked).encode()], [their_stdin, their_out, errors, *fds])
            pid = json.loads(self._socket.recv(LONGEST_MESSAGE))
        finally:
            for fd in (their_stdin, their_out, errors):
                os.close(fd)
        return Child(pid, stdin, out)


def _without_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("CHARGEONCE_", "PG"))}


def _zygote(config: Path, fds: Sequence[int]) -> None:
    from tests.chaos.zygote import run

    run(config, fds)


def _workload(config: Path, fds: Sequence[int]) -> None:
    from tests.chaos.workload.__main__ import work

    work(config)


def _sync_programs(config: Path, fds: Sequence[int]) -> None:
    from tests.chaos.workload.sync_program import keep_running

    keep_running(config)


Program = Callable[[Path, Sequence[int]], None]
PROGRAMS: dict[str, Program] = {"zygote": _zygote, "workload": _workload, "sync-programs": _sync_programs}


def main() -> None:
    """`python -m tests.chaos.nursery FD`: forks what is asked for, until the other end is closed."""
    import tests.chaos.mutants
    import tests.chaos.workload.__main__
    import tests.chaos.workload.sync_program
    import tests.chaos.zygote  # noqa: F401 all of them, so that nobody has to do it again

    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody is a zombie
    with socket.socket(fileno=int(sys.argv[1])) as harness:
        harness.send(b"ready")
        while True:
            message, fds, _, _ = socket.recv_fds(harness, LONGEST_MESSAGE, MOST_FDS)
            if not message:
                return
            pid = os.fork()
            if pid == 0:
                harness.close()
                _become(fds, **json.loads(message))
            for fd in fds:
                os.close(fd)
            harness.send(json.dumps(pid).encode())


def _become(fds: list[int], *, program: str, config: str, environment: dict[str, str]) -> NoReturn:
    status = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for place, fd in enumerate(fds[:3]):
            os.dup2(fd, place)
            os.close(fd)
        if environment:
            _execute_anew(program, config, fds[3:], environment)
        PROGRAMS[program](Path(config), fds[3:])
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def _execute_anew(program: str, config: str, fds: Sequence[int], environment: Mapping[str, str]) -> None:
    """For what counts from a process' first moment on, such as LD_PRELOAD."""
    for fd in fds:
        os.set_inheritable(fd, True)
    script = f"from tests.chaos.nursery import *; PROGRAMS[{program!r}](Path({config!r}), {list(fds)!r})"
    os.execve(sys.executable, [sys.executable, "-c", script], {**os.environ, **environment})


if __name__ == "__main__":
    main()
