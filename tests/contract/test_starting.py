"""The first seconds: what stands in the way of a start, or ends it, is said in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.api import Api
from tests.harness import PATIENCE_S, ROOT, Service, clean_environment, run_cli, service, wait_until
from tests.servers.processes import processes_in, unused_port

MODULE = [sys.executable, "-X", "importtime", "-m", "service"]
SCRIPT = [sys.executable, "-X", "importtime", str(Path(sys.executable).with_name("chargeonce"))]
IMPORTED = "import time:"


# Ctrl-C


@contextmanager
def starting(command: Sequence[str], data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that tells on standard error what it imports, and logs what it does."""
    with subprocess.Popen(
        command,
        env=clean_environment(data_dir=str(data_dir), audit_interval_s="0"),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
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


def interrupted_at(process: subprocess.Popen[str], moment: str) -> list[str]:
    """Ctrl-C when it says this; what it says from then on, without the imports and the log."""
    assert process.stderr is not None
    while moment not in (line := process.stderr.readline()):
        assert line, f"it ended before {moment}"
    process.send_signal(signal.SIGINT)
    said = process.stderr.read().splitlines()
    return [line for line in said if not line.startswith((IMPORTED, "{"))]


@pytest.mark.parametrize(
    ("command", "moment"),
    [
        ([*MODULE, "serve", "--port", "0"], "typer."),
        ([*MODULE, "serve", "--port", "0"], "pydantic_core"),
        ([*MODULE, "serve", "--port", "0"], "sqlalchemy"),
        ([*MODULE, "serve", "--port", "0"], "aiohttp"),
        ([*SCRIPT, "serve", "--port", "0"], "typer"),
        ([*MODULE, "serve", "--port", "0", "--demo"], '"starting Valkey"'),
        ([*MODULE, "serve", "--port", "0", "--demo"], '"starting Postgres"'),
        ([*MODULE, "serve", "--port", "0", "--demo"], '"migrating"'),
        ([*MODULE, "serve", "--port", "0", "--demo"], '"seeding demo data"'),
        ([*MODULE, "audit"], "service.embedded"),
    ],
    ids=lambda value: value if isinstance(value, str) else Path(value[3]).name,
)
def test_ctrl_c_before_anything_is_served_says_one_line(command: Sequence[str], moment: str, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with starting(command, data_dir) as process:
        said = interrupted_at(process, moment)
        assert (process.wait(PATIENCE_S), said) == (130, ["chargeonce: interrupted"])


def test_ctrl_c_once_there_are_workers_is_a_drain(tmp_path: Path) -> None:
    with starting([*MODULE, "serve", "--port", "0"], tmp_path / "data") as process:
        said = interrupted_at(process, '"lock store up"')  # a worker that is not ready yet
        assert (process.wait(PATIENCE_S), said) == (0, [])


def test_a_start_after_ctrl_c_amid_the_making_of_postgres_serves(tmp_path: Path) -> None:
    with starting([sys.executable, "-m", "service", "serve", "--port", "0"], tmp_path / "data") as process:
        wait_until(lambda: (tmp_path / "data" / "postgres.new" / "PG_VERSION").exists())
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
        with embedded_service(tmp_path) as running:  # at once: it waits for what the first one left
            assert running.stop() == 0


@contextmanager
def embedded_service(folder: Path) -> Iterator[Service]:
    """`chargeonce serve` with servers and secrets of its own in folder/data."""
    with service(folder, workers=1, jwt_secret="", agora_app_id="", agora_app_certificate="") as running:
        yield running


# Standard files


@pytest.mark.parametrize("without", ["<&-", ">&-", "2>&-", "<&- >&-", ">/dev/full"])
def test_a_service_without_a_standard_file_serves(cli_environment: dict[str, str], without: str) -> None:
    """One of its sockets would get the number, and with it the log, or be taken away by the next child's input."""
    port = str(unused_port())
    words = [sys.executable, "-m", "service", "serve", "--workers", "1", "--port", port]
    with subprocess.Popen(
        ["sh", "-c", f'exec "$@" {without}', "sh", *words],
        env=cli_environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            if without == "2>&-":
                assert port in process.stdout.readline()
            else:
                while '"worker ready"' not in (line := process.stderr.readline()):
                    assert line, "it ended"
            assert Api(f"http://127.0.0.1:{port}").get("/readyz").status == 200
            process.send_signal(signal.SIGINT)
            assert "Traceback" not in process.stderr.read()
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_an_answer_that_cannot_be_printed_is_a_failure_in_one_line(cli_environment: dict[str, str]) -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "service", "token", "--user", "7"],
            env={name: value for name, value in cli_environment.items() if name != "PYTHONUNBUFFERED"},
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
        )
    assert (ended.returncode, ended.stderr) == (1, "chargeonce: No space left on device\n")


# A port or a folder that is taken


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service that is there already."""
    with embedded_service(tmp_path_factory.mktemp("first")) as running:
        yield running


def data_dir_of(running: Service) -> str:
    return running.environment["CHARGEONCE_DATA_DIR"]


def refused(environment: dict[str, str], *words: str) -> str:
    """The one line with which a start is refused."""
    ended = run_cli("serve", *words, environment=environment)
    assert (ended.returncode, ended.stdout) == (1, ""), ended.stderr
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, ended.stderr
    return lines[0]


@pytest.mark.parametrize("same_port", [True, False])
def test_a_second_start_on_the_same_folder_names_the_first(first: Service, same_port: bool) -> None:
    port = first.url.rpartition(":")[2] if same_port else "0"
    line = refused(dict(first.environment), "--port", port)
    assert line.startswith(f"chargeonce: it already runs here: pid {first.process.pid}, {first.url}, data folder ")
    assert data_dir_of(first) in line


def test_a_port_of_our_service_on_another_folder_is_another_programs(first: Service, tmp_path: Path) -> None:
    port = first.url.rpartition(":")[2]
    line = refused(clean_environment(data_dir=str(tmp_path / "other")), "--port", port)
    assert f"port {port} is taken by another program" in line
    assert "--port" in line
    assert not (tmp_path / "other").exists(), "nothing was touched"


def test_a_strangers_port_is_said_to_be_taken(first: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        assert f"port {port} is taken by another program" in refused(dict(first.environment), "--port", str(port))


@pytest.mark.parametrize("same_folder", [True, False])
def test_the_port_can_be_looked_at_before_anything_is_installed(
    first: Service, tmp_path: Path, same_folder: bool
) -> None:
    port, data_dir = first.url.rpartition(":")[2], data_dir_of(first) if same_folder else str(tmp_path)
    looked = subprocess.run(
        [sys.executable, "-S", "-m", "service.port", "127.0.0.1", port, data_dir],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert looked.returncode == 1
    assert ("it already runs here" if same_folder else "another program") in looked.stderr
    assert looked.stderr.count("\n") == 1


# make


def make(folder: Path, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """`make WORDS` in a folder that has what a fresh checkout has, and no .venv."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "service", folder / "service", dirs_exist_ok=True)
    return subprocess.run(
        ["make", f"PYTHON={sys.executable}", *words],
        cwd=folder,
        env=without_make(clean_environment(**settings)),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def without_make(environment: dict[str, str]) -> dict[str, str]:
    """The environment as a terminal has it, although `make test` may be what runs us."""
    return {name: value for name, value in environment.items() if not name.startswith(("MAKE", "MFLAGS"))}


def test_make_run_looks_at_its_port_before_it_installs_anything(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        done = make(tmp_path, "run", port=str(stranger.getsockname()[1]))
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].endswith("choose another with --port or CHARGEONCE_PORT (0: any free one)")
    assert done.stdout == ""
    assert not (tmp_path / ".venv").exists()


def test_make_run_names_a_port_that_is_none(tmp_path: Path) -> None:
    done = make(tmp_path, "run", port="http")
    assert "CHARGEONCE_PORT" in done.stderr.splitlines()[0]
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("target", ["run", "test", "setup", "check", "chaos"])
@pytest.mark.parametrize("says", [None, "exit 1"])
def test_a_python_that_will_not_do_is_named(tmp_path: Path, target: str, says: str | None) -> None:
    python = tmp_path / "python"
    if says is not None:  # an older one, as the question for its version ends
        python.write_text(f"#!/bin/sh\n{says}\n")
        python.chmod(0o755)

    done = make(tmp_path, f"PYTHON={python}", target)

    said = [line for line in done.stderr.splitlines() if "***" not in line]  # make's own last word
    assert said == [f"make: PYTHON={python} does not run, or is not Python 3.11 or newer"]
    assert done.returncode == 2


def test_make_run_installs_only_what_running_needs_and_make_test_the_rest(tmp_path: Path) -> None:
    run, test = make(tmp_path, "--dry-run", "run").stdout, make(tmp_path, "--dry-run", "test").stdout
    assert re.search(r"--editable \.$", run, flags=re.MULTILINE)
    assert "[dev]" not in run
    assert "--editable '.[dev]'" in test
    assert "--editable .\n" not in test
    stages = ["service.port", "making .venv", "installing", "serve --demo"]
    assert sorted(stages, key=run.index) == stages


def test_ctrl_c_amid_the_making_of_the_venv_leaves_no_traceback_and_no_half_made_one(tmp_path: Path) -> None:
    make(tmp_path, "help")
    command = ["make", f"PYTHON={sys.executable}", ".venv/.made"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=without_make(clean_environment()),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as making:
        wait_until(lambda: (tmp_path / ".venv" / "pyvenv.cfg").exists())
        os.killpg(making.pid, signal.SIGINT)
        assert making.stdout is not None
        first, *rest = making.stdout.read().splitlines()
    assert (making.returncode == 0, first) == (False, f"making .venv with {sys.executable}")
    # All else is make's own word: that it was interrupted or, where a child ends just then, that it has none.
    assert [line for line in rest if not line.startswith("make: *** ")] == []
    assert not (tmp_path / ".venv" / ".made").exists()
    assert make(tmp_path, ".venv/.made").returncode == 0


def test_each_stage_of_the_start_is_a_line(first: Service) -> None:
    events = [json.loads(line)["event"] for line in first.logged().splitlines()]
    stages = ["starting Valkey", "starting Postgres", "migrating", "starting workers"]
    assert [event for event in events if event in stages] == stages
