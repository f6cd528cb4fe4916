"""One round of one candidate: start its processes, give them one window, watch the CPU, collect what they say."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.bench.cpu import Meter, Reading, used_between

from .server import BenchFailed, Server

ROOT = Path(__file__).resolve().parents[3]
GRACE_S = 60.0
LOG_HEAD_LENGTH = 500
# The first line after a traceback's that is not indented.
PYTHON_ERROR = re.compile(r"^Traceback .*\n(?:[ \t].*\n)*(\S.*)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the processes of a candidate found in their common window, and the CPU seconds in it by group."""

    lines: list[dict[str, Any]]
    cpu_s: dict[str, float]


def run_window(
    server: Server, command: Sequence[str], *, processes: int, warm_up_s: float, measured_s: float, log: Path
) -> Said:
    """The same command in so many processes, over one window, to its end. Raises BenchFailed."""
    commands = [[*command, f"--process-number={number}"] for number in range(processes)]
    with _children(commands, log, limit_s=warm_up_s + measured_s + GRACE_S) as children:
        for child in children:
            if _line_of(child, log) != "ready\n":
                raise BenchFailed(f"the candidate of {log.stem} said something else than ready{_why(log)}")
        begins_s = time.monotonic() + warm_up_s
        window = json.dumps({"begins_s": begins_s, "ends_s": begins_s + measured_s}) + "\n"
        for child in children:
            _tell(child, window)
        meter = Meter({"client": [child.pid for child in children], "server": [server.pid]})
        before = _read_at(meter, begins_s)
        after = _read_at(meter, begins_s + measured_s)
        lines = [json.loads(_line_of(child, log)) for child in children]
        _ended(children, log)
    return Said(lines=lines, cpu_s=used_between(before, after, known_s={}) if before and after else {})


def run_alone(command: Sequence[str], *, log: Path, limit_s: float) -> dict[str, Any]:
    """A program that needs no window: its one line. Raises BenchFailed."""
    with _children([command], log, limit_s=limit_s) as children:
        line: dict[str, Any] = json.loads(_line_of(children[0], log))
        _ended(children, log)
    return line


@contextmanager
def _children(commands: Sequence[Sequence[str]], log: Path, *, limit_s: float) -> Iterator[list[subprocess.Popen[str]]]:
    """Each in a session of its own, so that a Ctrl-C reaches them through us alone; none outlives the block."""
    children: list[subprocess.Popen[str]] = []
    timer = threading.Timer(limit_s, lambda: _kill(children))
    timer.daemon = True
    try:
        with log.open("w") as errors:
            for command in commands:
                children.append(_child(command, errors))  # noqa: PERF401 (what was started before an error is known)
        timer.start()
        yield children
    finally:
        timer.cancel()
        _kill(children)
        for child in children:
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()


def _child(command: Sequence[str], errors: IO[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,
    )


def _kill(children: Sequence[subprocess.Popen[str]]) -> None:
    for child in children:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


def _tell(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin is not None
    with suppress(BrokenPipeError):  # one that has ended is found out when it is asked
        child.stdin.write(line)
        child.stdin.flush()


def _line_of(child: subprocess.Popen[str], log: Path) -> str:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise BenchFailed(f"the candidate of {log.stem} ended too early, or hung and was killed{_why(log)}")
    return line


def _read_at(meter: Meter, at_s: float) -> Reading | None:
    time.sleep(max(0.0, at_s - time.monotonic()))
    return meter.read()


def _ended(children: Sequence[subprocess.Popen[str]], log: Path) -> None:
    for child in children:
        if child.wait() != 0:
            raise BenchFailed(f"the candidate of {log.stem} ended with {child.returncode}{_why(log)}")


def _why(log: Path) -> str:
    """What the log says first, and where it is Python's: later errors are mostly those of the end itself."""
    text = log.read_text(errors="replace")
    first = PYTHON_ERROR.search(text)
    said = first[1] if first else " ".join(text[:LOG_HEAD_LENGTH].split())
    return f": {said}" if said else ""
