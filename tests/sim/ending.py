"""How a command of the simulation ends before it is done: by a signal, or because nobody takes what it writes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import active_children, parent_process
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def status_of(number: int) -> int:
    """The exit status of a command that a signal has ended, as a shell has it."""
    return 128 + number


def on_signals(end: Callable[[int], None]) -> None:
    """Ctrl-C, SIGTERM and a terminal that is gone do this, but not what whoever has started the command ignores."""

    def ends(number: int, _: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # it ends already
        end(number)

    # Who leaves at once leaves semaphores to the tracker of resources, which clears them away and would complain.
    sys.warnoptions.append("ignore:resource_tracker")
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, ends)


def leave(status: int) -> NoReturn:
    """At once, and its processes first: what a run was in the middle of would complain of its end."""
    stop()
    os._exit(status)


def stop() -> None:
    """Ends the processes of this one, in the middle of whatever they do."""
    children = active_children()
    for process in children:
        process.kill()
    for process in children:
        process.join()


@contextlib.contextmanager
def deaf_to_signals() -> Iterator[None]:
    """Processes that are started here hear no signal from their first moment on, nor does whoever starts them.

    It ends them; in the middle of a start it would not know of the one that begins, which would complain.
    """
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)


def end_with_parent() -> None:
    """For a process that searches: it ends by itself where the one that has started it is killed."""
    threading.Thread(target=_leave_after_parent, daemon=True).start()


def _leave_after_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    leave(1)
