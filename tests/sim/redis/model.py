"""The server: its clients, and each command of theirs at a moment that the caller names."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.sim.redis.blocking import Blocking
from tests.sim.redis.clients import Client
from tests.sim.redis.commands import COMMANDS, READS, keys_read
from tests.sim.redis.dialects import VALKEY_9, Dialect
from tests.sim.redis.keyspace import Data, Keyspace, OnLock, OnQueue, Value
from tests.sim.redis.refusals import Refusal, check
from tests.sim.redis.resp import OK, ErrorReply, Status, encoded, encoded_error, integer
from tests.sim.redis.scripts import Scripts
from tests.sim.redis.tracking import Tracking

_IN_PUBSUB_MODE = frozenset((b"SUBSCRIBE", b"PING"))


class Model:
    """A server without I/O and without a clock: it lives at the `now_us` of the last call, which may go back.

    on_lock hears of each write of a lock: key, old holder, new holder, and why ("script", "set", "deleted", "expired",
    "evicted", "flush", "restart"). on_queue hears when there is a line for one, and when there is none any more.
    """

    def __init__(self, dialect: Dialect = VALKEY_9) -> None:
        self._dialect = dialect
        self._refuses: Refusal | None = None
        self._clients: dict[int, Client] = {}
        self._last_number = 0
        self._subscribers: dict[bytes, dict[int, Client]] = {}
        self._tracking = Tracking(self._clients)
        self._keys = Keyspace(dialect, self._tracking.changed)
        self._blocking = Blocking(self._keys)
        self._scripts = Scripts(self._keys, self._tracking, self._tell)
        self._own: dict[bytes, Callable[[Client, list[bytes]], bytes]] = {
            b"PING": self._ping,
            b"CLIENT": self._client,
            b"SUBSCRIBE": self._subscribe,
            b"PUBLISH": self._publish,
            b"ROLE": self._role,
            b"CLUSTER": self._cluster,
            b"SELECT": self._select,
            b"BLPOP": self._blocking.blpop,
            b"SCRIPT": self._scripts.script,
            b"EVAL": self._scripts.eval,
            b"EVALSHA": self._scripts.evalsha,
        }

    @property
    def refuses(self) -> Refusal | None:
        """Why it refuses commands just now."""
        return self._refuses

    @refuses.setter
    def refuses(self, refusal: Refusal | None) -> None:
        self._refuses = self._scripts.refuses = refusal
        self._keys.keeps_expired = refusal is Refusal.READONLY

    @property
    def over(self) -> int:
        """How many keys have gone because their end had passed."""
        return self._keys.over

    @property
    def on_lock(self) -> OnLock:
        """Who hears of each write of a lock."""
        return self._keys.on_lock

    @on_lock.setter
    def on_lock(self, on_lock: OnLock) -> None:
        self._keys.on_lock = on_lock

    @property
    def on_queue(self) -> OnQueue:
        """Who hears when the line of a lock begins, and ends."""
        return self._keys.on_queue

    @on_queue.setter
    def on_queue(self, on_queue: OnQueue) -> None:
        self._keys.on_queue = on_queue

    def connect(self, push: Callable[[bytes], None]) -> Client:
        """A new connection."""
        self._last_number += 1
        client = self._clients[self._last_number] = Client(self._last_number, push)
        return client

    def disconnect(self, client: Client) -> None:
        """The connection is closed; harmless for one that the server has forgotten."""
        if self._clients.get(client.number) is not client:
            return
        del self._clients[client.number]
        for channel in client.channels:
            del self._subscribers[channel][client.number]
        self._blocking.drop(client)

    def execute(self, client: Client, command: list[bytes], now_us: int) -> bytes:
        """The reply on the wire; b"" for a command that blocks, whose reply is pushed."""
        if client.blocked_on:
            client.waiting.append(command)
            return b""
        keys, tracking = self._keys, self._tracking
        keys.at(now_us)
        tracking.current = client
        name = command[0].upper()
        try:
            if self._refuses is not None:
                check(self._refuses, command, self._dialect)
            reply = self._done(client, name, command)
        except ErrorReply as error:
            reply = encoded_error(str(error))
        if name != b"CLIENT":
            client.caching = False
        tracking.tell_late()
        tracking.current = None
        if keys.pushed:
            self._catch_up(self._blocking.serve())
        return reply

    def expire(self, now_us: int) -> None:
        """Removes keys whose end has passed, and ends the waits that have lasted long enough."""
        self._keys.at(now_us)
        self._keys.expire_all()
        self.end_waits(now_us)

    def has_something_over(self, now_us: int) -> bool:
        """Whether a key is there whose end has passed."""
        return any(now_us // 1000 > end_ms for end_ms in self._keys.ends_ms.values())

    def end_waits(self, now_us: int) -> None:
        """Ends the waits that have lasted long enough, and removes nothing."""
        self._keys.at(now_us)
        self._catch_up(self._blocking.end_late())

    def flush_all(self, now_us: int) -> None:
        """FLUSHALL, by an operator."""
        self._keys.at(now_us)
        self._keys.replace(Data({}, {}), "flush")
        self._tracking.flushed()

    def evict(self, key: bytes, now_us: int) -> None:
        """The key goes because memory is short."""
        self._keys.at(now_us)
        if self._keys.get(key) is not None:
            self._keys.remove(key, "evicted")

    def peek(self, key: bytes) -> tuple[Value | None, int | None]:
        """What a key has, and its end in ms, though that may have passed; nothing is touched."""
        return self._keys.values.get(key), self._keys.ends_ms.get(key)

    def snapshot(self) -> Data:
        """What it has in its keys now."""
        return self._keys.snapshot()

    def restore(self, data: Data, now_us: int) -> None:
        """It has started anew with this data: no clients, no scripts, nothing watched."""
        self._keys.at(now_us)
        self._clients.clear()
        self._last_number = 0
        self._subscribers.clear()
        self._tracking.clear()
        self._blocking.clear()
        self._scripts.forget()
        self._keys.replace(data, "restart")

    def forgets_tracking(self) -> None:
        """The tracking table was full: everything watched is told of as changed."""
        self._tracking.forget()

    def forgets_scripts(self) -> None:
        """SCRIPT FLUSH, by an operator."""
        self._scripts.forget()

    def _done(self, client: Client, name: bytes, command: list[bytes]) -> bytes:
        if client.channels and name not in _IN_PUBSUB_MODE:
            raise ErrorReply(
                f"ERR Can't execute '{name.decode().lower()}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT /"
                " RESET are allowed in this context"
            )
        own = self._own.get(name)
        if own is not None:
            return own(client, command)
        run = COMMANDS.get(name)
        if run is None:
            raise NotImplementedError(command[:3])
        self._keys.why = "deleted" if name == b"DEL" else name.decode().lower()
        try:
            return encoded(run(self._keys, command))
        finally:  # also what could not be read
            if client.caching and client.tracks and name in READS:
                self._tracking.remember(client, keys_read(command))

    def _catch_up(self, freed: Iterator[Client]) -> None:
        """Those who do not wait any more carry out what they have sent meanwhile."""
        for client in freed:
            while client.waiting and not client.blocked_on:
                reply = self.execute(client, client.waiting.pop(0), self._keys.now_us)
                if reply:
                    client.push(reply)

    def _ping(self, client: Client, command: list[bytes]) -> bytes:
        return encoded([b"pong", b""]) if client.channels else encoded(Status("PONG"))

    def _client(self, client: Client, command: list[bytes]) -> bytes:
        words = [word.upper() for word in command[1:]]
        if words == [b"ID"]:
            return encoded(client.number)
        if words == [b"CACHING", b"YES"]:
            if not client.tracks:
                raise ErrorReply(
                    "ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT"
                    " mode enabled"
                )
            client.caching = True
        elif words == [b"TRACKING", b"OFF"]:
            client.tracks = client.caching = False
        elif words[:3] == [b"TRACKING", b"ON", b"REDIRECT"] and words[4:] == [b"OPTIN"]:
            to = integer(words[3])
            if to not in self._clients:
                raise ErrorReply("ERR The client ID you want redirect to does not exist")
            client.tracks, client.redirect = True, to
        else:
            raise NotImplementedError(command)
        return encoded(OK)

    def _subscribe(self, client: Client, command: list[bytes]) -> bytes:
        replies = []
        for channel in command[1:]:
            client.channels[channel] = None
            self._subscribers.setdefault(channel, {})[client.number] = client
            replies.append(encoded([b"subscribe", channel, len(client.channels)]))
        return b"".join(replies)

    def _publish(self, client: Client, command: list[bytes]) -> bytes:
        return encoded(self._tell(command[1], command[2]))

    def _tell(self, channel: bytes, text: bytes) -> int:
        """PUBLISH: how many were told."""
        hearing = self._subscribers.get(channel)
        if not hearing:
            return 0
        message = encoded([b"message", channel, text])
        for client in hearing.values():
            client.push(message)
        return len(hearing)

    def _role(self, client: Client, command: list[bytes]) -> bytes:
        if self._refuses is Refusal.READONLY:
            return encoded([b"slave", b"127.0.0.1", 1, b"connect", -1])
        return encoded([b"master", 0, []])

    def _cluster(self, client: Client, command: list[bytes]) -> bytes:
        raise ErrorReply("ERR This instance has cluster support disabled")

    def _select(self, client: Client, command: list[bytes]) -> bytes:
        if command[1] != b"0":
            raise NotImplementedError("another database than 0")
        return encoded(OK)
