"""One instance as it tells of itself once a second: two texts, of the whole and of its locks one by one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from locks.histogram import LogHistogram

# The fields that are histograms, told by their buckets that are not empty.
_HISTOGRAMS = frozenset({"wait", "hold", "under_way"})


class HeldLock(Protocol):
    """A lease as far as it is told of; times are seconds of Clock.monotonic_s."""

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
    def for_whom(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Picture:
    """One instance within its window. `counts`, `wait`, `hold` and `hot` are of what ended within it, `totals` of all
    since it began.

    `hot`: lock -> waits, seconds waited in all, the longest wait. Of the waits that go on `under_way` has the present
    ages, `waited_for` how many wait for a lock, and `waited_so_far` lock -> seconds in all, the longest. An instance of
    an older version tells of neither ages nor seconds.
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
    under_way: LogHistogram = field(default_factory=LogHistogram)
    waited_so_far: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def all_waits(self) -> LogHistogram:
        """How long attempts took that ended within the window, and those under way so far."""
        return self.wait | self.under_way

    def text(self) -> str:
        """For Redis."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        for name in _HISTOGRAMS:
            values[name] = values[name].sparse()
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def read(cls, text: str) -> Picture:
        """What `text` has made; fields of a newer version are left out, those that an older one lacks are empty."""
        values = {name: value for name, value in json.loads(text).items() if name in cls.__slots__}
        for name in _HISTOGRAMS & values.keys():
            values[name] = LogHistogram.from_sparse({int(bucket): n for bucket, n in values[name].items()})
        return cls(**values)


class Teller(NamedTuple):
    """The instance that tells."""

    instance_id: str
    host: str
    pid: int


class ToldLock(NamedTuple):
    """A lock as one instance tells of it: held there (`fencing_token` is not 0), waited for there, or both.

    `expires_at_ms` is in unix milliseconds of the server's clock. The token is the time of the grant in microseconds.
    `for_whom`: of locks.for_whom, where it is held.
    """

    name: str
    fencing_token: int
    expires_at_ms: int
    waiters: int
    for_whom: str
    teller: Teller


def lines_of_held(held: Iterable[HeldLock], waiters: dict[str, int], *, offset_s: float) -> list[str]:
    """A line for each lock that is held, whose waiters are taken out; `offset_s`: the server's clock less ours."""
    return [
        f"{lease.name}\t{lease.fencing_token}\t{(lease.deadline_s + offset_s) * 1000:.0f}"
        f"\t{waiters.pop(lease.name, 0)}\t{lease.for_whom}"
        for lease in held
    ]


def lines_of_waited_for(waiters: Mapping[str, int]) -> list[str]:
    """A line for each lock that is only waited for."""
    return [f"{name}\t0\t0\t{count}\t" for name, count in waiters.items()]


def read_locks(lines: Iterable[str], teller: Teller) -> Iterable[ToldLock]:
    """What the two have made."""
    for line in lines:
        if line:
            name, token, expires_ms, waiters, for_whom = line.split("\t")
            yield ToldLock(name, int(token), int(expires_ms), int(waiters), for_whom, teller)
