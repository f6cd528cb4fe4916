"""Standard output and error that never hold up the process and never end it.

A log reader may die, may stall, and a disk may be full. Then lines are dropped and counted, and the service goes on.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import io
import os
import select
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO

# What a pipe holds for a reader that is late: some 4,000 lines, where the system allows it (64 kB is its default).
PIPE_BYTES = 1024 * 1024
# A write of so much is whole or not there at all, so that lines of several processes never run into each other.
AT_ONCE_BYTES = select.PIPE_BUF
LAST_WORDS_S = 1.0
NEWLINE = b"\n"

Write = Callable[[bytes], int]
Close = Callable[[], object]


class Dropped:
    """How many lines of this process could not be written."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._untold = 0
        self._tell: Callable[[float], None] | None = None

    def tell(self, count: Callable[[float], None]) -> None:
        """From now on, and of those so far, `count` hears how many; it may be called from any thread."""
        with self._lock:
            self._tell = count
            count(self._untold)
            self._untold = 0

    def add(self, lines: int) -> None:
        """So many more."""
        with self._lock:
            if self._tell is None:
                self._untold += lines
            else:
                self._tell(lines)


dropped_lines = Dropped()


class Unhindered(io.RawIOBase):
    """A descriptor, written to without waiting and without an error: what it does not take at once is dropped."""

    def __init__(self, fd: int, write: Write, close: Close) -> None:
        self._fd = fd
        self._write = write
        self._close = close
        self._cut = False  # in the middle of a line, whose rest was dropped

    def fileno(self) -> int:
        """The descriptor that it stands for."""
        return self._fd

    def isatty(self) -> bool:
        """Whether that is a terminal."""
        return os.isatty(self._fd)

    def close(self) -> None:
        """The descriptor itself stays open."""
        if not self.closed:
            super().close()
            self._close()

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any, /) -> int:
        """Takes all, whatever becomes of it."""
        for part in _whole_lines(bytes(data)):
            self._put(part)
        return len(data)

    def _put(self, part: bytes) -> None:
        if self._cut and not self._try(NEWLINE):
            dropped_lines.add(part.count(NEWLINE))
            return
        self._cut = False
        written = self._try(part)
        if written < len(part):
            self._cut = written > 0 and part[written - 1 : written] != NEWLINE
            dropped_lines.add(part.count(NEWLINE, written))

    def _try(self, part: bytes) -> int:
        try:
            return self._write(part)
        except OSError:  # it is full, nobody reads it any more, ...: all the same to us
            return 0


def protect_output() -> None:
    """From now on whatever this process prints, logs or dies of goes to protected streams."""
    sys.stdout, sys.stderr = protected(1), protected(2)


def protected(fd: int) -> TextIO:
    """A text stream to this descriptor that neither waits nor raises."""
    raw = Unhindered(fd, *_way_to(fd))
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _way_to(fd: int) -> tuple[Write, Close]:
    """How to write to it without waiting, and how to end that.

    O_NONBLOCK belongs to what all processes that inherited the descriptor share: set here, it would surprise the
    others, the shell included. So it is set where only we have it.
    """
    kind = os.fstat(fd).st_mode
    if stat.S_ISSOCK(kind):
        connection = socket.socket(fileno=os.dup(fd))
        return lambda data: connection.send(data, socket.MSG_DONTWAIT), connection.close
    if not (stat.S_ISFIFO(kind) or os.isatty(fd)):
        return lambda data: os.write(fd, data), _nothing  # a file, or a device that never waits
    with contextlib.suppress(OSError):
        _enlarge(fd)
    try:
        ours = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # not Linux, another user's, or nobody reads it at this moment
        copied = _copied_to(fd)
        return lambda data: os.write(copied, data), _nothing
    return lambda data: os.write(ours, data), lambda: os.close(ours)


def _copied_to(fd: int) -> int:
    """A pipe of our own, which a thread copies from: that may wait."""
    heard, ours = os.pipe()
    os.set_blocking(ours, False)
    with contextlib.suppress(OSError):
        _enlarge(ours)

    def copy() -> None:
        while data := os.read(heard, PIPE_BYTES):
            try:
                while data:
                    data = data[os.write(fd, data) :]
            except OSError:
                dropped_lines.add(data.count(NEWLINE))

    copying = threading.Thread(target=copy, name="output", daemon=True)
    copying.start()

    def last_words() -> None:
        os.close(ours)
        copying.join(LAST_WORDS_S)

    atexit.register(last_words)
    return ours


def _nothing() -> None:
    pass


def _enlarge(pipe_fd: int) -> None:
    if sys.platform == "linux" and fcntl.fcntl(pipe_fd, fcntl.F_GETPIPE_SZ) < PIPE_BYTES:
        fcntl.fcntl(pipe_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _whole_lines(data: bytes) -> Iterator[bytes]:
    """Parts of at most AT_ONCE_BYTES that end where a line does; a longer line is a part of its own."""
    start = 0
    while len(data) - start > AT_ONCE_BYTES:
        end = data.rfind(NEWLINE, start, start + AT_ONCE_BYTES) + 1 or data.find(NEWLINE, start + AT_ONCE_BYTES) + 1
        if not end:
            break
        yield data[start:end]
        start = end
    yield data[start:]
