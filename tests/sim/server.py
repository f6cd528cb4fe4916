"""The simulated server: a queue of what has arrived, worked off in order, and what befalls it."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from hiredis import Reader

from tests.sim.network import Connection
from tests.sim.process import Process
from tests.sim.recording import Held
from tests.sim.redis import Client, Data, Model, Refusal
from tests.sim.world import World

EPOCH_US = 1_800_000_000_000_000
COMMAND_S = (5e-6, 6e-5)  # what a command takes
# What a new connection begins with, whoever it is for.
GREETINGS = frozenset({b"HELLO", b"CLIENT", b"SCRIPT", b"SUBSCRIBE", b"PING"})
EXPIRES_EVERY_S = (0.02, 0.1)


class Server:
    """One server, by a clock of its own: `rate` seconds a second, and as far ahead as a fault has set it."""

    def __init__(self, world: World, *, rate: float = 1.0) -> None:
        self.model = Model()
        self.is_up = True
        self.commands = 0
        self.now_s = 0.0  # true time of the command that it works on
        self.works_for: Connection | None = None  # whose command that is
        self.asked: Counter[tuple[str, int]] = Counter()  # commands about locks, by process and second of true time
        self.dialed: Counter[tuple[str, int]] = Counter()  # connections
        self.history = 0  # a hash of whose commands it has carried out, and what was over, in order
        self._world, self._rate = world, rate
        self._random = world.random("server")
        self._ahead_us = self._furthest_us = 0
        self._set_at_s = 0.0  # when its clock was set last, or its data
        self._clients: dict[Connection, tuple[Client, Any]] = {}
        self._queue: deque[tuple[Connection, bytes]] = deque()
        self._is_working = False
        self._life = 0
        self._busy_until_s = 0.0
        self._refuses_until_s = 0.0
        self._expires = True
        self.on_failed: Callable[[Process, str], None] = lambda process, words: None  # no script of ours may
        self.expire()

    @property
    def now_us(self) -> int:
        """By its own clock, since 1970."""
        return EPOCH_US + self._ahead_us + int(self.now_s * self._rate * 1e6)

    # Its connections.

    def accepts(self, connection: Connection) -> None:
        """There is one more."""

        def push(data: bytes) -> None:
            connection.send_down(data, self.now_s)

        self._clients[connection] = (self.model.connect(push), Reader())
        self.dialed[connection.process.name, int(self._world.now_s)] += 1

    def arrived(self, connection: Connection, data: bytes) -> None:
        """Some bytes of a client; they wait for those before them."""
        if connection in self._clients:
            self._queue.append((connection, data))
            if not self._is_working:
                self._is_working = True
                self._world.at(max(self._world.now_s, self._busy_until_s), self, self.work, self._life)

    def closed(self, connection: Connection) -> None:
        """A client has gone."""
        found = self._clients.pop(connection, None)
        if found is not None:
            self.model.disconnect(found[0])

    @property
    def queue(self) -> tuple[int, ...]:
        """The connections whose commands have arrived and are not carried out yet, in order."""
        return tuple(connection.number for connection, _ in self._queue)

    # What befalls it.

    def pause(self, for_s: float) -> None:
        """It does nothing for a while."""
        self._busy_until_s = max(self._busy_until_s, self._world.now_s + for_s)

    def refuse(self, refusal: Refusal, *, for_s: float) -> None:
        """It answers with this error for a while."""
        self.model.refuses = refusal
        self._refuses_until_s = self._world.now_s + for_s
        self._world.at(self._refuses_until_s, self, self._refuse_no_more)

    def crash(self) -> None:
        """It is gone, and its kernel closes its connections; some answers are lost."""
        self.is_up = False
        self._life += 1
        self._queue.clear()
        self._is_working = False
        clients, self._clients = self._clients, {}
        for connection, (client, _) in clients.items():
            self.model.disconnect(client)
            connection.close_from_there(loses=self._random.random() < 0.5)

    def start(self, data: Data) -> None:
        """It is back, with this data."""
        self._look_at_clock()
        self._set_at_s = self.now_s
        self.model.restore(data, self.now_us)
        self.is_up = True
        self._busy_until_s = self._world.now_s

    def snapshot(self) -> Data:
        """Its data as it is now."""
        return self.model.snapshot()

    def set_clock(self, ahead_s: float) -> None:
        """Its clock is set by so many seconds, which may be negative."""
        self._look_at_clock()
        self._set_at_s = self.now_s
        self._ahead_us += int(ahead_s * 1e6)
        self._furthest_us = max(self._furthest_us, self._ahead_us)

    def expire_no_more(self) -> None:
        """From now on what is over goes when it is asked for, and not before."""
        self._expires = False

    def catch_up(self) -> float:
        """Its clock is as far as it has ever been, and so many seconds further than before."""
        behind_s = (self._furthest_us - self._ahead_us) / 1e6
        if behind_s:
            self.set_clock(behind_s)
        return behind_s

    def flush(self) -> None:
        """FLUSHALL."""
        self._look_at_clock()
        self.model.flush_all(self.now_us)

    def evict(self, numbers: random.Random) -> None:
        """It drops a key, any."""
        self._look_at_clock()
        keys = self.keys()
        if keys:
            self.model.evict(numbers.choice(keys).encode(), self.now_us)

    def lease_ends_s(self, held: Held) -> float:
        """When this lease is over here, in true seconds; now where the lock is not held under it."""
        self._look_at_clock()
        lock, grant = (f"{kind}:{{{held.name}}}".encode() for kind in ("lock", "lock-grant"))
        (holder, end_ms), (granted, _) = self.model.peek(lock), self.model.peek(grant)
        is_its = holder == held.lease_id.encode()
        if holder is not None and isinstance(granted, bytes) and held.grant_fence is not None:
            seconds, microseconds = granted.split(b"\t")[0].split(b" ")[:2]
            is_its = is_its or int(seconds) * 1_000_000 + int(microseconds) == held.grant_fence
        if not is_its or end_ms is None:
            return self.now_s
        return max(self._set_at_s, self.now_s + (end_ms - self.now_us / 1000) / 1000 / self._rate)

    def lock_ends_s(self, name: str, lease_id: str) -> float:
        """When the lock that is held under this id is over here, in true seconds; now where it is not."""
        return self.lease_ends_s(Held(name, None, None, lease_id, 0.0))

    def left_s(self, name: str, fence: int) -> float:
        """How much of a lease is left here that has the lock under this token; 0.0 where none does."""
        granted, _ = self.model.peek(f"lock-grant:{{{name}}}".encode())
        if not isinstance(granted, bytes):
            return 0.0
        token, _, lease_id = granted.decode().split("\t")[:3]
        seconds, microseconds = token.split(" ")[:2]
        ends_s = self.lock_ends_s(name, lease_id) if int(seconds) * 1_000_000 + int(microseconds) == fence else 0.0
        return max(0.0, ends_s - self.now_s)

    def keys(self) -> list[str]:
        """Those that there are now."""
        self._look_at_clock()
        self.model.expire(self.now_us)
        return sorted(key.decode() for key in self.model.snapshot().values)

    def has_something_over(self) -> bool:
        """Whether something is over that is still there."""
        self._look_at_clock()
        return self.model.has_something_over(self.now_us)

    def _look_at_clock(self) -> None:
        self.now_s = max(self.now_s, self._world.now_s)

    def _refuse_no_more(self) -> None:
        if self._world.now_s >= self._refuses_until_s:
            self.model.refuses = None

    def work(self, life: int) -> None:
        """What arrived first is carried out."""
        if life != self._life:
            return
        if self._world.now_s < self._busy_until_s:
            self._world.at(self._busy_until_s, self, self.work, life)
            return
        connection, data = self._queue.popleft()
        self._look_at_clock()
        if connection in self._clients:
            self._answer(connection, data)
        self.history = hash((self.history, connection.number, self.model.over))
        self._busy_until_s = self.now_s
        if self._queue:
            self._world.at(self.now_s, self, self.work, life)
        else:
            self._is_working = False

    def _answer(self, connection: Connection, data: bytes) -> None:
        client, reader = self._clients[connection]
        self.works_for = connection
        reader.feed(data)
        answers = []
        while (command := reader.gets()) is not False:
            self.now_s += COMMAND_S[0] + self._random.random() * (COMMAND_S[1] - COMMAND_S[0])
            self.commands += 1
            if command[0] not in GREETINGS:
                self.asked[connection.process.name, int(self.now_s)] += 1
            answer = self.model.execute(client, command, self.now_us)
            if answer.startswith(b"-ERR") and b"@user_script" in answer:
                self.on_failed(connection.process, answer[1:-2].decode())
            answers.append(answer)
        self.works_for = None
        connection.send_down(b"".join(answers), self.now_s)

    def expire(self) -> None:
        """What is over goes, though nobody asks for it."""
        if self.is_up and self._world.now_s >= self._busy_until_s:
            self._look_at_clock()
            over = self.model.over
            self.model.expire(self.now_us)
            if self.model.over != over:
                self.history = hash((self.history, self.model.over))
        if self._expires:
            self._world.at(self._world.now_s + self._random.uniform(*EXPIRES_EVERY_S), self, self.expire)
