"""What `chargeonce` runs: Ctrl-C is seen to before the commands are imported, which takes a second."""

from __future__ import annotations

import os
import signal
from types import FrameType

STATUS_OF_A_SIGNAL = 128  # what shells add to the signal's number


def main() -> None:
    """The command line as a whole."""
    end_on_interrupt()
    from service.__main__ import app

    app()


def end_on_interrupt() -> None:
    """From now on Ctrl-C ends this process at once, with one line and status 130, whatever it is importing or doing.

    Nothing is lost by that: what a transaction has not committed is rolled back, and embedded servers are tied to our
    life. A program that was started to ignore Ctrl-C goes on ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    # No exception: whoever is being imported may swallow it, or tell it as a failure of its own.
    os.write(2, b"chargeonce: interrupted\n")
    os._exit(STATUS_OF_A_SIGNAL + number)
