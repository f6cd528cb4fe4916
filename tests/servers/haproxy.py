"""HAProxy with the repository's own configuration: only the addresses in it are replaced."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.harness import ROOT, wait_until
from tests.servers.processes import tied, unused_port

CONFIGURATION = ROOT / "deploy/haproxy.cfg"
ANSWERED_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Haproxy:
    """One that runs. Its instances are called api-1, api-2 and so on, in the order of their ports."""

    port: int
    health_port: int
    pid: int
    log: Path
    _stats: Path

    @property
    def url(self) -> str:
        """Where clients go."""
        return f"http://127.0.0.1:{self.port}"

    def stats(self) -> dict[str, dict[str, str]]:
        """What it tells of each instance: `status`, `chkdown` (how often it went down), `scur` and so on."""
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(ANSWERED_WITHIN_S)
            stream.connect(str(self._stats))
            stream.sendall(b"show stat\n")
            told = b"".join(iter(lambda: stream.recv(65536), b"")).decode()
        rows = csv.DictReader(told.removeprefix("# ").splitlines())
        return {row["svname"]: row for row in rows if row["svname"].startswith("api-")}


def haproxy_binary() -> str | None:
    """Where it is; None where it is not installed."""
    return shutil.which("haproxy", path=os.environ["PATH"] + ":/usr/local/sbin:/usr/sbin")


@contextmanager
def haproxy(folder: Path, instance_ports: Sequence[int]) -> Iterator[Haproxy]:
    """In front of these instances, all of which it has found ready; gone afterwards."""
    binary = haproxy_binary()
    assert binary is not None
    port, health_port = unused_port(), unused_port()
    folder = Path(tempfile.mkdtemp(prefix="haproxy-", dir=folder))
    configuration, also = folder / "haproxy.cfg", folder / "haproxy-stats.cfg"
    stats, log = folder / "haproxy.sock", folder / "haproxy.log"
    configuration.write_text(_at(CONFIGURATION.read_text(), port, health_port, instance_ports))
    also.write_text(f"global\n    stats socket {stats}\n")
    with log.open("wb") as output:
        process = subprocess.Popen(
            tied([binary, "-db", "-f", str(configuration), "-f", str(also)]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    running = Haproxy(port, health_port, process.pid, log, stats)

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError):  # it does not listen yet
            return all(each["status"] == "UP" for each in running.stats().values())
        return False

    try:
        wait_until(is_ready, what="HAProxy that has found its instances")
        yield running
    finally:
        process.kill()
        process.wait()


def _at(text: str, port: int, health_port: int, instance_ports: Sequence[int]) -> str:
    servers = [f"    server api-{number} 127.0.0.1:{each}" for number, each in enumerate(instance_ports, 1)]
    for pattern, address in (
        (r"^    bind :8080$", f"    bind 127.0.0.1:{port}"),
        (r"^    bind :8404$", f"    bind 127.0.0.1:{health_port}"),
        (r"^    server-template .*$", "\n".join(servers)),
    ):
        text, found = re.subn(pattern, address, text, flags=re.MULTILINE)
        assert found == 1, pattern
    return text
