"""Nobody reads what the service says, or the log's disk is full: it starts, serves and drains all the same."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import StartService
from tests.contract.api import Api, assert_audit_passes
from tests.harness import Rows, Service, Start, wait_until
from tests.servers.processes import unused_port

EVERYBODY_DROPS = 3  # two workers and their supervisor


@contextmanager
def closing(*fds: int) -> Iterator[None]:
    yield
    for fd in fds:
        os.close(fd)


def dropped(api: Api) -> float:
    return api.metric("log_lines_dropped_total")


def enter_somewhere(api: Api, rows: Rows, inviter: int) -> int:
    """The status of an entry into a new appointment."""
    rows.grant(inviter, 1)
    return api.enter(rows.appointment(inviter, inviter + 1), inviter).status


def assert_lives_on(service: Service, rows: Rows) -> None:
    """Both workers serve, a dead one comes back, which the supervisor has to say, and all of them drain."""
    api = Api(service.url)
    assert [enter_somewhere(api, rows, 1000 * number) for number in range(1, 21)] == [201] * 20
    wait_until(lambda: len(service.worker_pids()) == 2)
    killed = service.worker_pids()[0]
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(service.worker_pids()) == 2 and killed not in service.worker_pids(), what="a new worker")
    assert [enter_somewhere(api, rows, 1000 * number) for number in range(101, 121)] == [201] * 20
    assert api.get("/livez").status == 200


def test_a_log_reader_that_dies_ends_nothing(start_service: StartService, database_url: str, rows: Rows) -> None:
    reader, writer = os.pipe()
    with closing(writer):
        service = start_service(Start(stderr=writer))
        os.close(reader)

        assert_lives_on(service, rows)

        # What each of 40 entries says, and the supervisor of a dead worker, is dropped and counted.
        wait_until(lambda: dropped(Api(service.url)) >= 41, what="dropped lines")
        assert service.stop() == 0
    assert_audit_passes(database_url)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_log_reader_that_stalls_ends_nothing_and_gets_whole_lines_once_it_reads_again(
    kind: str, start_service: StartService, database_url: str, rows: Rows
) -> None:
    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        reader, writer = (each.detach() for each in socket.socketpair())
    with closing(reader, writer):
        service = start_service(Start(stderr=writer))
        api = Api(service.url)
        assert dropped(api) == 0
        wait_until(lambda: read_all(reader).count(b"worker ready") == 2)
        filled = fill(writer)

        assert_lives_on(service, rows)

        wait_until(lambda: dropped(api) >= 41, what="dropped lines")
        said = read_all(reader)
        assert said.count(b"x") == filled
        before = dropped(api)
        assert enter_somewhere(api, rows, 5000) == 201
        again = bytearray()

        def a_line_has_come() -> bool:
            again.extend(read_all(reader))
            return again.endswith(b"\n")

        wait_until(a_line_has_come, what="a line")
        assert json.loads(again.splitlines()[-1])["event"] == "entry"
        assert dropped(api) == before
        assert service.stop() == 0
    assert_audit_passes(database_url)


def fill(writer: int) -> int:
    """Writes x until no more fits; how many."""
    count = 0
    os.set_blocking(writer, False)  # ours alone: the service opens a pipe anew, and asks a socket each time
    try:
        for size in (4096, 1):
            while True:
                try:
                    count += os.write(writer, b"x" * size)
                except BlockingIOError:
                    break
    finally:
        os.set_blocking(writer, True)
    return count


def read_all(reader: int) -> bytes:
    """What is there now."""
    os.set_blocking(reader, False)
    parts = []
    while True:
        try:
            parts.append(os.read(reader, 65536))
        except BlockingIOError:
            return b"".join(parts)


def test_on_a_full_disk_it_starts_serves_and_counts_what_it_could_not_log(
    start_service: StartService, database_url: str, rows: Rows
) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with closing(full):
        service = start_service(Start(stderr=full), misspelt="so that there is something to warn of")

        assert_lives_on(service, rows)

        # The warning at the start, what both workers have said, and each entry.
        assert dropped(Api(service.url)) >= 1 + 3 + 41
        assert service.stop() == 0
    assert_audit_passes(database_url)


@pytest.mark.parametrize("redirected", ["| true", ">&-", ">&- 2>&- <&-", ">/dev/full 2>&1"])
def test_it_starts_whatever_its_output_is(
    redirected: str, tmp_path: Path, database_url: str, redis_url: str, cli_environment: dict[str, str]
) -> None:
    port = unused_port()
    pid_file = tmp_path / "pid"
    serve = f"exec {sys.executable} -m service serve --port {port} --workers 1"
    shell = subprocess.Popen(
        ["/bin/sh", "-c", f"sh -c 'echo $$ >{pid_file}; {serve}' {redirected}"],
        env=cli_environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    api = Api(f"http://127.0.0.1:{port}")
    try:
        wait_until(lambda: is_ready(api) or shell.poll() is not None, what="the service")
        assert is_ready(api)
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself, which the assertion says
            os.kill(int(pid_file.read_text()), signal.SIGTERM)
        shell.wait(60)


def is_ready(api: Api) -> bool:
    try:
        return api.get("/readyz").status == 200
    except OSError:
        return False
