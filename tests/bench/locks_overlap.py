"""`python -m tests.bench.locks_overlap`: our processes and python-redis-lock's on one lock, and whether two overlap.

Every turn is written down by CLOCK_MONOTONIC, which all processes of a machine share. Exit 0: no two turns overlap, our
fencing tokens rise strictly, and each side has its share; 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import redis
import redis_lock

from locks import Locker
from tests.harness import ROOT, OwnRedis, wait_until
from tests.servers.kinds import server_binary
from tests.servers.processes import tied

LEAST_SHARE = 0.15  # of either side's turns, in the second half
INSIDE_S = 0.001
TASKS_PER_PROCESS = 2
LEASE_S = 10
OURS, THEIRS = "ours", "theirs"
_RECORD = struct.Struct("=dddQ")


class Turn(NamedTuple):
    """One stay inside, seconds by CLOCK_MONOTONIC. A fencing token of 0 is none."""

    side: str
    asks_s: float
    enters_s: float
    leaves_s: float
    fencing_token: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the turns say. `least_share`: the weaker side's part of the second half's turns."""

    turns: dict[str, int]
    overlaps: int
    tokens_rise: bool
    least_share: float
    longest_wait_s: dict[str, float]

    @property
    def is_good(self) -> bool:
        """Whether everything that was promised was kept."""
        return self.overlaps == 0 and self.tokens_rise and self.least_share >= LEAST_SHARE


def play(
    url: str, *, ours: int, theirs: int, seconds: float, enough_turns: int | None = None, patience_s: float = 60.0
) -> list[Turn]:
    """Turns of so many processes for so long, or until there are enough of them."""
    name = f"overlap:{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sides = [OURS] * ours + [THEIRS] * theirs
        files = [Path(folder, f"{number}-{side}") for number, side in enumerate(sides)]
        players = [stack.enter_context(_player(side, url, name, file)) for side, file in zip(sides, files, strict=True)]
        for player in players:
            assert player.stdout is not None
            assert player.stdout.readline() == b"ready\n", "a player did not start"
        for player in players:
            _tell(player, b"go\n")
        ends_at_s = time.monotonic() + seconds

        def over() -> bool:
            turns = sum(file.stat().st_size for file in files) // _RECORD.size
            return time.monotonic() >= ends_at_s or (enough_turns is not None and turns >= enough_turns)

        wait_until(over, patience_s=seconds + patience_s, what="the last turn")
        for player in players:
            assert player.stdin is not None
            player.stdin.close()
        for player in players:
            assert player.wait(patience_s) == 0, "a player failed"
        return [
            Turn(side, *record)
            for side, file in zip(sides, files, strict=True)
            for record in _RECORD.iter_unpack(file.read_bytes())
        ]


def judge(turns: Sequence[Turn]) -> Verdict:
    """Pure: nothing is measured here."""
    in_order = sorted(turns, key=lambda turn: turn.enters_s)
    overlaps, inside_until_s = 0, 0.0
    for turn in in_order:
        overlaps += turn.enters_s < inside_until_s
        inside_until_s = max(inside_until_s, turn.leaves_s)
    tokens = [turn.fencing_token for turn in in_order if turn.fencing_token]
    second_half = in_order[len(in_order) // 2 :]
    counts = {side: sum(turn.side == side for turn in second_half) for side in (OURS, THEIRS)}
    return Verdict(
        turns={side: sum(turn.side == side for turn in turns) for side in counts},
        overlaps=overlaps,
        tokens_rise=all(before < after for before, after in itertools.pairwise(tokens)),
        least_share=min(counts.values()) / max(1, len(second_half)),
        longest_wait_s={
            side: max((turn.enters_s - turn.asks_s for turn in turns if turn.side == side), default=0.0)
            for side in counts
        },
    )


def main() -> int:
    """The command line."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--seconds", type=float, default=20)
    words.add_argument("--ours", type=int, default=4, help="our processes")
    words.add_argument("--theirs", type=int, default=3, help="python-redis-lock's processes")
    words.add_argument("--play", nargs=4, help=argparse.SUPPRESS)
    chosen = words.parse_args()
    if chosen.play is not None:
        _play_side(*chosen.play)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        server = OwnRedis(server_binary("valkey"), Path(folder))
        server.start()
        try:
            verdict = judge(play(server.url, ours=chosen.ours, theirs=chosen.theirs, seconds=chosen.seconds))
        finally:
            server.kill()
    for side in (OURS, THEIRS):
        print(f"{side}: {verdict.turns[side]} turns, longest wait {verdict.longest_wait_s[side] * 1000:.0f} ms")
    print(f"{sum(verdict.turns.values()) / chosen.seconds:.0f} turns/s, {verdict.overlaps} overlaps")
    print(f"fencing tokens {'rise' if verdict.tokens_rise else 'DO NOT RISE'}")
    print(f"the weaker side's share of the second half: {verdict.least_share:.0%} (at least {LEAST_SHARE:.0%})")
    return 0 if verdict.is_good else 1


def _player(side: str, url: str, name: str, file: Path) -> subprocess.Popen[bytes]:
    file.touch()
    command = [sys.executable, "-m", "tests.bench.locks_overlap", "--play", side, url, name, str(file)]
    return _Player(tied(command), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


class _Player(subprocess.Popen[bytes]):
    """A process that is gone when its `with` ends, also in a hurry."""

    def __exit__(self, *exception: object) -> None:
        self.kill()
        super().__exit__(None, None, None)


def _tell(player: subprocess.Popen[bytes], word: bytes) -> None:
    assert player.stdin is not None
    player.stdin.write(word)
    player.stdin.flush()


def _play_side(side: str, url: str, name: str, file: str) -> None:
    """One player's process: takes turns from 'go' until its standard input ends, and writes each one down."""
    with open(file, "ab", buffering=0) as written:

        def write(asks_s: float, enters_s: float, leaves_s: float, fencing_token: int) -> None:
            written.write(_RECORD.pack(asks_s, enters_s, leaves_s, fencing_token))

        if side == OURS:
            asyncio.run(_play_ours(url, name, write))
        else:
            _play_theirs(url, name, write)


Write = Callable[[float, float, float, int], None]


async def _play_ours(url: str, name: str, write: Write) -> None:
    loop, over = asyncio.get_running_loop(), False

    async def take_turns(locker: Locker) -> None:
        while not over:
            asks_s = time.monotonic()
            lease = await locker.acquire(name, lease_ttl_s=LEASE_S)
            enters_s = time.monotonic()
            await asyncio.sleep(INSIDE_S)
            write(asks_s, enters_s, time.monotonic(), lease.fencing_token)
            await lease.release()

    async with Locker.connect(url, instance_id="overlap", command_timeout_s=20) as locker:
        _begin()
        turns = [asyncio.create_task(take_turns(locker)) for _ in range(TASKS_PER_PROCESS)]
        await loop.run_in_executor(None, os.read, 0, 1)
        over = True
        await asyncio.gather(*turns)


def _play_theirs(url: str, name: str, write: Write) -> None:
    with closing(redis.Redis.from_url(url, socket_timeout=None)) as client:
        client.ping()
        _begin()
        os.set_blocking(0, False)
        while _goes_on():
            lock = redis_lock.Lock(client, f"{{{name}}}", expire=LEASE_S)
            asks_s = time.monotonic()
            lock.acquire()
            enters_s = time.monotonic()
            time.sleep(INSIDE_S)
            write(asks_s, enters_s, time.monotonic(), 0)
            lock.release()


def _begin() -> None:
    os.write(1, b"ready\n")
    assert os.read(0, 3) == b"go\n", "nobody says go"


def _goes_on() -> bool:
    try:
        return os.read(0, 1) != b""
    except BlockingIOError:
        return True


if __name__ == "__main__":
    sys.exit(main())
