"""A server as our child: it ends when we end, whatever ends us, and it runs unprivileged when we are root."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# Nothing of our own environment reaches a server; C and UTC make its log lines the ones that we look for.
CLEAN_ENVIRONMENT = {
    "PATH": os.defpath,
    "LANG": "C",
    "LC_ALL": "C",
    "TZ": "UTC",
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=20000",
}
NOBODY_ID = 65534
MAX_OUTPUT_BYTES = 256 * 1024
KILLED_WAIT_S = 5.0

# linux/prctl.h, linux/capability.h, linux/securebits.h
PR_SET_PDEATHSIG, PR_GET_SECUREBITS, PR_SET_SECUREBITS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 1, 27, 28, 47, 2
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
CAPABILITY_VERSION_3, SECBIT_NO_SETUID_FIXUP = 0x20080522, 1 << 2


class EmbeddedError(Exception):
    """An embedded server could not be started; the message is one clear line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The unprivileged user that a server runs as; capability is the one right it cannot do without, mostly none."""

    uid: int
    gid: int
    capability: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to start: command is without secrets, stdin may carry some; last_signal is what it gets when we die."""

    command: Sequence[str | Path]
    folder: Path
    log: Path
    stdin: IO[bytes]
    held_fd: int
    last_signal: signal.Signals
    identity: Identity | None


class ChildProcess:
    """A started program; its output stands in its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, log_start: int, watcher: _Watcher | None) -> None:
        self.pid = process.pid
        self.log = log
        self._process = process
        self._log_start = log_start
        self._watcher = watcher

    def exit_status(self) -> int | None:
        """The exit status, negative for the signal that killed it; None while it runs."""
        status = self._process.poll()
        if status is not None and self._watcher is not None:
            self._watcher.dismiss()
        return status

    def how_it_ended(self) -> str:
        """'exit status 1' or 'SIGKILL', for a message."""
        status = self.exit_status()
        return f"exit status {status}" if status is None or status >= 0 else signal.Signals(-status).name

    def send(self, number: signal.Signals) -> None:
        """Signals it; one that is gone gets nothing."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float) -> int | None:
        """Its exit status, or None when it still runs after timeout_s."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        return self.exit_status()

    def wait_or_kill(self, wait_s: float) -> None:
        """It is gone when this returns, killed if it was not within wait_s."""
        if self.wait(wait_s) is None:
            self.send(signal.SIGKILL)
            self.wait(KILLED_WAIT_S)

    def output(self) -> str:
        """The end of what it has logged since its start."""
        with self.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            start = self._log_start if self._log_start <= size else 0  # the log was emptied since
            log.seek(max(start, size - MAX_OUTPUT_BYTES))
            return log.read().decode(errors="replace")


def start_tied_by_kernel(program: Program) -> ChildProcess:
    """Starts it so that Linux signals it when the calling thread ends: call from the main thread, which ends last."""
    assert threading.current_thread() is threading.main_thread(), "the child would die with this thread"
    prctl = _prctl()
    parent_pid = os.getpid()
    last_signal = int(program.last_signal)

    def tie() -> None:
        # We may have died before the kernel knew whom to tell.
        if prctl(PR_SET_PDEATHSIG, last_signal, 0, 0, 0) != 0 or os.getppid() != parent_pid:
            os._exit(127)

    return _start(program, tie, None)


def start_tied_by_watcher(program: Program) -> ChildProcess:
    """Starts it beside a shell that signals it when our end of a pipe closes: for systems without PR_SET_PDEATHSIG."""
    watcher = _Watcher(program)
    told = watcher.told_fd

    def tie() -> None:
        # The child itself names its pid, so that there is no moment at which nobody watches it.
        os.write(told, b"%d\n" % os.getpid())

    try:
        return _start(program, tie, watcher)
    except BaseException:
        watcher.dismiss()
        raise


start_child = start_tied_by_kernel if sys.platform == "linux" else start_tied_by_watcher


class _Watcher:
    """A shell that reads a pid from a pipe, then waits for its end, then signals that pid."""

    SCRIPT = 'read -r pid && { read -r _; kill -s "$1" "$pid"; }'

    def __init__(self, program: Program) -> None:
        heard_fd, self.told_fd = os.pipe()
        try:
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", self.SCRIPT, "watcher", program.last_signal.name.removeprefix("SIG")],
                cwd=program.folder,
                stdin=heard_fd,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=CLEAN_ENVIRONMENT,
                start_new_session=True,
                preexec_fn=_steps_before_exec(program.identity, _nothing),
            )
        finally:
            os.close(heard_fd)

    def dismiss(self) -> None:
        """Ends the watching without a signal to anybody; harmless twice."""
        if self._shell.returncode is None:
            self._shell.kill()
            self._shell.wait()
            os.close(self.told_fd)


def _start(program: Program, tie: Callable[[], None], watcher: _Watcher | None) -> ChildProcess:
    name = program.command[0]
    log_fd = os.open(program.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        log_start = os.fstat(log_fd).st_size
        process = subprocess.Popen(
            program.command,
            cwd=program.folder,
            stdin=program.stdin,
            stdout=log_fd,
            stderr=log_fd,
            env=CLEAN_ENVIRONMENT,
            umask=0o077,
            pass_fds=(program.held_fd,),
            start_new_session=True,  # Ctrl-C in the terminal reaches us, and we end the servers last
            preexec_fn=_steps_before_exec(program.identity, tie),
        )
    except subprocess.SubprocessError as error:
        raise EmbeddedError(f"cannot start {name} as another user: this root has too few rights") from error
    except OSError as error:
        raise EmbeddedError(f"cannot start {name}: {error.strerror}") from error
    finally:
        os.close(log_fd)
    return ChildProcess(process, program.log, log_start, watcher)


def unprivileged_identity(programs: Sequence[Path]) -> Identity | None:
    """Who may run these programs for us: nobody when we are root, and None, ourselves, when we are not.

    nobody keeps one capability if it cannot reach a program without it. Raises EmbeddedError when we lack that one.
    """
    if os.geteuid() != 0:
        return None
    if sys.platform != "linux":
        raise EmbeddedError("embedded servers do not run as root, and only on Linux as another user: start as yourself")
    uid, gid = _nobody()
    for needed in _sufficient_capabilities(programs, uid, gid):
        if needed is None or _effective_capabilities() >> needed & 1:
            return Identity(uid=uid, gid=gid, capability=needed)
    raise EmbeddedError(
        f"embedded servers do not run as root, and uid {uid} cannot reach {programs[0].parent}:"
        " open its parent folders to others (chmod o+x), or start as another user"
    )


def _nobody() -> tuple[int, int]:
    # initdb insists on a user with a name, so another service's user is better than a bare number.
    for name in ("nobody", "daemon", "bin"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    return NOBODY_ID, NOBODY_ID


def _sufficient_capabilities(programs: Sequence[Path], uid: int, gid: int) -> list[int | None]:
    """Any one of these is enough, the weakest first; [None] when all is open."""
    if not all(_may_execute(program, uid, gid) for program in programs):
        return [CAP_DAC_OVERRIDE]
    folders = {folder for program in programs for folder in program.parents}
    if not all(_may_execute(folder, uid, gid) for folder in folders):
        return [CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE]
    return [None]


def _may_execute(path: Path, uid: int, gid: int) -> bool:
    found = path.stat()
    needed = stat.S_IXUSR if found.st_uid == uid else stat.S_IXGRP if found.st_gid == gid else stat.S_IXOTH
    return bool(found.st_mode & needed)


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _steps_before_exec(identity: Identity | None, tie: Callable[[], None]) -> Callable[[], None]:
    """What the forked child does before it becomes the program; all that can be prepared is prepared here."""
    become = _nothing if identity is None else _becoming(identity)
    no_signals: tuple[int, ...] = ()

    def before_exec() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, no_signals)
        become()
        tie()  # last: a change of user makes the kernel forget it

    return before_exec


def _becoming(identity: Identity) -> Callable[[], None]:
    if identity.capability is not None:
        return _becoming_with_capability(identity.uid, identity.gid, identity.capability)

    def become() -> None:
        os.setgroups([])
        os.setgid(identity.gid)
        os.setuid(identity.uid)

    return become


def _becoming_with_capability(uid: int, gid: int, capability: int) -> Callable[[], None]:
    prctl = _prctl()
    capset = ctypes.CDLL(None, use_errno=True).capset
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    only = 1 << capability
    sets = (ctypes.c_uint32 * 6)(only, only, only, 0, 0, 0)  # effective, permitted, inheritable; low and high words
    # Without this bit access(2), which Postgres asks about its own binary, ignores capabilities.
    secure_bits = prctl(PR_GET_SECUREBITS, 0, 0, 0, 0) | SECBIT_NO_SETUID_FIXUP

    def become() -> None:
        os.setgroups([])
        if prctl(PR_SET_SECUREBITS, secure_bits, 0, 0, 0) != 0:
            raise PermissionError
        os.setgid(gid)
        os.setuid(uid)
        if capset(header, sets) != 0 or prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0) != 0:
            raise PermissionError

    return become


def _prctl() -> Callable[[int, int, int, int, int], int]:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    prctl.restype = ctypes.c_int
    return prctl


def _nothing() -> None:
    pass
