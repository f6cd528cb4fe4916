"""The process of all clients, and the synchronous programs beside it, seen from the harness."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from tests.chaos.nursery import Nursery
from tests.chaos.workload.__main__ import DONE
from tests.chaos.workload.config import Config

STOP_WAIT_S = 30.0


class Clients:
    """Started, told of bursts, stopped."""

    def __init__(self, nursery: Nursery, folder: Path, config: Config) -> None:
        path = folder / "workload.json"
        config.save(path)
        log = folder / "workload.log"
        self._clients = nursery.fork("workload", path, log=log)
        self._sync_programs = nursery.fork("sync-programs", path, log=log) if config.redis_url else None

    def burst(self, entries: int) -> None:
        """So many entries at once."""
        self._clients.tell({"burst": entries})

    @property
    def ended(self) -> bool:
        """Whether they have ended, of which nobody has told them."""
        return self._clients.wait(0)

    async def stop(self) -> bool:
        """Returns once every answer is there, or has been given up; whether they ended in order."""
        if self._sync_programs is not None:
            await asyncio.to_thread(self._sync_programs.end, wait_s=STOP_WAIT_S)
        self._clients.tell({"stop": True})
        ended = await asyncio.to_thread(self._clients.wait, STOP_WAIT_S)
        return ended and os.read(self._clients.out, len(DONE)) == DONE

    def close(self) -> None:
        """Gone, with all that they have started; harmless twice."""
        for child in (self._sync_programs, self._clients):
            if child is not None:
                child.end(wait_s=0.0)
