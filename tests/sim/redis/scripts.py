"""The scripts that the server knows, and their commands on its keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tests.sim.redis import lua
from tests.sim.redis.clients import Client
from tests.sim.redis.commands import COMMANDS, READS, WRITES, keys_read
from tests.sim.redis.keyspace import Keyspace
from tests.sim.redis.refusals import Refusal, check_in_script
from tests.sim.redis.resp import OK, ErrorReply, Reply, encoded
from tests.sim.redis.tracking import Tracking


class Scripts:
    """SCRIPT, EVAL and EVALSHA. `tell`: PUBLISH."""

    def __init__(self, keys: Keyspace, tracking: Tracking, tell: Callable[[bytes, bytes], int]) -> None:
        self.refuses: Refusal | None = None
        self._keys, self._tracking, self._tell = keys, tracking, tell
        self._dialect = keys.dialect
        self._known: dict[bytes, Any] = {}
        # Of the script that runs:
        self._reader: Client | None = None  # who wants to hear of changes of what it reads
        self._keys_given: Sequence[bytes] = ()
        self._has_written = False

    def evalsha(self, client: Client, command: Sequence[bytes]) -> bytes:
        """Runs a script to its end. Raises ErrorReply; then what it had done stays done."""
        sha = command[1].lower()
        function = self._known.get(sha)
        if function is None:
            raise ErrorReply(self._dialect.no_script)
        self._keys.why = "script"
        self._has_written = False
        self._reader = client if client.caching and client.tracks else None
        self._keys_given = command[3 : 3 + int(command[2])] if self._dialect.watches_keys_of_script else ()
        try:
            return lua.run(function, int(command[2]), command[3:], self._call)
        except lua.ScriptFailed as failed:
            raise ErrorReply(self._dialect.failed_script(failed.words, sha, failed.line)) from None

    def eval(self, client: Client, command: Sequence[bytes]) -> bytes:
        """The same for a script's text, which the server knows from then on."""
        return self.evalsha(client, [b"EVALSHA", self._loaded(command[1]), *command[2:]])

    def script(self, client: Client, command: Sequence[bytes]) -> bytes:
        """SCRIPT LOAD, EXISTS and FLUSH."""
        word = command[1].upper()
        if word == b"LOAD":
            return encoded(self._loaded(command[2]))
        if word == b"EXISTS":
            return encoded([int(sha.lower() in self._known) for sha in command[2:]])
        if word == b"FLUSH":
            self.forget()
            return encoded(OK)
        raise NotImplementedError(command)

    def forget(self) -> None:
        """It knows none any more."""
        self._known.clear()

    def _loaded(self, source: bytes) -> bytes:
        sha = lua.sha_of(source)
        self._known[sha] = lua.compiled(source)
        return sha

    def _call(self, args: tuple[Any, ...]) -> Reply:
        """One command of the script."""
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
        try:
            return run(self._keys, args)
        finally:  # also what could not be read
            if self._reader is not None and name in READS:
                self._tracking.remember(self._reader, self._keys_given or keys_read(args))

    def _texts(self, args: Sequence[Any]) -> tuple[bytes, ...]:
        """The command, where some of it are Lua's numbers."""
        texts = []
        for arg in args:
            if arg.__class__ is bytes:
                texts.append(arg)
            elif arg.__class__ is int or arg.__class__ is float:
                texts.append(self._dialect.text_of(arg))
            else:
                raise ErrorReply(self._dialect.no_text)
        return tuple(texts)
