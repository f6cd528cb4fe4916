"""What the Python candidates do alike: say ready, hear the window, work until it ends, say what was found.

A candidate is a process of its own. On its standard output it writes `ready` when it is connected, and then one line of
JSON; in between it reads one line of JSON with the window. `node_redlock.mjs` speaks the same.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import sys
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

LEASE_TTL_S = 10
LEAVING_WITHIN_S = 5.0
HOT_NAME = "bench:hot"
SCENES = ("distinct", "hot")
FIELDS_OF_A_TURN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a candidate's process is started for. `prefix` begins the names that nobody has used before."""

    scene: str
    url: str
    tasks: int
    prefix: str
    process_number: int
    poll_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The measured time, by the monotonic clock that all processes of a machine share. Work begins before it."""

    begins_s: float
    ends_s: float


def the_job(words: Sequence[str] | None = None) -> Job:
    """Reads the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("scene", choices=SCENES)
    parser.add_argument("--url", required=True)
    parser.add_argument("--tasks", type=int, required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--process-number", type=int, default=0)
    parser.add_argument("--poll-s", type=float, default=0.1, help="between two looks, for those that poll")
    return Job(**vars(parser.parse_args(words)))


def the_window() -> Window:
    """Says that this candidate is ready, and waits to hear when everybody's time is."""
    # A walk through all that was imported takes milliseconds, and says nothing about a lock.
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    return Window(**json.loads(sys.stdin.readline()))


def say(found: dict[str, object]) -> None:
    """The last line."""
    print(json.dumps(found), flush=True)


class TurnLog:
    """Who waited since when, entered when and left when, on one name in one process. It only notes; turns.py judges."""

    def __init__(self, tasks: int) -> None:
        self._waiting_since_s: list[float | None] = [None] * tasks
        self._entered_s = [0.0] * tasks
        self._turns = array("d")  # flat, so that the garbage collector has nothing to walk through

    def waits(self, task: int) -> None:
        """The task asks for the lock now."""
        self._waiting_since_s[task] = time.monotonic()

    def enters(self, task: int) -> None:
        """The task holds the lock."""
        self._entered_s[task] = time.monotonic()

    def leaves(self, task: int, fencing_token: int | None = None) -> float:
        """The task is about to release; the time."""
        now_s = time.monotonic()
        since_s = self._waiting_since_s[task]
        assert since_s is not None
        self._waiting_since_s[task] = None
        self._turns.extend((task, since_s, self._entered_s[task], now_s, fencing_token or 0))
        return now_s

    def found(self, window: Window) -> dict[str, object]:
        """The line for `say`, in microseconds from the window's begin; a fencing token of 0 is none."""
        waiting = [(task, since_s) for task, since_s in enumerate(self._waiting_since_s) if since_s is not None]
        flat = self._turns[:]
        return {
            "turns": [
                (int(task), *(_us_from(window, at_s) for at_s in times_s), int(fencing_token))
                for task, *times_s, fencing_token in zip(*[iter(flat)] * FIELDS_OF_A_TURN, strict=True)
            ],
            "waiting": [(task, _us_from(window, since_s)) for task, since_s in waiting],
        }


async def drive_distinct(job: Job, cycle: Callable[[str], Awaitable[object]]) -> None:
    """Each task runs `cycle` on one new name after the other."""
    window = the_window()
    cycles = [0] * job.tasks

    async def work(task: int) -> None:
        for number in itertools.count():
            await cycle(f"{job.prefix}:{task}:{number}")
            now_s = time.monotonic()
            if now_s >= window.ends_s:
                return
            cycles[task] += now_s >= window.begins_s

    await asyncio.gather(*(work(task) for task in range(job.tasks)))
    say({"cycles": sum(cycles)})


async def drive_hot(job: Job, turn: Callable[[int, TurnLog], Awaitable[float]]) -> None:
    """All tasks want one name, again and again: `turn` waits for it, notes its visit, and says when it left."""
    window = the_window()
    log = TurnLog(job.tasks)

    async def work(task: int) -> None:
        while await turn(task, log) < window.ends_s:
            pass

    tasks = [asyncio.create_task(work(task)) for task in range(job.tasks)]
    await asyncio.sleep(max(0.0, window.ends_s - time.monotonic()))
    say(log.found(window))
    # Each leaves after its next turn; one that gets none is not waited for.
    done, late = await asyncio.wait(tasks, timeout=LEAVING_WITHIN_S)
    for each in late:
        each.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    for each in done:
        each.result()


def _us_from(window: Window, at_s: float) -> int:
    return int((at_s - window.begins_s) * 1e6 // 1)
