"""Where contention is told and counted in Redis: keys, one script, a few reads. All in one slot, and all expire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from locks.picture import Teller
from locks.store import LockStore
from locks.wire import packed

TAG = "contention"
PREFIX = f"lock-contention:{{{TAG}}}:"
INDEX = f"{PREFIX}instances"  # sorted set: who -> its last sign of life, ms of the server's clock
INCIDENTS = f"{PREFIX}incidents"  # list of JSON, newest first

GONE_MS = 3500  # an instance that says nothing for so long is gone
DAY_MS = 24 * 3600 * 1000 + 120_000
HOUR_MS = 3600 * 1000
QUARTER_MS = 15 * 60 * 1000 + 60_000
MINUTE_S = 60
FINE_S = 5
MOST_INCIDENTS = 2000
MOST_HOT_A_MINUTE = 200
MOST_CELL_NAMES = 2000
MOST_HOLDS_A_LOCK = 50
# Hashes are read so many at a time, so that the event loop has its turn between them.
AT_ONCE = 60

Command = Sequence[str]


def picture_key(token: str) -> str:
    """One instance's picture of itself."""
    return f"{PREFIX}picture:{token}"


def list_key(token: str) -> str:
    """The locks that it holds or waits for."""
    return f"{PREFIX}locks:{token}"


def slot_key(at_s: int, length_s: int) -> str:
    """Hash: what all saw in this stretch of time: c:<count>, w:<bucket>, h:<bucket>, held and waiting; and u:<bucket>,
    the ages of the waits that went on when each instance told last.
    """
    return f"{PREFIX}{length_s}s:{at_s - at_s % length_s}"


def hot_key(at_s: int) -> str:
    """Sorted set: lock -> milliseconds waited for it: waits that ended in this minute, or went on at its end."""
    return f"{PREFIX}hot:{at_s - at_s % MINUTE_S}"


def cell_key(at_s: int) -> str:
    """Sorted set: w<bucket> or h<bucket>, a space, lock -> how often it was seen there in this minute."""
    return f"{PREFIX}cells:{at_s - at_s % MINUTE_S}"


def holds_key(name: str) -> str:
    """List of JSON, newest first: past holds of one lock."""
    return f"{PREFIX}holds:{name}"


class Additions:
    """Commands that add to keys of all, and what publishes them."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self._numbers: dict[str, int] = {}
        self._commands: list[list[str]] = []

    def add(self, command: str, key: str, *arguments: object) -> None:
        """One command on one key."""
        number = self._numbers.get(key)
        if number is None:
            self.keys.append(key)
            number = self._numbers[key] = len(self.keys)
        self._commands.append([command, str(number + _OWN_KEYS), *map(str, arguments)])

    @property
    def text(self) -> str:
        """All of them, as the script reads them."""
        return json.dumps(self._commands, separators=(",", ":"))


_OWN_KEYS = 5


class ContentionStore:
    """Reads and writes for contention. Everything raises LockStoreDown."""

    def __init__(self, store: LockStore) -> None:
        self._store = store

    async def publish(
        self, *, who: str, token: str, number: str, picture: str, locks: str, additions: Additions
    ) -> float:
        """Replaces the picture and adds, once for each number; the server's time, unix seconds. `locks` '': as is."""
        keys = [INDEX, picture_key(token), list_key(token), f"{PREFIX}applied:{token}", INCIDENTS, *additions.keys]
        arguments: list[str | int] = [who, number, picture, locks, additions.text, GONE_MS, DAY_MS, MOST_INCIDENTS]
        now_ms = await self._run(self._store.scripts.publish(keys, arguments))
        return int(now_ms) / 1000

    async def leave(self, *, who: str, token: str, incident: str) -> None:
        """This instance stops."""
        await self._run(packed("LPUSH", INCIDENTS, incident))
        await self._run(packed("ZREM", INDEX, who))
        await self._run(packed("DEL", picture_key(token), list_key(token)))

    async def now_s(self) -> float:
        """The server's time, unix seconds."""
        seconds, microseconds = await self._run(packed("TIME"))
        return int(seconds) + int(microseconds) / 1_000_000

    async def instances(self) -> list[tuple[str, Teller, float]]:
        """Those that live: token, who, and the last sign of life in unix seconds."""
        now_s = await self.now_s()
        since_ms = int(now_s * 1000) - GONE_MS
        reply = await self._run(packed("ZRANGEBYSCORE", INDEX, since_ms, "+inf", "WITHSCORES"))
        found = []
        for who, score in _pairs(reply):
            token, instance_id, host, pid = who.decode().split("\t")
            found.append((token, Teller(instance_id, host, int(pid)), float(score) / 1000))
        return found

    async def texts(self, keys: Sequence[str]) -> list[str | None]:
        """The value of each key."""
        if not keys:
            return []
        return [None if each is None else each.decode() for each in await self._run(packed("MGET", *keys))]

    async def hashes(self, keys: Sequence[str]) -> list[dict[str, int]]:
        """The hash of numbers at each key, empty where there is none."""
        hashes: list[dict[str, int]] = []
        for at in range(0, len(keys), AT_ONCE):
            commands = [packed("HGETALL", key) for key in keys[at : at + AT_ONCE]]
            replies = await asyncio.gather(*[self._run(command) for command in commands])
            hashes += [{field.decode(): int(value) for field, value in _pairs(reply)} for reply in replies]
        return hashes

    async def highest(self, key: str, *, limit: int) -> list[tuple[str, float]]:
        """The members of a sorted set with the highest scores."""
        reply = await self._run(packed("ZREVRANGE", key, 0, limit - 1, "WITHSCORES"))
        return [(member.decode(), float(score)) for member, score in _pairs(reply)]

    async def newest(self, key: str, *, limit: int) -> list[Any]:
        """The first values of a list of JSON."""
        return [json.loads(each) for each in await self._run(packed("LRANGE", key, 0, limit - 1))]

    async def put(self, key: str, text: str, *, kept_ms: int) -> None:
        """Tells all of something beside the locks; it expires."""
        await self._run(packed("SET", f"{PREFIX}{key}", text, "PX", kept_ms))

    async def told(self, key: str) -> str | None:
        """What was put there last; None where nothing was, or too long ago."""
        return (await self.texts([f"{PREFIX}{key}"]))[0]

    async def _run(self, command: str) -> Any:
        return await self._store.run(TAG, lambda node: command)


def _pairs(flat: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    values = iter(flat)
    return zip(values, values, strict=True)
