"""A real server, whose clocks stand still, as one of the two sides."""

from __future__ import annotations

import contextlib
import re
import socket
from pathlib import Path
from typing import Any

import hiredis

from tests.harness import wait_until
from tests.servers.frozen_clock import FrozenClockServer, build_frozen_clock_library
from tests.servers.wire import ErrorReply, Wire
from tests.sim.conformance.steps import Do, Keys, Seen, Step
from tests.sim.redis import Refusal

_ANSWER_WAIT_S = 30.0
_POLL_S = 0.02
_ID = re.compile(rb"<id (.+)>").fullmatch
# Keys are told of by one script, which reads only.
_DUMP = b"""
local found, names = {}, redis.call('KEYS', '*')
local how = {string = {'GET'}, hash = {'HGETALL'}, list = {'LRANGE', 0, -1}, zset = {'ZRANGE', 0, -1, 'WITHSCORES'}}
for i, name in ipairs(names) do
  local kind = redis.call('TYPE', name).ok
  local command = how[kind]
  local value = redis.call(command[1], name, unpack(command, 2))
  found[i] = {name, kind, redis.call('PEXPIRETIME', name), value}
end
return {redis.call('DBSIZE'), found}
"""
_SETTINGS = (
    "enable-debug-command local",
    "save 3600 1000000000",
    "dbfilename blocked.rdb",
    "stop-writes-on-bgsave-error no",
    "busy-reply-threshold 1",
)
_BEGIN_AND_END: dict[Refusal, tuple[tuple[str, ...], tuple[str, ...]]] = {
    Refusal.OOM: (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    Refusal.NOREPLICAS: (
        ("CONFIG", "SET", "min-replicas-to-write", "1"),
        ("CONFIG", "SET", "min-replicas-to-write", "0"),
    ),
    Refusal.MISCONF: (
        ("CONFIG", "SET", "stop-writes-on-bgsave-error", "yes"),
        ("CONFIG", "SET", "stop-writes-on-bgsave-error", "no"),
    ),
    Refusal.READONLY: (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
}


class _Connection:
    """Replies as they are on the wire."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_WAIT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = int(self.ask(("CLIENT", "ID"))[1:-2])
        self.channels: dict[bytes, None] = {}
        self.is_blocked = False

    def say(self, command: tuple[Any, ...]) -> None:
        self._socket.sendall(hiredis.pack_command(command))

    def ask(self, command: tuple[Any, ...]) -> bytes:
        """The reply."""
        self.say(command)
        return self.hear()

    def hear(self) -> bytes:
        """The next reply, where nothing else is on the way."""
        reader, raw = hiredis.Reader(), b""
        while reader.gets() is False:
            received = self._receive()
            reader.feed(received)
            raw += received
        return raw

    def hear_until(self, end: bytes) -> bytes:
        """All up to this end."""
        raw = b""
        while not raw.endswith(end):
            raw += self._receive()
        return raw[: -len(end)]

    def hear_what_is_there(self) -> bytes:
        """What has come already."""
        self._socket.setblocking(False)
        try:
            return self._socket.recv(65536)
        except BlockingIOError:
            return b""
        finally:
            self._socket.settimeout(_ANSWER_WAIT_S)

    def close(self) -> None:
        self._socket.close()

    def _receive(self) -> bytes:
        received = self._socket.recv(65536)
        if not received:
            raise ConnectionResetError("the server closed the connection")
        return received


class RealSide:
    """Use it with `with`."""

    def __init__(self, binary: Path, folder: Path, *, now_us: int) -> None:
        library = build_frozen_clock_library(folder)
        self._server = FrozenClockServer(binary, folder, library=library, now_us=now_us, settings=_SETTINGS)
        self._connections: dict[str, _Connection] = {}
        self._numbers: dict[str, int] = {}
        self._busy: Wire | None = None
        self._refusal: Refusal | None = None

    def __enter__(self) -> RealSide:
        try:
            self._server.start()
            self._control = self._server.connect(answer_wait_s=_ANSWER_WAIT_S)
            self._keys = _Connection(self._server.port)
            self._control.ask("DEBUG", "SET-ACTIVE-EXPIRE", 0)
            self._fail_to_save()
        except BaseException:
            self._server.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections.values():
            connection.close()
        self._keys.close()
        self._control.close()
        if self._busy is not None:
            self._busy.close()
        self._server.kill()

    @property
    def version(self) -> str:
        """Which server it is."""
        return self._server.version()

    def begin(self, now_us: int) -> None:
        """An empty server without clients, which knows no script."""
        self._refuse(None)
        for who in list(self._connections):
            self._kill(who)
        self._server.set_clock(now_us)
        self._control.ask("FLUSHALL")
        self._control.ask("SCRIPT", "FLUSH")

    def take(self, step: Step) -> Seen:
        """Does the step, and waits until all is seen that comes of it."""
        reply = b""
        if step.do is Do.COMMAND:
            reply = self._command(self._connections[step.who], self._with_numbers(step.command))
        elif step.do is Do.CONNECT:
            self._kill(step.who)
            connection = self._connections[step.who] = _Connection(self._server.port)
            self._numbers[step.who] = connection.number
        elif step.do is Do.KILL:
            self._kill(step.who)
        elif step.do is Do.CLOCK:
            self._server.set_clock(step.now_us)
            # A round of its loop, in which it ends the waits that have lasted long enough.
            self._control.ask("TIME")
        elif step.do is Do.EXPIRE:
            self._expire()
        elif step.do is Do.FLUSH:
            self._control.ask("FLUSHALL")
        elif step.do is Do.FORGET_SCRIPTS:
            self._control.ask("SCRIPT", "FLUSH")
        else:
            self._refuse(step.refusal)
        return self._seen(reply)

    def _command(self, connection: _Connection, command: tuple[bytes, ...]) -> bytes:
        if command[0] == b"BLPOP" and self._refusal is not Refusal.BUSY:
            connection.say(command)
            for _ in range(2):  # after the first answer it has been carried out, after the second one told
                self._control.ask("TIME")
            reply = connection.hear_what_is_there()
            connection.is_blocked = not reply
            return reply
        reply = connection.ask(command)
        if command[0] == b"SUBSCRIBE" and reply.startswith(b"*"):
            connection.channels.update(dict.fromkeys(command[1:]))
        return reply

    def _seen(self, reply: bytes) -> Seen:
        if self._refusal is Refusal.BUSY:
            return Seen(reply=reply)
        hearing = {who: connection for who, connection in self._connections.items() if connection.channels}
        for connection in hearing.values():
            connection.say(("SUBSCRIBE", next(iter(connection.channels))))
        keys = _keys_of(self._keys.ask(("EVAL", _DUMP, 0)))
        heard = {who: connection.hear_until(_marker(connection)) for who, connection in hearing.items()}
        for who, connection in self._connections.items():
            if connection.is_blocked and (ended := connection.hear_what_is_there()):
                heard[who] = ended
                connection.is_blocked = False
        return Seen(reply=reply, heard={who: raw for who, raw in heard.items() if raw}, keys=keys)

    def _with_numbers(self, command: tuple[bytes, ...]) -> tuple[bytes, ...]:
        return tuple(
            str(self._numbers.get(found[1].decode(), 10**9)).encode() if (found := _ID(word)) else word
            for word in command
        )

    def _kill(self, who: str) -> None:
        connection = self._connections.pop(who, None)
        if connection is not None:
            self._control.ask("CLIENT", "KILL", "ID", connection.number)
            connection.close()

    def _expire(self) -> None:
        """Its own rounds, until all is gone that has to go."""
        self._control.ask("DEBUG", "SET-ACTIVE-EXPIRE", 1)

        def all_gone() -> bool:
            self._server.tick()
            keys = _keys_of(self._keys.ask(("EVAL", _DUMP, 0)))
            return keys.count == len(keys.found)

        wait_until(all_gone, what="keys that expire")
        self._control.ask("DEBUG", "SET-ACTIVE-EXPIRE", 0)

    def _fail_to_save(self) -> None:
        """So that it has a reason to refuse, for when it is told to."""
        (self._server.folder / "blocked.rdb").mkdir()
        self._control.ask("BGSAVE")

        def failed() -> bool:
            self._server.tick()
            return "rdb_last_bgsave_status:err" in self._control.ask("INFO", "persistence")

        wait_until(failed, what="a save that fails")

    def _refuse(self, refusal: Refusal | None) -> None:
        if self._refusal is Refusal.BUSY:
            self._end_of_busy()
        elif self._refusal is not None:
            self._control.ask(*_BEGIN_AND_END[self._refusal][1])
        self._refusal = refusal
        if refusal is Refusal.BUSY:
            self._keep_busy()
        elif refusal is not None:
            self._control.ask(*_BEGIN_AND_END[refusal][0])

    def _keep_busy(self) -> None:
        self._busy = self._server.connect(answer_wait_s=_ANSWER_WAIT_S)
        self._busy.say("EVAL", "while true do redis.call('PING') end", 0)

        wait_until(self._is_busy, what="a busy server")

    def _is_busy(self) -> bool:
        """The script counts its time from its beginning, and answers nobody until it has taken long."""
        self._control.say("PING")
        while True:
            self._server.tick()
            try:
                self._control.hear(answer_wait_s=_POLL_S)
            except TimeoutError:
                continue
            except ErrorReply:
                return True
            return False

    def _end_of_busy(self) -> None:
        assert self._busy is not None
        self._control.ask("SCRIPT", "KILL")
        with contextlib.suppress(ErrorReply):
            self._busy.hear()
        self._busy.close()
        self._busy = None


def _marker(connection: _Connection) -> bytes:
    """The answer to a subscription that it has already: all that was told before it has come before."""
    channel = next(iter(connection.channels))
    return b"*3\r\n$9\r\nsubscribe\r\n$%d\r\n%b\r\n:%d\r\n" % (len(channel), channel, len(connection.channels))


def _keys_of(raw: bytes) -> Keys:
    reader = hiredis.Reader()
    reader.feed(raw)
    count, found = reader.gets()
    return Keys(count, {name: (kind, end_ms, _value(kind, value)) for name, kind, end_ms, value in found})


def _value(kind: bytes, value: Any) -> Any:
    return dict(zip(value[::2], value[1::2], strict=True)) if kind == b"hash" else value
