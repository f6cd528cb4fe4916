"""What is done to both servers, and what is seen of them then."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from tests.sim.redis import Refusal


class Do(StrEnum):
    """What a step does."""

    CONNECT = "connect"
    KILL = "kill"  # the connection is gone
    COMMAND = "command"
    CLOCK = "clock"  # from now on it is now_us
    EXPIRE = "expire"  # the server's own round: every key whose end has passed goes
    FLUSH = "flush"
    FORGET_SCRIPTS = "forget-scripts"
    REFUSE = "refuse"  # from now on, for this reason; None: no more


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing done. In a command, <id NAME> stands for the number that the server has given that connection."""

    do: Do
    who: str = ""
    command: tuple[bytes, ...] = ()
    now_us: int = 0
    refusal: Refusal | None = None

    @property
    def has_no_order(self) -> bool:
        """Whether what it does to several keys a real server does in an order of its own."""
        return self.do is Do.EXPIRE or (
            self.do is Do.COMMAND and self.command[0].startswith(b"EVAL") and self.command[2] == b"0"
        )

    def __str__(self) -> str:
        if self.do is Do.COMMAND:
            words = " ".join([repr(word.decode("latin-1")) if len(word) < 400 else "…" for word in self.command])
            return f"{self.who}: {words}"
        told = {Do.CLOCK: self.now_us, Do.REFUSE: self.refusal}.get(self.do, self.who)
        return f"{self.do} {told}"


@dataclass(frozen=True, slots=True)
class Keys:
    """All keys whose end has not passed: type, end in ms or -1, value; `count` counts the others too."""

    count: int
    found: dict[bytes, tuple[bytes, int, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a step has brought. reply: b"" where the command blocks. heard: what came to each connection beside it."""

    reply: bytes = b""
    heard: dict[str, bytes] = field(default_factory=dict)
    keys: Keys | None = None  # None where the server would not tell


class Side(Protocol):
    """One of the two servers."""

    def begin(self, now_us: int) -> None:
        """An empty server without clients, which knows no script."""

    def take(self, step: Step) -> Seen:
        """Does the step, and waits until all is seen that comes of it."""
