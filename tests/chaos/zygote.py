"""The process that instances are forked from: everything is imported in it, so that a new life costs a fork.

Says on standard output, a JSON line each, {"forked": pid, …} and {"ended": pid, "status": …}; hears on standard input
{"fork": instance, "life": n}. When that ends, or it is killed, all lives end. It is where a mutant is made.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tests.chaos.instance import Plan, live

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def run(config_path: Path, fds: Sequence[int]) -> None:
    """Until standard input ends. The config: {plan: …, mutant: name or null}; `fds`: where instances 1, 2, … listen."""
    config = json.loads(config_path.read_text())
    listening = {number: socket.socket(fileno=fd) for number, fd in enumerate(fds, 1)}
    plan = Plan(**config["plan"])
    if config["mutant"] is not None:
        from tests.chaos.mutants import MUTANTS

        MUTANTS[config["mutant"]].patch()
    gc.collect()
    gc.freeze()
    signal.set_wakeup_fd(_wakeups().fileno(), warn_on_full_buffer=False)
    _say({"ready": os.getpid()})
    _serve(plan, listening)


def _serve(plan: Plan, listening: Mapping[int, socket.socket]) -> None:
    received = b""
    while True:
        readable, _, _ = select.select([0, _heard.fileno()], [], [])
        if _heard.fileno() in readable:
            _heard.recv(4096)
            _reap()
        if 0 not in readable:
            continue
        chunk = os.read(0, 65536)
        if not chunk:
            return
        received += chunk
        *lines, received = received.split(b"\n")
        for line in lines:
            _fork(plan, listening, **json.loads(line))


def _fork(plan: Plan, listening: Mapping[int, socket.socket], *, fork: int, life: int) -> None:
    pid = os.fork()
    if pid == 0:
        _live(plan, listening, instance=fork, life=life)
    _say({"forked": pid, "instance": fork, "life": life})


def _live(plan: Plan, listening: Mapping[int, socket.socket], *, instance: int, life: int) -> NoReturn:
    status = 1
    try:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        live(plan, instance=instance, life=life, listening=listening[instance])
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def _reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _say({"ended": pid, "status": os.waitstatus_to_exitcode(status)})


def _say(what: Mapping[str, Any]) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def _wakeups() -> socket.socket:
    """SIGCHLD ends the select of `_heard`."""
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    _told.setblocking(False)
    return _told


_heard, _told = socket.socketpair()
