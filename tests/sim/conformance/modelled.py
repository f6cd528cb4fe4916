"""The model as one of the two sides."""

from __future__ import annotations

import re
from collections import deque
from functools import partial
from typing import Any

from tests.sim.conformance.steps import Do, Keys, Seen, Step
from tests.sim.redis import Client, Data, Dialect, Model, Refusal
from tests.sim.redis.sorted_set import SortedSet

_ID = re.compile(rb"<id (.+)>").fullmatch
_KINDS: dict[type, bytes] = {bytes: b"string", dict: b"hash", deque: b"list", SortedSet: b"zset"}


class ModelSide:
    """The model with named connections. `data`: what it has in its keys after the last step."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self.begin(0)

    def begin(self, now_us: int) -> None:
        """An empty server without clients, which knows no script."""
        self.model = Model(self._dialect)
        self.now_us = now_us
        self.clients: dict[str, Client] = {}
        self._numbers: dict[str, int] = {}
        self._heard: dict[str, bytes] = {}
        self.data = Data({}, {})

    def can_take(self, step: Step) -> bool:
        """Whether the step makes sense now, which it may not where earlier ones were left out."""
        refuses = self.model.refuses
        if step.do is Do.COMMAND:
            client = self.clients.get(step.who)
            return client is not None and not client.blocked_on
        if step.do is Do.REFUSE:
            # Who is blocked is sent away when a server becomes a replica.
            return step.refusal is not Refusal.READONLY or not any(each.blocked_on for each in self.clients.values())
        if step.do is Do.EXPIRE:
            # In the last millisecond of a key, Redis 8's round may take it, and need not.
            return refuses is None and self.now_us // 1000 not in self.data.ends_ms.values()
        if refuses is Refusal.BUSY or (refuses is not None and step.do is Do.FLUSH):
            return False
        return step.do is not Do.KILL or step.who in self.clients

    def take(self, step: Step) -> Seen:
        """Does the step."""
        reply = b""
        if step.do is Do.COMMAND:
            command = [self._with_number(word) for word in step.command]
            reply = self.model.execute(self.clients[step.who], command, self.now_us)
        elif step.do is Do.CONNECT:
            self._kill(step.who)
            client = self.clients[step.who] = self.model.connect(partial(self._hear, step.who))
            self._numbers[step.who] = client.number
        elif step.do is Do.KILL:
            self._kill(step.who)
        elif step.do is Do.CLOCK:
            self.now_us = step.now_us
            self.model.end_waits(self.now_us)
        elif step.do is Do.EXPIRE:
            self.model.expire(self.now_us)
        elif step.do is Do.FLUSH:
            self.model.flush_all(self.now_us)
        elif step.do is Do.FORGET_SCRIPTS:
            self.model.forgets_scripts()
        else:
            self.model.refuses = step.refusal
        heard, self._heard = self._heard, {}
        self.data = self.model.snapshot()
        return Seen(reply=reply, heard=heard, keys=self._keys())

    def _hear(self, who: str, told: bytes) -> None:
        self._heard[who] = self._heard.get(who, b"") + told

    def _kill(self, who: str) -> None:
        client = self.clients.pop(who, None)
        if client is not None:
            self.model.disconnect(client)

    def _with_number(self, word: bytes) -> bytes:
        found = _ID(word)
        return str(self._numbers.get(found[1].decode(), 10**9)).encode() if found else word

    def _keys(self) -> Keys:
        now_ms, ends_ms = self.now_us // 1000, self.data.ends_ms
        return Keys(
            len(self.data.values),
            {
                name: (_KINDS[value.__class__], ends_ms.get(name, -1), self._told(value))
                for name, value in self.data.values.items()
                if now_ms <= ends_ms.get(name, now_ms)
            },
        )

    def _told(self, value: Any) -> Any:
        if isinstance(value, deque):
            return list(value)
        if isinstance(value, SortedSet):
            return [each for score, member in value.order for each in (member, self._dialect.text_of(score))]
        return value
