"""The server: its clients, and each command of theirs at a moment that the caller names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tests.sim.redis import lua
from tests.sim.redis.commands import COMMANDS, READS, WRITES, keys_read
from tests.sim.redis.dialects import VALKEY_9, Dialect
from tests.sim.redis.keyspace import Data, Keyspace, OnLock
from tests.sim.redis.lists import pop_first
from tests.sim.redis.refusals import Refusal, check, check_in_script
from tests.sim.redis.resp import NIL_ARRAY, OK, ErrorReply, Reply, Status, encoded, encoded_error, integer
from tests.sim.redis.tracking import Tracking

_IN_PUBSUB_MODE = frozenset((b"SUBSCRIBE", b"PING"))


class Client:
    """One connection. `push` gets what the server sends unasked, and the end of what blocked."""

    __slots__ = ("blocked_on", "caching", "channels", "number", "push", "redirect", "timeout_ms", "tracks", "waiting")

    def __init__(self, number: int, push: Callable[[bytes], None]) -> None:
        self.number = number
        self.push = push
        self.channels: dict[bytes, None] = {}
        self.tracks = self.caching = False
        self.redirect = 0
        self.blocked_on: Sequence[bytes] = ()
        self.timeout_ms: float = math.inf
        self.waiting: list[list[bytes]] = []  # commands that came while it was blocked


class Model:
    """A server without I/O and without a clock: it lives at the `now_us` of the last call, which may go back.

    on_lock hears of each write of a lock: key, old holder, new holder, and why ("script", "set", "deleted", "expired",
    "evicted", "flush", "restart").
    """

    def __init__(self, dialect: Dialect = VALKEY_9) -> None:
        self.refuses: Refusal | None = None
        self._dialect = dialect
        self._clients: dict[int, Client] = {}
        self._tracking = Tracking(self._clients)
        self._keys = Keyspace(dialect, self._tracking.changed)
        self._subscribers: dict[bytes, dict[int, Client]] = {}
        self._blocked: dict[bytes, dict[int, Client]] = {}  # by key, in the order of their coming
        self._scripts: dict[bytes, Any] = {}
        self._last_number = 0
        self._reader: Client | None = None  # who wants to hear of changes of what this command reads
        self._has_written = False  # the script that runs

    @property
    def on_lock(self) -> OnLock:
        """Who hears of each write of a lock."""
        return self._keys.on_lock

    @on_lock.setter
    def on_lock(self, on_lock: OnLock) -> None:
        self._keys.on_lock = on_lock

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
        self._unblock(client)

    def execute(self, client: Client, command: list[bytes], now_us: int) -> bytes:
        """The reply on the wire; b"" for a command that blocks, whose reply is pushed."""
        if client.blocked_on:
            client.waiting.append(command)
            return b""
        keys = self._keys
        keys.at(now_us)
        self._tracking.current = client
        name = command[0]
        try:
            if self.refuses is not None:
                keys.keeps_expired = self.refuses is Refusal.READONLY
                check(self.refuses, command, self._dialect)
            else:
                keys.keeps_expired = False
            reply = self._evalsha(client, command) if name == b"EVALSHA" else self._plain(client, name.upper(), command)
        except ErrorReply as error:
            reply = encoded_error(str(error))
        if client.caching and name.upper() != b"CLIENT":
            client.caching = False
        self._tracking.tell_late()
        self._tracking.current = None
        if keys.pushed:
            self._serve_blocked()
        return reply

    def expire(self, now_us: int) -> None:
        """Removes keys whose end has passed, and ends the waits that have lasted long enough."""
        keys = self._keys
        keys.at(now_us)
        keys.expire_all()
        late = [client for client in self._waiters() if keys.now_ms > client.timeout_ms]
        for client in sorted(late, key=lambda client: (client.timeout_ms, client.number)):
            self._unblock(client)
            client.push(NIL_ARRAY)
            self._catch_up(client)

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

    def snapshot(self) -> Data:
        """What it has in its keys now."""
        return self._keys.snapshot()

    def restore(self, data: Data, now_us: int) -> None:
        """It has started anew with this data: no clients, no scripts, nothing watched."""
        self._keys.at(now_us)
        self._clients.clear()
        self._subscribers.clear()
        self._blocked.clear()
        self._scripts.clear()
        self._tracking = Tracking(self._clients)
        self._keys.changed = self._tracking.changed
        self._last_number = 0
        self._keys.replace(data, "restart")

    def forgets_tracking(self) -> None:
        """The tracking table was full: everything watched is told of as changed."""
        self._tracking.forget()

    def forgets_scripts(self) -> None:
        """SCRIPT FLUSH, by an operator."""
        self._scripts.clear()

    # Commands

    def _plain(self, client: Client, name: bytes, command: list[bytes]) -> bytes:
        if client.channels and name not in _IN_PUBSUB_MODE:
            words = name.decode().lower()
            raise ErrorReply(
                f"ERR Can't execute '{words}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed"
                " in this context"
            )
        own = _OWN.get(name)
        if own is not None:
            return own(self, client, command)
        run = COMMANDS.get(name)
        if run is None:
            raise NotImplementedError(command[:3])
        self._keys.why = "deleted" if name == b"DEL" else name.decode().lower()
        reply = run(self._keys, command)
        if client.caching and client.tracks and name in READS:
            self._tracking.remember(client, keys_read(command))
        return encoded(reply)

    def _evalsha(self, client: Client, command: list[bytes]) -> bytes:
        sha = command[1].lower()
        function = self._scripts.get(sha)
        if function is None:
            raise ErrorReply(self._dialect.no_script)
        self._keys.why = "script"
        self._has_written = False
        self._reader = client if client.caching and client.tracks else None
        try:
            return lua.run(function, int(command[2]), command[3:], self._call)
        except lua.ScriptFailed as failed:
            raise ErrorReply(self._dialect.failed_script(failed.words, sha, failed.line)) from None

    def _call(self, args: tuple[Any, ...]) -> Reply:
        """One command of a script."""
        for arg in args:
            if arg.__class__ is not bytes:
                args = self._texts(args)
                break
        name = args[0]
        run = COMMANDS.get(name)
        if run is None:
            name = name.upper()
            run = COMMANDS.get(name)
        if self.refuses is not None:
            check_in_script(self.refuses, name, self._dialect, has_written=self._has_written)
            self._has_written = self._has_written or name in WRITES
        if run is None:
            if name != b"PUBLISH":
                raise NotImplementedError(args)
            return self._tell(args[1], args[2])
        reply = run(self._keys, args)
        if self._reader is not None and name in READS:
            self._tracking.remember(self._reader, keys_read(args))
        return reply

    def _texts(self, args: Sequence[Any]) -> tuple[bytes, ...]:
        """The arguments of a script's command, where some are Lua's numbers."""
        texts = []
        for arg in args:
            if arg.__class__ is bytes:
                texts.append(arg)
            elif arg.__class__ is int or arg.__class__ is float:
                texts.append(self._dialect.text_of(arg))
            else:
                raise ErrorReply(self._dialect.no_text)
        return tuple(texts)

    def _eval(self, client: Client, command: list[bytes]) -> bytes:
        sha = self._loaded(command[1])
        return self._evalsha(client, [b"EVALSHA", sha, *command[2:]])

    def _script(self, client: Client, command: list[bytes]) -> bytes:
        word = command[1].upper()
        if word == b"LOAD":
            return encoded(self._loaded(command[2]))
        if word == b"FLUSH":
            self._scripts.clear()
            return encoded(OK)
        if word == b"EXISTS":
            return encoded([int(sha.lower() in self._scripts) for sha in command[2:]])
        raise NotImplementedError(command)

    def _loaded(self, source: bytes) -> bytes:
        sha = lua.sha_of(source)
        self._scripts[sha] = lua.compiled(source)
        return sha

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
        hearing = self._subscribers.get(channel)
        if not hearing:
            return 0
        message = encoded([b"message", channel, text])
        for client in hearing.values():
            client.push(message)
        return len(hearing)

    def _role(self, client: Client, command: list[bytes]) -> bytes:
        if self.refuses is Refusal.READONLY:
            return encoded([b"slave", b"127.0.0.1", 1, b"connect", -1])
        return encoded([b"master", 0, []])

    def _cluster(self, client: Client, command: list[bytes]) -> bytes:
        raise ErrorReply("ERR This instance has cluster support disabled")

    def _select(self, client: Client, command: list[bytes]) -> bytes:
        if command[1] != b"0":
            raise NotImplementedError("another database than 0")
        return encoded(OK)

    # Clients that block

    def _blpop(self, client: Client, command: list[bytes]) -> bytes:
        *names, timeout = command[1:]
        timeout_ms = _timeout_ms(timeout)
        self._keys.why = "blpop"
        for key in names:
            item = pop_first(self._keys, key)
            if item is not None:
                return encoded([key, item])
        client.blocked_on = names
        client.timeout_ms = self._keys.now_ms + timeout_ms if timeout_ms else math.inf
        for key in names:
            self._blocked.setdefault(key, {})[client.number] = client
        return b""

    def _waiters(self) -> Sequence[Client]:
        waiting = {number: client for clients in self._blocked.values() for number, client in clients.items()}
        return list(waiting.values())

    def _serve_blocked(self) -> None:
        """Each list that has got something gives to those who wait for it, the first first."""
        pushed = self._keys.pushed
        self._keys.why = "blpop"
        while pushed:
            key = pushed.pop(0)
            while waiting := self._blocked.get(key):
                client = next(iter(waiting.values()))
                value = self._keys.values.get(key)
                item = pop_first(self._keys, key) if value is not None else None
                if item is None:
                    break
                self._unblock(client)
                client.push(encoded([key, item]))
                self._catch_up(client)

    def _unblock(self, client: Client) -> None:
        for key in client.blocked_on:
            waiting = self._blocked[key]
            waiting.pop(client.number, None)
            if not waiting:
                del self._blocked[key]
        client.blocked_on, client.timeout_ms = (), math.inf

    def _catch_up(self, client: Client) -> None:
        """Carries out what the client has sent while it was blocked."""
        while client.waiting and not client.blocked_on:
            reply = self.execute(client, client.waiting.pop(0), self._keys.now_us)
            if reply:
                client.push(reply)


_Own = Callable[[Model, Client, list[bytes]], bytes]
_OWN: dict[bytes, _Own] = {
    b"PING": Model._ping,
    b"CLIENT": Model._client,
    b"SUBSCRIBE": Model._subscribe,
    b"PUBLISH": Model._publish,
    b"SCRIPT": Model._script,
    b"EVAL": Model._eval,
    b"BLPOP": Model._blpop,
    b"ROLE": Model._role,
    b"CLUSTER": Model._cluster,
    b"SELECT": Model._select,
}


def _timeout_ms(text: bytes) -> int:
    try:
        timeout_s = float(text)
    except ValueError:
        raise ErrorReply("ERR timeout is not a float or out of range") from None
    if timeout_s < 0:
        raise ErrorReply("ERR timeout is negative")
    return math.ceil(timeout_s * 1000)
