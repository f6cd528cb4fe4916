"""What `chargeonce` runs: Ctrl-C and the standard files are seen to before the commands are imported."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable
from types import FrameType

STATUS_OF_A_SIGNAL = 128  # what shells add to the signal's number
COULD_NOT = 1


def main() -> None:
    """The command line as a whole."""
    prepare()
    from service.__main__ import app

    run(app)


def prepare() -> None:
    """Before anything else is imported or opened."""
    _open_standard_files()
    end_on_interrupt()


def run(app: Callable[[], object]) -> None:
    """Runs the commands; what the system refuses meanwhile, such as to print an answer, is one line and status 1."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what could not be printed is not tried once more at the exit
        where = f" ({error.filename})" if error.filename else ""
        sys.stderr.write(f"chargeonce: {error.strerror or error}{where}\n")
        raise SystemExit(COULD_NOT) from None


def _open_standard_files() -> None:
    """Those that we were started without lead nowhere: else a socket of ours would get their number, and our log."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
            os.set_inheritable(fd, True)
            setattr(sys, name, os.fdopen(fd, "r" if fd == 0 else "w"))


def end_on_interrupt() -> None:
    """From now on Ctrl-C ends this process at once, with one line and status 130, whatever it is importing or doing.

    Nothing is lost by that: what a transaction has not committed is rolled back, and embedded servers are tied to our
    life. A program that was started to ignore Ctrl-C goes on ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    # No exception: whoever is being imported may swallow it, or tell it as a failure of its own.
    if select.select([], [2], [], 0)[1]:  # else nobody reads, and we would wait for that
        with contextlib.suppress(OSError):
            os.write(2, b"chargeonce: interrupted\n")
    os._exit(STATUS_OF_A_SIGNAL + number)
