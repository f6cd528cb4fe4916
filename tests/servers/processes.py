"""Child processes of the test run that end with it, and the ports they listen on."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

FIRST_PORT = 12_000
# Where processes share the tests, ports are dealt out among them, so that no two give the same one.
_PROCESS_COUNT = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PROCESS_COUNT
_given: set[int] = set()


def tied(command: Sequence[str]) -> list[str]:
    """The command so that the kernel kills its process, the pid unchanged, when this one is killed.

    The kernel looks at the thread that started it, so only what the main thread starts is tied.
    """
    setpriv = shutil.which("setpriv", path="/usr/bin:/bin:/usr/local/bin")
    if setpriv is None or threading.current_thread() is not threading.main_thread():
        return list(command)
    return [setpriv, "--pdeathsig", "KILL", "--", *command]


def unused_port() -> int:
    """A port that nobody listens on, never given twice, and none that the kernel gives to a connection's own end.

    So a server that is away for a while finds its port free, and a client that keeps trying cannot meet itself.
    """
    while True:
        port = random.randrange(FIRST_PORT + _PROCESS, _first_ephemeral_port(), _PROCESS_COUNT)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port


def _first_ephemeral_port() -> int:
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        first = 49_152  # RFC 6335
    return first if first > FIRST_PORT + 1000 else 32_768


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def processes_in(folder: Path) -> list[int]:
    """Every process that stands in this folder or below: embedded servers, their children and their watchers."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink().is_relative_to(folder.resolve()):
                found.append(int(process.name))
    return found
