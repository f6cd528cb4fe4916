"""The process of all clients, seen from the harness."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.chaos.lives import ROOT
from tests.chaos.workload.config import Config

STOP_WAIT_S = 30.0


class Clients:
    """Started, told of bursts, stopped."""

    def __init__(self, folder: Path, config: Config) -> None:
        path = folder / "workload.json"
        config.save(path)
        with (folder / "workload.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.workload", str(path)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def burst(self, entries: int) -> None:
        """So many entries at once."""
        self._tell({"burst": entries})

    @property
    def ended(self) -> bool:
        """Whether they have ended, of which nobody has told them."""
        return self._process.poll() is not None

    async def stop(self) -> bool:
        """Returns once every answer is there, or has been given up; whether they ended in order."""
        self._tell({"stop": True})
        try:
            return await asyncio.to_thread(self._process.wait, STOP_WAIT_S) == 0
        except subprocess.TimeoutExpired:
            return False

    def kill(self) -> None:
        """Gone, with all that they have started; harmless twice."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _tell(self, what: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(what).encode() + b"\n")
            self._process.stdin.flush()
