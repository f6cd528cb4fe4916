"""The peer from redis-py: its asyncio lock on uvloop and hiredis, with a connection for each task.

`--poll-s` is its `sleep`. A shared connection, or fewer of them than tasks, was slower.
"""

from __future__ import annotations

import asyncio

import uvloop
from redis.asyncio import Redis

from .driving import HOT_NAME, LEASE_TTL_S, Job, TurnLog, drive_distinct, drive_hot, the_job


async def main(job: Job) -> None:
    """One round."""
    async with Redis.from_url(job.url, max_connections=job.tasks + 8) as client:
        await client.ping()

        async def cycle(name: str) -> None:
            lock = client.lock(name, timeout=LEASE_TTL_S, thread_local=False)
            await lock.acquire()
            await lock.release()

        hot_locks = [
            client.lock(HOT_NAME, timeout=LEASE_TTL_S, sleep=job.poll_s, thread_local=False) for _ in range(job.tasks)
        ]

        async def turn(task: int, log: TurnLog) -> float:
            lock = hot_locks[task]
            log.waits(task)
            await lock.acquire()
            log.enters(task)
            await asyncio.sleep(0)
            left_s = log.leaves(task)
            await lock.release()
            return left_s

        if job.scene == "distinct":
            await drive_distinct(job, cycle)
        else:
            await drive_hot(job, turn)


if __name__ == "__main__":
    uvloop.run(main(the_job()))
