"""The whole of it, small: a run of the product that holds, one of a mutant that is found, and the commands around."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from rich.console import Console

from tests.chaos.__main__ import main
from tests.chaos.checks import Thresholds, judge
from tests.chaos.checks.generated import generated
from tests.chaos.history import read_history
from tests.chaos.mutants import MUTANTS
from tests.chaos.nursery import ROOT
from tests.chaos.prove import Proof
from tests.chaos.schedule import Schedule, expand, load
from tests.chaos.standing import Judged, Standing
from tests.chaos.teeth import search
from tests.conftest import StartService
from tests.harness import PATIENCE_S, Service

SHORT_S = 4.0
RATE = 150.0
# Faults that a busy machine bears within a short run.
SOME = {"die", "freeze", "flush", "lose_commit_reply", "terminate_backend", "redis_restart"}


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    """Servers of this module's own."""
    with Standing(tmp_path_factory.mktemp("chaos")) as standing:
        yield standing


@pytest.fixture
def own_signals() -> Iterator[None]:
    """The command, in this process, leaves its way to end in order behind."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def _status_of(words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as end:  # argparse's
        return int(end.code or 0)


def chaos(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.chaos", *words],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )


def test_the_product_holds_under_faults_and_the_same_schedule_can_be_run_and_judged_again(
    standing: Standing, tmp_path: Path
) -> None:
    schedule = expand(Schedule(seed=11, instances=2, duration_s=SHORT_S, clients=8), kinds=SOME)
    schedule.save(tmp_path / "schedule.json")

    judged = standing.run(load(tmp_path / "schedule.json"), tmp_path / "history.jsonl", rate=RATE)

    assert judged.broken == []
    events = read_history(tmp_path / "history.jsonl")
    assert [event["faults"] for event in events if event["e"] == "schedule"] == [schedule.faults]
    assert any(event["e"] == "fault" and event["targeted"] for event in events)
    again = chaos("check", str(tmp_path / "history.jsonl"), "--database-url", standing.ground.database_url)
    assert "charged_at_most_once" in again.stdout
    assert again.returncode in (0, 2), again.stdout  # 2: so short a run need not have seen everything


def test_a_history_of_which_too_little_is_known_is_told_so_when_it_is_judged_again(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    long = {"seed": 1, "instances": 3, "duration_s": 3600.0}  # of which 36,000 operations are expected
    whole = [event | long if event["e"] == "run" else event for event in generated(1, operations=300)]
    whole.insert(1, {"e": "schedule", "t": whole[0]["t"], "faults": []})
    history.write_bytes(b"".join(orjson.dumps(event) + b"\n" for event in whole))

    again = chaos("check", str(history))

    assert again.returncode == 2, again.stdout + again.stderr
    last = again.stdout.splitlines()[-1]
    assert re.fullmatch(r"\d+ held, \d+ unknown; unknown: not_vacuous.*", last)


def test_a_history_that_is_no_runs_is_refused_in_one_line(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    history.write_text('{"e":"run","t":1,"seed":1,"instances":1}\n')

    refused = chaos("check", str(history))

    assert refused.returncode == 2
    assert (refused.stdout + refused.stderr).splitlines() == [
        f"chaos: {history}: the run in it does not say duration_s"
    ]


def test_a_proof_lacks_what_is_unknown_in_one_of_its_runs() -> None:
    events = generated(1, operations=300)
    proof = Proof(Console(quiet=True))

    proof.take(Judged(Schedule(seed=1, instances=3, duration_s=1.0), Path(), events, judge(events)))
    assert proof.unknown == []
    too_little = judge(events, thresholds=Thresholds(operations=1_000_000))
    proof.take(Judged(Schedule(seed=2, instances=3, duration_s=1.0), Path(), events, too_little))

    assert "seed 2: not_vacuous is unknown" in proof.lacks()


@pytest.mark.parametrize("name", ["release-before-commit", "unknown-as-refused"])
def test_a_mutant_is_named_by_its_property(standing: Standing, tmp_path: Path, name: str) -> None:
    detection = search(standing, tmp_path, MUTANTS[name], seed=1, within_s=PATIENCE_S)

    assert detection.found_in_s is not None, detection
    assert set(detection.caught) & set(MUTANTS[name].caught_by)


def test_nothing_of_a_run_is_left_behind(standing: Standing, tmp_path: Path) -> None:
    schedule = Schedule(seed=3, instances=2, duration_s=1.0, clients=4)

    events = standing.run(schedule, tmp_path / "history.jsonl", rate=RATE).events

    pids = {event["pid"] for event in events if event["e"] == "born"}
    assert len(pids) == 2
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--faults", "earthquake"], "earthquake"),
        (["--seed", "-1"], "--seed"),
        (["--duration-s", "0"], "--duration-s"),
        (["--instances", "many"], "--instances"),
        (["--guard", "hope"], "--guard"),
        (["--schedule", "/nowhere.json"], "nowhere.json"),
        (["check", "/nowhere.jsonl"], "nowhere.jsonl"),
        (["--world", "flat"], "flat"),
        (["mutants", "--names", "harmless"], "harmless"),
    ],
)
@pytest.mark.usefixtures("own_signals")
def test_what_cannot_be_run_is_refused_by_name_with_status_2(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _status_of(words) == 2
    told = capsys.readouterr()
    assert named in told.out + told.err
    assert "Traceback" not in told.err


def test_the_origins_guard_is_broken_and_the_report_says_so(tmp_path: Path) -> None:
    history, report = tmp_path / "history.jsonl", tmp_path / "report.html"
    words = ["--guard", "entry-log", "--duration-s", "2", "--instances", "2", "--faults", "none", "--seed", "1"]

    broken = chaos(*words, "--rate", "200", "--history", str(history), "--report", str(report))

    assert broken.returncode == 1, broken.stdout + broken.stderr
    assert "charged_at_most_once" in broken.stdout
    assert "BROKEN" in broken.stdout
    assert report.stat().st_size > 10_000


def test_a_deployment_of_ones_own_is_judged_while_its_workers_are_killed(
    start_service: StartService, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    running: Service = start_service(workers=2, lease_ttl_s="0.6", lock_wait_s="2")
    kill = f"kill -9 {running.worker_pids()[0]}"
    history = tmp_path / "history.jsonl"

    words = ["--base-url", running.url, "--database-url", database_url, "--redis-url", redis_url]
    words += ["--duration-s", "4", "--rate", "100", "--lease-ttl-s", "0.6", "--fault", f"kill-a-worker={kill}"]
    words += ["--history", str(history), "--report", str(tmp_path / "report.html")]
    attached = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "attach", *words],
        cwd=ROOT,
        env={**running.environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )

    assert attached.returncode == 0, attached.stdout + attached.stderr
    kinds = [json.loads(line) for line in history.read_text().splitlines()]
    assert any(event["e"] == "fault" and event["kind"] == "kill-a-worker" for event in kinds)
    assert sum(event["e"] == "ok" for event in kinds) > 50
    again = chaos("check", str(history))
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, "11 held"), again.stdout + again.stderr
