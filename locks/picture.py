"""One instance as it tells of itself once a second: two texts, of the whole and of its locks one by one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from locks.histogram import LogHistogram


class HeldLock(Protocol):
    """A lease as far as it is told of; times are clock.monotonic_s() seconds."""

    @property
    def name(self) -> str: ...
    @property
    def fencing_token(self) -> int: ...
    @property
    def acquired_at_s(self) -> float: ...
    @property
    def held_s(self) -> float: ...
    @property
    def deadline_s(self) -> float: ...
    @property
    def request_id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Picture:
    """One instance within its window. `counts`, `wait`, `hold` and `hot` cover the window, `totals` all since it began.

    `hot`: lock -> waits, seconds waited in all, the longest wait. `waited_for`: lock -> callers that wait now.
    """

    instance_id: str
    host: str
    pid: int
    version: str
    started_at: float
    draining: bool
    held: int
    waiting: int
    oldest_wait_s: float
    oldest_held_s: float
    counts: Mapping[str, int]
    totals: Mapping[str, int]
    wait: LogHistogram
    hold: LogHistogram
    hot: Mapping[str, tuple[int, float, float]]
    waited_for: Mapping[str, int]

    def text(self) -> str:
        """For Redis."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        values["wait"], values["hold"] = self.wait.sparse(), self.hold.sparse()
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def read(cls, text: str) -> Picture:
        """What `text` has made; fields of a newer version are left out."""
        values = {name: value for name, value in json.loads(text).items() if name in cls.__slots__}
        for name in ("wait", "hold"):
            values[name] = LogHistogram.from_sparse({int(bucket): n for bucket, n in values[name].items()})
        return cls(**values)


class ToldLock(NamedTuple):
    """A lock as one instance tells of it: held there (`fencing_token` is not 0), waited for there, or both.

    `expires_at_ms` is in unix milliseconds of the server's clock. The token is the time of the grant in microseconds.
    """

    name: str
    fencing_token: int
    expires_at_ms: int
    waiters: int
    request_id: str


def lines_of_held(held: Iterable[HeldLock], waiters: dict[str, int], *, offset_s: float) -> list[str]:
    """A line for each lock that is held, whose waiters are taken out; `offset_s`: the server's clock less ours."""
    return [
        f"{lease.name}\t{lease.fencing_token}\t{(lease.deadline_s + offset_s) * 1000:.0f}"
        f"\t{waiters.pop(lease.name, 0)}\t{lease.request_id}"
        for lease in held
    ]


def lines_of_waited_for(waiters: Mapping[str, int]) -> list[str]:
    """A line for each lock that is only waited for."""
    return [f"{name}\t0\t0\t{count}\t" for name, count in waiters.items()]


def read_locks(lines: Iterable[str]) -> Iterable[ToldLock]:
    """What the two have made."""
    for line in lines:
        if line:
            name, token, expires_ms, waiters, request_id = line.split("\t")
            yield ToldLock(name, int(token), int(expires_ms), int(waiters), request_id)
