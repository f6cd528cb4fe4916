"""Protected streams, without a service: whatever reads them, a write returns at once, and what it drops is counted."""

from __future__ import annotations

import os
import pty
import socket
from collections.abc import Callable

import pytest

from service import output
from service.output import Dropped, protected
from tests.harness import wait_until

LINE = "x" * 199
LINES = 20_000  # more than any pipe holds


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was told of dropped lines."""
    told: list[float] = []
    dropped = Dropped()
    dropped.tell(told.append)
    monkeypatch.setattr(output, "dropped_lines", dropped)
    return told


def a_pipe() -> tuple[int, int]:
    return os.pipe()


def a_socket() -> tuple[int, int]:
    one, other = socket.socketpair()
    return one.detach(), other.detach()


def a_terminal() -> tuple[int, int]:
    return pty.openpty()


@pytest.mark.parametrize("ends", [a_pipe, a_socket, a_terminal])
def test_what_a_reader_that_stalls_does_not_take_is_dropped_and_counted(
    ends: Callable[[], tuple[int, int]], count: list[float]
) -> None:
    reader, writer = ends()
    stream = protected(writer)

    for _ in range(LINES):
        print(LINE, file=stream)

    said = read_all(reader)
    whole = [line for line in said.splitlines() if line == LINE.encode()]
    assert 0 < len(whole) < LINES
    # A terminal may have taken a whole line without its end, which then counts as dropped.
    assert LINES <= len(whole) + sum(count) <= LINES + 5
    print("again", file=stream)
    assert read_all(reader).splitlines()[-1] == b"again", "on a line of its own, behind one that was cut"
    assert os.get_blocking(writer), "what others who have it write to is as it was"
    stream.close()
    for fd in (reader, writer):
        os.close(fd)


def test_where_a_pipe_cannot_be_opened_anew_a_thread_copies(count: list[float]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = protected(writer)  # nobody reads, and Linux does not open it for writing then
    for _ in range(LINES):
        print(LINE, file=stream)
    wait_until(lambda: sum(count) == LINES, what="the thread, which counts what has reached it")
    os.close(writer)


def test_lines_go_out_in_parts_that_are_whole_and_small_enough_to_be_written_at_once() -> None:
    lines = [b"y" * length + b"\n" for length in (10, 4000, 90, 5000, 1, 4095, 4096, 3)]
    data = b"".join(lines) + b"no end"

    parts = list(output._whole_lines(data))

    assert b"".join(parts) == data
    assert all(part.endswith(b"\n") for part in parts[:-1])
    assert all(len(part) <= output.AT_ONCE_BYTES or part.count(b"\n") == 1 for part in parts)


def read_all(reader: int) -> bytes:
    os.set_blocking(reader, False)
    parts = []
    while True:
        try:
            parts.append(os.read(reader, 65536))
        except BlockingIOError:
            return b"".join(parts)
