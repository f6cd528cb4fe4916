"""`make race`: the table is measured, its verdicts can be no as well as yes, and nothing is left behind."""

from __future__ import annotations

import dataclasses
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.guards import GUARDS
from tests.chaos.race import status_of
from tests.chaos.race_ground import Charged
from tests.chaos.race_rounds import Measured
from tests.chaos.race_verdicts import verdicts
from tests.harness import PATIENCE_S, ROOT, clean_environment, wait_until

pytestmark = pytest.mark.timeout(300)  # a whole race in a fixture: long where others use the machine too

APPOINTMENTS, PAUSED = 8, 1


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """A race that was run."""

    status: int
    printed: str
    guards: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small race under every guard, as `make race` runs it."""
    folder = tmp_path_factory.mktemp("race")
    options = ("--appointments", str(APPOINTMENTS), "--paused", str(PAUSED), "--json", str(folder / "race.json"))
    done = subprocess.run(
        _command(*options),
        cwd=ROOT,
        env=_environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    guards = json.loads((folder / "race.json").read_text())["guards"]
    return Run(done.returncode, done.stdout, {each["guard"]: each for each in guards})


def test_every_guard_does_in_a_small_race_what_is_said_of_it(run: Run) -> None:
    assert {guard: each["why_not"] for guard, each in run.guards.items()} == dict.fromkeys(GUARDS, "")
    assert run.status == 0
    assert all(guard in run.printed for guard in GUARDS)


def test_the_entry_log_charges_a_crowd_more_than_once(run: Run) -> None:
    crowd = run.guards["entry-log"]["crowd"]
    assert crowd["overcharged"] > 0
    assert crowd["most_charges"] > 1
    assert crowd["coupons_too_many"] > 0


def test_the_lock_alone_charges_again_once_its_holder_was_paused_past_its_lease(run: Run) -> None:
    found = run.guards["lock-only"]
    assert found["pause_s"] >= 1.15
    assert found["paused"]["overcharged"] == PAUSED
    assert found["paused"]["most_charges"] == 2


def test_the_row_alone_charges_once_while_sessions_wait_for_it(run: Run) -> None:
    assert _most_charges(run, "row-only") == 1
    assert run.guards["row-only"]["most_waiting_for_a_row"] > run.guards["lock-and-row"]["most_waiting_for_a_row"]
    assert run.guards["row-only"]["most_sessions"] > run.guards["lock-and-row"]["most_sessions"]


def test_lock_and_row_charge_once_under_the_very_same_pause(run: Run) -> None:
    assert _most_charges(run, "lock-and-row") == 1
    assert run.guards["lock-and-row"]["pause_s"] >= 1.15
    assert run.guards["lock-and-row"]["paused"]["appointments"] == PAUSED
    assert run.guards["lock-and-row"]["answers"]["charged"] == APPOINTMENTS + PAUSED


def test_an_interrupted_race_exits_2_and_leaves_no_process(tmp_path: Path) -> None:
    process = subprocess.Popen(
        _command(),
        cwd=ROOT,
        env=_environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        # A shell's background job, and all that it starts, ignores SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        # The instances open their log as they are started.
        wait_until(lambda: list(tmp_path.glob("chargeonce-race-*/entry-log.log")), what="the first instances")
        assert _processes_that_name(tmp_path)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 2, printed
    assert _processes_that_name(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_race_that_cannot_be_run_exits_2_with_one_line(tmp_path: Path) -> None:
    def no_room_for_a_database() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, 64 * 1024))

    done = subprocess.run(
        _command(),
        cwd=ROOT,
        env=_environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        preexec_fn=no_room_for_a_database,
    )
    assert done.returncode == 2
    assert done.stdout.startswith("race: ")
    assert "Traceback" not in done.stderr


ONCE = Charged(appointments=9, overcharged=0, uncharged=0, most_charges=1, coupons_too_many=0)
AGAIN = Charged(appointments=9, overcharged=2, uncharged=0, most_charges=7, coupons_too_many=11)
NEVER = Charged(appointments=9, overcharged=0, uncharged=9, most_charges=0, coupons_too_many=0)


def measured(guard: str) -> Measured:
    """As is said of the guard."""
    return Measured(
        guard=guard,
        crowd=AGAIN if guard == "entry-log" else ONCE,
        paused=AGAIN if guard in ("entry-log", "lock-only") else ONCE,
        pause_s=1.2,
        entries=100,
        p50_ms=1.0,
        p99_ms=2.0,
        most_sessions=90,
        most_waiting_for_a_row=80 if guard == "row-only" else 3,
        answers={"charged": 9},
    )


Change = Callable[[Measured], Measured]


@pytest.mark.parametrize(
    ("guard", "change"),
    [
        ("entry-log", lambda each: dataclasses.replace(each, crowd=ONCE)),
        ("lock-only", lambda each: dataclasses.replace(each, paused=ONCE)),
        ("row-only", lambda each: dataclasses.replace(each, crowd=AGAIN)),
        ("row-only", lambda each: dataclasses.replace(each, paused=AGAIN)),
        ("row-only", lambda each: dataclasses.replace(each, most_waiting_for_a_row=3)),
        ("lock-and-row", lambda each: dataclasses.replace(each, crowd=AGAIN)),
        ("lock-and-row", lambda each: dataclasses.replace(each, paused=AGAIN)),
        ("lock-and-row", lambda each: dataclasses.replace(each, crowd=NEVER)),
        ("lock-and-row", lambda each: dataclasses.replace(each, answers={"internal-error": 1})),
    ],
)
def test_a_guard_that_does_otherwise_is_named_and_the_exit_status_is_1(guard: str, change: Change) -> None:
    as_said = [measured(each) for each in GUARDS]
    assert status_of(verdicts(as_said)) == 0
    judged = verdicts([change(each) if each.guard == guard else each for each in as_said])
    assert [verdict.guard for verdict in judged if verdict.why_not] == [guard]
    assert status_of(judged) == 1


def _most_charges(run: Run, guard: str) -> int:
    return max(int(run.guards[guard][part]["most_charges"]) for part in ("crowd", "paused"))


def _command(*options: str) -> list[str]:
    return [sys.executable, "-m", "tests.chaos.race", *options]


def _environment(folder: Path) -> dict[str, str]:
    return clean_environment() | {"TMPDIR": str(folder), "COLUMNS": "120"}


def _processes_that_name(folder: Path) -> list[str]:
    """The command lines of processes that were started for this folder, by their environment or by their arguments."""
    named = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            told = command + (process / "environ").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        if str(folder).encode() in told:
            named.append(command.replace(b"\0", b" ").decode())
    return named
