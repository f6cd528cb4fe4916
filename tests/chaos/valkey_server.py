"""A Valkey for a chaos run: started, killed and restarted from any thread, and tied to the life of the harness."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from tests.servers.redis_server import RedisServer


class ValkeyServer(RedisServer):
    """A Valkey that any thread may start and end, and that is killed when we are."""

    def __init__(self, binary: Path, folder: Path, *, settings: Sequence[str] = ()) -> None:
        super().__init__(binary, folder, settings=settings)
        self._turn = threading.RLock()
        self._undertaker = _Undertaker()

    def start(self) -> None:
        """Returns once it answers; harmless when it runs already."""
        with self._turn:
            if self.process is None:
                super().start()
                assert self.process is not None
                self._undertaker.watch(self.process.pid)

    def restart(self) -> None:
        """Killed and up again on the same port, empty."""
        with self._turn:
            super().restart()

    def close(self) -> None:
        """Gone for good, with whoever watched it."""
        self.kill()
        self._undertaker.dismiss()

    def _end_with(self, number: signal.Signals) -> None:
        with self._turn:
            self._undertaker.watch(0)
            super()._end_with(number)


class _Undertaker:
    """A shell that kills the process it was told of last when our end of a pipe closes, whatever ends us."""

    SCRIPT = 'while read -r told; do pid=$told; done; [ "$pid" -gt 0 ] && kill -s KILL "$pid"'

    def __init__(self) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", self.SCRIPT],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that Ctrl-C in the terminal does not reach it
        )

    def watch(self, pid: int) -> None:
        """This process from now on and no other; 0: none."""
        assert self._shell.stdin is not None
        if not self._shell.stdin.closed:
            self._shell.stdin.write(b"%d\n" % pid)
            self._shell.stdin.flush()

    def dismiss(self) -> None:
        """Ends the watching; harmless twice."""
        self.watch(0)
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        self._shell.wait()
