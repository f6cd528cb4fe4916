"""Random steps: some hundred from an empty server on."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.sim.conformance import lock_commands, plain_commands
from tests.sim.conformance.drawing import BEGIN_US, PROCESSES, PROGRAMS, Draw, Process, words
from tests.sim.conformance.modelled import ModelSide
from tests.sim.conformance.steps import Do, Step
from tests.sim.redis import Refusal

COMMANDS_AN_EPISODE = 600
_LONGEST_REFUSAL = 12
_LOCKS = "lock:{"


class Episode:
    """The next step follows from the seed and from what the model says to the steps before."""

    def __init__(self, seed: str, side: ModelSide) -> None:
        self._rng = random.Random(seed)
        self._side = side
        self._draw = Draw(self._rng, side)
        self._processes = {name: Process(name, plain_commands.channel_of(name)) for name in PROCESSES}
        self._refused = 0  # so many commands are left until the server is well again
        self.last_reply = b""  # the model's, to the last step
        self.begin_us = BEGIN_US + self._rng.randrange(10**12)

    def steps(self) -> Iterator[Step]:
        """All of them; each is taken before the next one is asked for."""
        for name in PROCESSES:
            yield from self._connect_messages(name)
            yield from self._connect_commands(name)
        for name in PROGRAMS:
            yield Step(do=Do.CONNECT, who=name)
        for source in plain_commands.SOURCES.values():
            yield Step(do=Do.COMMAND, who=PROGRAMS[0], command=(b"SCRIPT", b"LOAD", source))
        for _ in range(COMMANDS_AN_EPISODE):
            yield from self._something()
        if self._refused:
            yield Step(do=Do.REFUSE, refusal=None)

    def _something(self) -> Iterator[Step]:
        yield from self._refusals()
        if self._rng.random() < 0.6 and not self._is_busy:
            yield Step(do=Do.CLOCK, now_us=self._next_us())
        chance = self._rng.random()
        if chance < 0.03 and not self._refused:
            yield from self._accident()
        elif chance < 0.58:
            yield from self._locker()
        elif chance < 0.85:
            yield from self._program()
        else:
            yield from self._watch()

    @property
    def _is_busy(self) -> bool:
        return self._side.model.refuses is Refusal.BUSY

    def _refusals(self) -> Iterator[Step]:
        if self._refused:
            self._refused -= 1
            if not self._refused:
                yield Step(do=Do.REFUSE, refusal=None)
        elif self._rng.random() < 0.006:
            refusal = self._rng.choice([each for each in Refusal if each is not Refusal.LOADING])
            begin = Step(do=Do.REFUSE, refusal=refusal)
            if self._side.can_take(begin):
                self._refused = self._rng.randint(2, _LONGEST_REFUSAL)
                yield begin

    def _next_us(self) -> int:
        now_us, chance = self._side.now_us, self._rng.random()
        ends_ms = list(self._side.data.ends_ms.values())
        if chance < 0.1 and ends_ms:
            # Just before the end of a key, at it, or just after it.
            return self._rng.choice(ends_ms) * 1000 + self._rng.choice((-1, 0, 1, 999, 1000, 1001))
        if chance < 0.14:
            timeouts_ms = [client.timeout_ms for client in self._side.clients.values() if client.blocked_on]
            nearest_ms = min(timeouts_ms, default=float("inf"))
            if nearest_ms < float("inf"):
                return int(nearest_ms) * 1000 + self._rng.choice((0, 999, 1000))
        if chance < 0.15:
            return now_us - self._rng.choice((1, 1000, 700_000, 5_000_000, 3_600_000_000))
        if chance < 0.16:
            return now_us + self._rng.choice((5_000_000, 20_000_000, 3_600_000_000))
        return now_us + self._rng.choice((0, 1, 37, 1000, self._rng.randrange(20_000), self._rng.randrange(300_000)))

    def _accident(self) -> Iterator[Step]:
        kind = self._rng.random()
        if kind < 0.4:
            yield Step(do=Do.EXPIRE)
        elif kind < 0.5:
            yield Step(do=Do.FLUSH)
        elif kind < 0.6:
            yield Step(do=Do.FORGET_SCRIPTS)
        elif kind < 0.8:
            name = self._rng.choice(PROCESSES)
            yield Step(do=Do.KILL, who=f"{name} messages")
            for _ in range(self._rng.randint(0, 6)):
                yield from self._locker()
            yield from self._connect_messages(name)
            if self._rng.random() < 0.8:
                yield self._tracking(name)
        elif kind < 0.9:
            name = self._rng.choice(PROCESSES)
            yield Step(do=Do.KILL, who=f"{name} commands")
            yield from self._connect_commands(name)
        else:
            yield Step(do=Do.CONNECT, who=self._rng.choice(PROGRAMS))

    def _locker(self) -> Iterator[Step]:
        name = self._rng.choice(PROCESSES)
        command = lock_commands.drawn(self._draw, self._processes[name])
        if self._rng.random() < 0.06:
            yield self._said(name, b"CLIENT", b"CACHING", b"YES")
        yield self._said(name, *command)
        if self.last_reply.startswith(b"-NOSCRIPT"):
            yield self._said(name, *lock_commands.load_for(command))
            yield self._said(name, *command)

    def _program(self) -> Iterator[Step]:
        free = [name for name in PROGRAMS if not self._side.clients[name].blocked_on]
        if not free:
            yield Step(do=Do.CONNECT, who=self._rng.choice(PROGRAMS))
            return
        name, command = self._rng.choice(free), plain_commands.drawn(self._draw)
        yield Step(do=Do.COMMAND, who=name, command=command)
        if self.last_reply.startswith(b"-NOSCRIPT") and (source := plain_commands.SOURCES.get(command[1])):
            yield Step(do=Do.COMMAND, who=name, command=(b"SCRIPT", b"LOAD", source))
            yield Step(do=Do.COMMAND, who=name, command=command)

    def _watch(self) -> Iterator[Step]:
        name = self._rng.choice(PROCESSES)
        yield self._said(name, b"CLIENT", b"CACHING", b"YES")
        if self._rng.random() < 0.05:
            yield self._said(name, b"CLIENT", b"ID")
        yield self._said(name, b"GET", f"{_LOCKS}{self._draw.name()}}}".encode())

    def _connect_messages(self, name: str) -> Iterator[Step]:
        who = f"{name} messages"
        yield Step(do=Do.CONNECT, who=who)
        yield Step(do=Do.COMMAND, who=who, command=words(("CLIENT", "ID")))
        for channel in (self._processes[name].channel, "__redis__:invalidate"):
            yield Step(do=Do.COMMAND, who=who, command=words(("SUBSCRIBE", channel)))

    def _connect_commands(self, name: str) -> Iterator[Step]:
        yield Step(do=Do.CONNECT, who=f"{name} commands")
        yield self._said(name, b"PING")
        for greeting in lock_commands.SCRIPTS.greeting:
            yield self._said(name, *words(greeting))
        yield self._said(name, b"CLUSTER", b"MYID")
        yield self._tracking(name)

    def _tracking(self, name: str) -> Step:
        to = f"<id {name} messages>".encode()
        return self._said(name, b"CLIENT", b"TRACKING", b"ON", b"REDIRECT", to, b"OPTIN")

    def _said(self, name: str, *command: bytes) -> Step:
        return Step(do=Do.COMMAND, who=f"{name} commands", command=command)
