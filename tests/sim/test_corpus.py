"""Runs that found something once find nothing any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.again import parsed

FILES = sorted((Path(__file__).parent / "corpus").glob("*.txt"))
LINES = [line for file in FILES for line in file.read_text().splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("line", LINES)
def test_what_was_found_once_is_mended(line: str) -> None:
    command, _, reason = line.partition("#")
    assert reason.strip(), "a line says what it has found"
    outcome = parsed(command).run()
    assert not outcome.violations
    assert not outcome.missed
