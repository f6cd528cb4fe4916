"""What the random commands are about: names, ids, and what the model says is so just now."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import hiredis

from tests.sim.conformance.modelled import ModelSide

NAMES = ("a:1", "b:2", "c", "d/4")
PROCESSES = ("p0", "p1", "p2")
PROGRAMS = ("s0", "s1", "s2")
BEGIN_US = 1_800_000_000_000_000
_is_grant = re.compile(rb"(\d+) (\d+) ?(\d*)\t?(\d*)\t?([^\t]*)").match


@dataclass(frozen=True, slots=True)
class Process:
    """What locks.store.Scripts wants of a node."""

    name: str
    channel: str


@dataclass(frozen=True, slots=True)
class Grant:
    """The last grant of a lock: the token of its last turn, and how many smaller ones come before it."""

    lease_id: str
    fence: int
    left: int


@dataclass(slots=True)
class Draw:
    """Random choices, the same for the same seed and the same model."""

    rng: random.Random
    side: ModelSide
    drawn_ids: list[str] = field(default_factory=list)

    @property
    def now_us(self) -> int:
        """The servers' time."""
        return self.side.now_us

    def name(self) -> str:
        """A lock's name, the first ones the most often."""
        return self.rng.choice(NAMES[: self.rng.randint(1, len(NAMES))])

    def held_name(self) -> str:
        """A lock's name, mostly one that is held."""
        held = [name for name in NAMES if self.holder(name)]
        return self.rng.choice(held) if held and self.rng.random() < 0.75 else self.name()

    def new_id(self) -> str:
        """A lease id that nobody has had."""
        self.drawn_ids.append(f"{self.rng.getrandbits(128):032x}")
        return self.drawn_ids[-1]

    def grant(self, name: str) -> Grant:
        """The lock's last grant, mostly; at times an older one, or one with another token."""
        value = self.side.data.values.get(f"lock-grant:{{{name}}}".encode())
        found = _is_grant(value) if isinstance(value, bytes) else None
        if found is None or self.rng.random() < 0.08:
            return Grant(self.old_id(), self.now_us - self.rng.randrange(0, 2_000_000), self.rng.choice((0, 0, 1)))
        fence = int(found[1]) * 1_000_000 + int(found[2])
        if self.rng.random() < 0.06:
            fence += self.rng.choice((-1, 1, -1000))
        lease_id = self.holder(name) if self.rng.random() < 0.1 else found[5].decode()
        return Grant(lease_id if len(lease_id) == 32 else self.old_id(), fence, int(found[3] or 0))

    def holder(self, name: str) -> str:
        """The id under which the lock is held, '' where it is free."""
        value = self.side.data.values.get(f"lock:{{{name}}}".encode())
        return value.decode() if isinstance(value, bytes) else ""

    def waiting_id(self, name: str) -> str:
        """An id under which some process stands in line, or an old one."""
        waiters = self.side.data.values.get(f"lock-waiters:{{{name}}}".encode())
        texts = list(waiters.values()) if isinstance(waiters, dict) else []
        ids = [text.split(b"\t")[3].decode() for text in texts if text.count(b"\t") >= 4]
        return self.rng.choice(ids) if ids else self.old_id()

    def old_id(self) -> str:
        """An id that was drawn a while ago, or now."""
        return self.rng.choice(self.drawn_ids[-20:]) if self.drawn_ids else self.new_id()

    def some_id(self, name: str) -> str:
        """The holder's id mostly."""
        holder = self.holder(name)
        return holder if len(holder) == 32 and self.rng.random() < 0.8 else self.old_id()

    def lease_ms(self) -> int:
        """Short ones too, so that they run out."""
        return self.rng.choice((100, 400, 1000, 2000, 2000, 30_000))

    def seen_fence(self, name: str) -> int:
        """The largest token that a process has seen; at times one from the future."""
        return self.rng.choice((0, 0, self.now_us - 5000, self.now_us, self.now_us + 1, self.grant(name).fence))

    def age_us(self) -> int:
        """For how long a waiter has waited."""
        return self.rng.choice((0, 3000, self.rng.randrange(0, 20_000), self.rng.randrange(0, 5_000_000)))

    def later(self) -> str:
        """How much later the next waiters came, in us."""
        return ",".join(str(self.rng.randrange(0, 8_000)) for _ in range(self.rng.choice((0, 0, 1, 2, 5))))

    def for_whom(self) -> str:
        """What is shown beside a holder."""
        return self.rng.choice(("", "request-1", "-\\u00fc"))


def unpacked(packed: str) -> tuple[bytes, ...]:
    """A command's words from its text for the wire."""
    reader = hiredis.Reader()
    reader.feed(packed.encode())
    return tuple(reader.gets())


def words(command: Sequence[Any]) -> tuple[bytes, ...]:
    """A command's words as bytes."""
    return tuple(word if isinstance(word, bytes) else str(word).encode() for word in command)
