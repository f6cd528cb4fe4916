"""The history: what was written stays when its process is killed, and is read in the order of time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.history import History, read_history
from tests.chaos.nursery import ROOT

WRITER = """
import sys
from pathlib import Path
from tests.chaos.history import History
history = History(Path(sys.argv[1]))
for number in range(int(sys.argv[2])):
    history.write("point", who=sys.argv[3], number=number)
sys.stdout.write("written")
sys.stdout.flush()
sys.stdin.read()
"""


def test_events_of_several_processes_are_whole_and_in_the_order_of_time_though_they_were_killed(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), "2000", who],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for who in ("one", "two", "three")
    ]
    for writer in writers:
        with writer:
            assert writer.stdout is not None
            assert writer.stdout.read(7) == b"written"
            writer.kill()

    events = read_history(path)

    assert len(events) == 6000
    assert [event["t"] for event in events] == sorted(event["t"] for event in events)
    for who in ("one", "two", "three"):
        assert [event["number"] for event in events if event["who"] == who] == list(range(2000))


def test_a_line_that_was_cut_off_by_the_end_of_the_machine_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    History(path).write("born", i=1)
    with path.open("ab") as file:
        file.write(b'{"e": "po')

    assert [event["e"] for event in read_history(path)] == ["born"]


@pytest.mark.parametrize("line", [b"nonsense", b'{"t": 1}', b'{"e": "point"}', b"[]"])
def test_a_line_in_the_middle_that_is_no_event_is_refused_with_its_number(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"e":"run","t":1}\n' + line + b'\n{"e":"end","t":2}\n')

    with pytest.raises(ValueError, match="line 2"):
        read_history(path)
