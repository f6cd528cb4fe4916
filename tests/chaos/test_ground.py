"""The servers of a chaos run: killed and started again from any thread, and gone with whoever started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import psycopg2
import pytest

from tests.chaos.ground import Ground, PostgresServer
from tests.chaos.small_world import ask
from tests.harness import PATIENCE_S, ROOT, wait_until

ENDS = {"kill": PostgresServer.kill, "quit": PostgresServer.quit, "stop": PostgresServer.stop}
DOOMED = """
import os, signal, sys
from pathlib import Path
from tests.chaos.ground import Ground
with Ground(Path(sys.argv[1])) as ground:
    ground.valkey.restart()
    print(ground.postgres.pid, ground.valkey.process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


class MadeUpError(Exception):
    """Something goes wrong."""


@pytest.fixture
def ground(chaos_ground: Ground) -> Iterator[Ground]:
    """The shared one; up again whatever the test has come to."""
    yield chaos_ground
    chaos_ground.postgres.start()
    chaos_ground.valkey.start()


def run(ground: Ground, statement: str) -> list[tuple[object, ...]]:
    """One statement's rows, in a session of its own."""
    with closing(psycopg2.connect(ground.database_url)) as session:
        session.autocommit = True
        return ask(session, statement)


def in_another_thread(work: Callable[[], object]) -> None:
    """Runs it to its end, in a thread that ends with it."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def is_there(pid: int) -> bool:
    """Whether this process runs; one that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def logged_since(server: PostgresServer, size: int) -> str:
    """What the server has logged from here on."""
    return server.log.read_bytes()[size:].decode()


@pytest.mark.parametrize("end", ENDS)
def test_postgres_comes_back_with_what_was_committed(ground: Ground, end: str) -> None:
    server = ground.postgres
    run(ground, f"CREATE TABLE kept_{end} AS SELECT 7 AS value")
    port, before, pids, size = server.port, server.pid, server.child_pids(), server.log.stat().st_size

    in_another_thread(lambda: ENDS[end](server))
    assert not server.alive()
    wait_until(lambda: not any(is_there(pid) for pid in [before, *pids]), what="the end of every process")
    in_another_thread(server.start)

    assert server.alive()
    assert (server.port, server.pid == before) == (port, False)
    assert run(ground, f"SELECT value FROM kept_{end}") == [(7,)]
    was_a_crash = "not properly shut down" in logged_since(server, size)
    assert was_a_crash == (end != "stop")


def test_start_and_end_are_harmless_twice(ground: Ground) -> None:
    server = ground.postgres
    pid = server.pid
    server.start()
    assert server.pid == pid
    server.kill()
    server.kill()
    server.quit()
    server.start()
    assert run(ground, "SELECT 1") == [(1,)]


def test_only_processes_of_postgres_can_be_killed_as_such(ground: Ground) -> None:
    with pytest.raises(ProcessLookupError):
        ground.postgres.kill_backend(os.getpid())


def test_valkey_is_restarted_empty_by_any_thread(ground: Ground) -> None:
    valkey = ground.valkey
    valkey.ask("SET", "key", "value")
    url = valkey.url
    in_another_thread(valkey.restart)
    assert valkey.ask("DBSIZE") == 0
    in_another_thread(valkey.start)
    assert valkey.url == url == ground.redis_url


def test_it_is_made_as_told_and_gone_after_an_error() -> None:
    own = Ground(
        postgres_settings={"fsync": "off"},
        postgres_environment={"OF_OUR_OWN": "7"},
        valkey_settings=["maxmemory 64mb"],
    )
    pids = []
    with suppress(MadeUpError), own:
        assert own.valkey.process is not None
        pids = [own.postgres.pid, *own.postgres.child_pids(), own.valkey.process.pid]
        assert run(own, "SHOW fsync") == [("off",)]
        assert b"OF_OUR_OWN=7" in Path(f"/proc/{own.postgres.pid}/environ").read_bytes()
        assert own.valkey.ask("CONFIG", "GET", "maxmemory")[1] == str(64 << 20)
        own.valkey.freeze()
        raise MadeUpError
    assert pids
    wait_until(lambda: not any(is_there(pid) for pid in pids), what="the end of every process")
    assert not own.postgres.folder.exists()


def test_the_servers_end_when_whoever_started_them_is_killed(tmp_path: Path) -> None:
    doomed = subprocess.run(
        [sys.executable, "-c", DOOMED, str(tmp_path / "ground")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert doomed.returncode == -signal.SIGKILL
    pids = [int(word) for word in doomed.stdout.split()]
    assert len(pids) == 2
    wait_until(lambda: not any(is_there(pid) for pid in pids), what="the end of the servers")
