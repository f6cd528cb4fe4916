"""`python -m tests.sim` as whoever looks for something meets it."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.harness import wait_until
from tests.servers.kinds import KINDS
from tests.sim.__main__ import COMMANDS, main
from tests.sim.conformance import __main__ as conformance
from tests.sim.redis import DIALECTS
from tests.sim.search import reporting
from tests.sim.search.mutated import in_mutant
from tests.sim.search.trials import at_random, pairs
from tests.sim.trial import PROGRAM

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.sim"]


def refused(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of them."""
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "WHAT"),
        ("everything", "everything"),
        ("seeds --processes 0", "--processes"),
        ("hunt --processes 0", "--processes"),
        ("seeds --only luck", "--only"),
        ("seeds --only charged_at_most_once", "--only"),  # nobody is charged here
        ("seeds --count 0", "--count"),
        ("seeds --lasts-s never", "--lasts-s"),
        ("each --scene nowhere", "--scene"),
        ("each --kind weather", "--kind"),
        ("orders --deviations -1", "--deviations"),
        ("all --seconds inf", "--seconds"),
        ("all --seconds 0.000001 --processes 1", "--seconds: no run began"),
        ("again --seed 1 --with processes=0", "--with"),
        ("again --lasts-s nan", "--lasts-s"),
        ("again --scene acquire --fault kill:0:999999:1", "--fault, --delay: event 999999 is never reached"),
        ("again --scene acquire --delay 99999", "--fault, --delay: event 99999 is never reached"),
        ("again --scene choose --fault stall:1", "--fault"),
        ("again --seed 1 --faults 99999", "--faults"),
        ("again --scene acquire --trace /nowhere/at/all", "--trace"),
        ("again --scene acquire --trace=", "--trace"),
    ],
)
def test_wrong_arguments_are_refused_by_name(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in refused(words, capsys)


@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_everything_has_a_help_text(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    options = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  -")]
    assert options


def test_nothing_found_is_0_and_says_how_much_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["orders", "--scene", "acquire", "--deviations", "1", "--processes", "1"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("acquire: ")
    assert told[-1] == "nothing is broken"


def test_nothing_found_of_one_property_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["orders", "--scene", "acquire", "--deviations", "1", "--processes", "1", "--only", "fences_rise"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing is broken of fences_rise"


def test_a_run_that_breaks_nothing_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["again", "--scene", "acquire"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing is broken"


def test_something_found_is_1_and_told_as_a_command_that_finds_it_again() -> None:
    status, told = in_mutant("foreign-release", told_by, "orders --scene handoff --deviations 1 --processes 1")
    assert status == 1
    python, _, words = told.splitlines()[0].partition(" -m tests.sim ")
    assert (ROOT / python).samefile(sys.executable)
    assert words.startswith("again --scene handoff --delay")
    status, told = in_mutant("foreign-release", told_by, f"{words} --shrink")
    assert status == 1
    assert "holders_do_not_overlap" in told


def told_by(words: str) -> tuple[int, str]:
    """The exit status, and what is written."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        return main(words.split()), out.getvalue()


def test_a_trace_has_a_line_for_each_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["again", "--scene", "acquire", "--trace", str(tmp_path / "trace")]) == 0
    lines = (tmp_path / "trace").read_text().splitlines()
    assert " run " in lines[0]
    assert any(" point " in line and "'acquired'" in line for line in lines)
    capsys.readouterr()
    assert main(["again", "--scene", "acquire", "--trace", "-"]) == 0
    assert capsys.readouterr().out.splitlines()[: len(lines)] == lines


# What each of them writes first, so that it is in the middle of its work then.
SEARCHES = ["orders --deviations 3 --processes 1", "orders --deviations 3 --processes 2"]
HUNT = "hunt --searches 100 --processes 1"
BEGINS = dict.fromkeys(SEARCHES, "acquire: ") | {HUNT: "mutant | "}


@contextlib.contextmanager
def searching(words: str) -> Iterator[subprocess.Popen[str]]:
    """In the middle of its work; at the end no process of its group is left."""
    search = subprocess.Popen(
        [*COMMAND, *words.split()],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert search.stdout is not None
        assert search.stdout.readline().startswith(BEGINS[words])
        if words != SEARCHES[0]:  # two that search, or one and its broken one; and the tracker of their resources
            wait_until(lambda: len(group_of(search)) == 4, what="processes that search")
        yield search
        wait_until(lambda: not group_of(search), patience_s=20, what="the end of its processes")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(search.pid, signal.SIGKILL)
        search.communicate()


def group_of(leader: subprocess.Popen[str]) -> list[int]:
    """The processes of its group that have not ended."""
    found = subprocess.run(["ps", "-A", "-o", "pgid=,pid=,stat="], capture_output=True, text=True, check=True)
    rows = [line.split() for line in found.stdout.splitlines()]
    return [int(pid) for group, pid, state in rows if int(group) == leader.pid and not state.startswith("Z")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize("words", BEGINS)
def test_a_signal_ends_it_and_its_processes_without_a_traceback(words: str, number: signal.Signals) -> None:
    with searching(words) as search:
        search.send_signal(number)
        _, told = search.communicate(timeout=60)
        assert (search.returncode, told) == (128 + number, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_to_all_of_its_processes_ends_them_without_a_traceback(number: signal.Signals) -> None:
    with searching(SEARCHES[1]) as search:
        os.killpg(search.pid, number)  # as a terminal and `timeout` do
        _, told = search.communicate(timeout=60)
        assert (search.returncode, told) == (128 + number, "")


@pytest.mark.parametrize("words", BEGINS)
def test_its_processes_end_by_themselves_where_it_is_killed(words: str) -> None:
    with searching(words) as search:
        search.kill()


def test_a_signal_that_its_starter_ignores_is_ignored() -> None:
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    words = [sys.executable, "-c", ignoring, *COMMAND, "orders", "--scene", "acquire", "--scene", "release"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as search:
        assert search.stdout is not None
        assert search.stdout.readline().startswith("acquire: ")
        search.send_signal(signal.SIGHUP)
        assert search.stdout.read().endswith("nothing is broken\n")
    assert search.returncode == 0


@pytest.mark.parametrize("words", SEARCHES)
def test_nobody_reads_any_more_and_it_ends_without_a_traceback(words: str) -> None:
    with searching(words) as search:
        assert search.stdout is not None
        assert search.stderr is not None
        search.stdout.close()
        assert search.stderr.read() == ""
        assert search.wait(timeout=60) == 128 + signal.SIGPIPE


def test_what_cannot_be_written_is_said_in_a_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "again", "--scene", "acquire"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"{PROGRAM}: error: [Errno 28] No space left on device"]


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_it_does_not_search_where_nobody_could_be_told(closed: str) -> None:
    words = " ".join([*COMMAND, "again", "--scene", "acquire", closed])
    done = subprocess.run(["sh", "-c", words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_the_conformance_says_what_it_does_and_refuses_what_means_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        conformance.main(["--help"])
    told = capsys.readouterr().out
    assert "Holds the model" in told
    assert all(kind in told for kind in DIALECTS)
    for words in (["--commands", "-3"], ["--commands", "0"]):
        with pytest.raises(SystemExit) as end:
            conformance.main(words)
        assert end.value.code == 2
        assert "--commands" in capsys.readouterr().err


@pytest.mark.parametrize("ci", ["true", "false"])
def test_the_conformance_refuses_a_server_that_is_not_here(
    ci: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "redis-7", replace(KINDS["redis-7"], find=lambda: None))
    monkeypatch.setenv("CI", ci)
    with pytest.raises(SystemExit) as end:
        conformance.main(["--kind", "redis-7"])
    assert end.value.code == 2
    assert "--kind: redis-7 is not installed" in capsys.readouterr().err


def test_a_signal_ends_the_conformance_its_server_and_its_folder(tmp_path: Path) -> None:
    search = subprocess.Popen(
        [sys.executable, "-m", "tests.sim.conformance"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: len(group_of(search)) > 1 and list(tmp_path.glob("*/server-*/*.log")), what="its server")
    search.send_signal(signal.SIGTERM)
    _, told = search.communicate(timeout=60)
    assert (search.returncode, told) == (128 + signal.SIGTERM, "")
    assert list(tmp_path.iterdir()) == []
    wait_until(lambda: not group_of(search), what="the end of its server")


def test_a_terminal_hears_how_it_goes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "EVERY_S", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    report = reporting.Report(argparse.Namespace(processes=1, only=None))
    report.search(pairs(1, 30))
    assert report.end() == 0
    assert [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()] == [
        "20 runs, 0 of them break something",
        "30 runs, 0 of them break something",
    ]


def test_a_search_ends_when_its_time_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    report = reporting.Report(argparse.Namespace(processes=1, only=None), seconds=0.5)
    report.search(at_random(1, None, lasts_s=1.0))
    report.end()
    assert "runs" in capsys.readouterr().out
