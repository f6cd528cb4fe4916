"""`python -m tests.sim` as whoever looks for something meets it."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.__main__ import COMMANDS, main
from tests.sim.search import reporting
from tests.sim.search.mutated import in_mutant
from tests.sim.search.trials import at_random, pairs

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
        ("--processes 0 seeds", "--processes"),
        ("--only luck seeds", "--only"),
        ("seeds --count 0", "--count"),
        ("seeds --lasts-s never", "--lasts-s"),
        ("each --scene nowhere", "--scene"),
        ("each --kind weather", "--kind"),
        ("orders --deviations -1", "--deviations"),
        ("all --seconds inf", "--seconds"),
        ("again --scene choose --fault stall:1", "--fault"),
        ("again --seed 1 --faults 99999", "--faults"),
        ("again --scene acquire --trace /nowhere/at/all", "--trace"),
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
    assert main(["--processes", "1", "orders", "--scene", "acquire", "--deviations", "1"]) == 0
    assert capsys.readouterr().out.startswith("acquire: ")


def test_something_found_is_1_and_told_as_a_command_that_finds_it_again() -> None:
    status, told = in_mutant("foreign-release", told_by, "--processes 1 orders --scene handoff --deviations 1")
    assert status == 1
    words = told.splitlines()[0].removeprefix("python -m tests.sim ")
    assert words.startswith("again --scene handoff --delay")
    status, told = in_mutant("foreign-release", told_by, f"{words} --shrink")
    assert status == 1
    assert "holders_do_not_overlap" in told


def told_by(words: str) -> tuple[int, str]:
    """The exit status, and what is written."""
    import contextlib
    import io

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


@pytest.mark.parametrize("processes", ["1", "2"])
def test_ctrl_c_ends_it_without_a_traceback(processes: str) -> None:
    search = subprocess.Popen(
        [*COMMAND, "--processes", processes, "orders", "--deviations", "3"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert search.stdout is not None
    assert search.stdout.readline().startswith("acquire: ")  # so that it is in the middle of the next
    search.send_signal(signal.SIGINT)
    _, told = search.communicate(timeout=60)
    assert (search.returncode, told) == (130, "")


@pytest.mark.parametrize("processes", ["1", "2"])
def test_nobody_reads_any_more_and_it_ends_without_a_traceback(processes: str) -> None:
    search = subprocess.Popen(
        [*COMMAND, "--processes", processes, "orders", "--deviations", "1"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert search.stdout is not None
    assert search.stdout.readline().startswith("acquire: ")
    search.stdout.close()
    assert search.stderr is not None
    assert search.stderr.read() == ""
    search.stderr.close()
    assert search.wait(timeout=60) == 1


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
