"""The peer python-redis-lock: a thread for each task, one client, a connection for each thread.

Its process stays on one core: on two, threads of one interpreter hinder each other, and it gets half as much done.
"""

from __future__ import annotations

import itertools
import os
import threading
import time

import redis
import redis_lock

from .driving import HOT_NAME, LEASE_TTL_S, LEAVING_WITHIN_S, Job, TurnLog, Window, say, the_job, the_window


def main(job: Job) -> None:
    """One round."""
    _stay_on_one_core(job.process_number)
    client = redis.Redis.from_url(job.url, max_connections=job.tasks + 8, socket_timeout=None)
    client.ping()
    redis_lock.Lock.register_scripts(client)
    if job.scene == "distinct":
        distinct(job, client)
    else:
        hot(job, client)


def distinct(job: Job, client: redis.Redis) -> None:
    """Each thread acquires and releases one new name after the other."""
    window = the_window()
    cycles = [0] * job.tasks

    def work(task: int) -> None:
        for number in itertools.count():
            lock = redis_lock.Lock(client, f"{job.prefix}:{task}:{number}", expire=LEASE_TTL_S)
            lock.acquire()
            lock.release()
            now_s = time.monotonic()
            if now_s >= window.ends_s:
                return
            cycles[task] += now_s >= window.begins_s

    threads = [threading.Thread(target=work, args=(task,)) for task in range(job.tasks)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    say({"cycles": sum(cycles)})


def hot(job: Job, client: redis.Redis) -> None:
    """All threads want one name, again and again."""
    window = the_window()
    log = TurnLog(job.tasks)
    threads = [
        threading.Thread(target=_take_turns, args=(client, task, log, window), daemon=True) for task in range(job.tasks)
    ]
    for each in threads:
        each.start()
    time.sleep(max(0.0, window.ends_s - time.monotonic()))
    say(log.found(window))
    for each in threads:
        each.join(LEAVING_WITHIN_S)


def _take_turns(client: redis.Redis, task: int, log: TurnLog, window: Window) -> None:
    lock = redis_lock.Lock(client, HOT_NAME, expire=LEASE_TTL_S)
    left_s = 0.0
    while left_s < window.ends_s:
        log.waits(task)
        lock.acquire()
        log.enters(task)
        left_s = log.leaves(task)
        lock.release()


def _stay_on_one_core(process_number: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[process_number % len(cores)]})


if __name__ == "__main__":
    main(the_job())
