"""Ours, through its public API, on uvloop: `python -m tests.bench.locks.ours`."""

from __future__ import annotations

import asyncio
import os

import uvloop

from locks import Locker

from .driving import HOT_NAME, LEASE_TTL_S, Job, TurnLog, drive_distinct, drive_hot, the_job


async def main(job: Job) -> None:
    """One round."""
    async with Locker.connect(job.url, instance_id=f"bench-{os.getpid()}") as locker:

        async def cycle(name: str) -> None:
            lease = await locker.acquire(name, lease_ttl_s=LEASE_TTL_S)
            await lease.release()

        async def turn(task: int, log: TurnLog) -> float:
            log.waits(task)
            async with locker.hold(HOT_NAME, lease_ttl_s=LEASE_TTL_S) as lease:
                log.enters(task)
                await asyncio.sleep(0)  # lets the others run, so that two inside at once would be seen
                return log.leaves(task, lease.fencing_token)

        if job.scene == "distinct":
            await drive_distinct(job, cycle)
        else:
            await drive_hot(job, turn)


if __name__ == "__main__":
    uvloop.run(main(the_job()))
