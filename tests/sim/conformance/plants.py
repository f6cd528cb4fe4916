"""Wrong models: each differs from the true one in one thing that a comparison has to find."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence

import pytest

from tests.sim.redis import Client, Dialect, Model, blocking, commands
from tests.sim.redis.blocking import Blocking
from tests.sim.redis.keyspace import Keyspace, Value
from tests.sim.redis.resp import ErrorReply
from tests.sim.redis.scripts import Scripts
from tests.sim.redis.sorted_set import SortedSet
from tests.sim.redis.tracking import Tracking

Plant = Callable[[pytest.MonkeyPatch], None]


def publish_counts_one_more(patch: pytest.MonkeyPatch) -> None:
    true_tell = Model._tell
    patch.setattr(Model, "_tell", lambda self, channel, text: true_tell(self, channel, text) + 1)


def keys_live_one_ms_longer(patch: pytest.MonkeyPatch) -> None:
    _shift_ends(patch, 1)


def keys_live_one_ms_less(patch: pytest.MonkeyPatch) -> None:
    _shift_ends(patch, -1)


def _shift_ends(patch: pytest.MonkeyPatch, shift_ms: int) -> None:
    true_get = Keyspace.get

    def get(self: Keyspace, key: bytes) -> Value | None:
        self.now_ms -= shift_ms
        try:
            return true_get(self, key)
        finally:
            self.now_ms += shift_ms

    patch.setattr(Keyspace, "get", get)


def own_changes_are_told_at_once(patch: pytest.MonkeyPatch) -> None:
    true_changed = Tracking.changed

    def changed(self: Tracking, key: bytes) -> None:
        current, self.current = self.current, None
        true_changed(self, key)
        self.current = current

    patch.setattr(Tracking, "changed", changed)


def a_watch_lasts(patch: pytest.MonkeyPatch) -> None:
    true_changed = Tracking.changed

    def changed(self: Tracking, key: bytes) -> None:
        watching = self._watched.get(key)
        true_changed(self, key)
        if watching:
            self._watched[key] = watching

    patch.setattr(Tracking, "changed", changed)


def an_expiry_is_not_told(patch: pytest.MonkeyPatch) -> None:
    true_remove = Keyspace.remove

    def remove(self: Keyspace, key: bytes, why: str) -> None:
        changed = self.changed
        if why == "expired":
            self.changed = lambda key: None
        true_remove(self, key, why)
        self.changed = changed

    patch.setattr(Keyspace, "remove", remove)


def messages_are_told_at_the_end(patch: pytest.MonkeyPatch) -> None:
    true_tell, true_execute = Model._tell, Model.execute
    late: list[tuple[Model, bytes, bytes]] = []

    def tell(self: Model, channel: bytes, text: bytes) -> int:
        late.append((self, channel, text))
        return len(self._subscribers.get(channel, ()))

    def execute(self: Model, client: Client, command: list[bytes], now_us: int) -> bytes:
        reply = true_execute(self, client, command, now_us)
        for each in late:
            true_tell(*each)
        late.clear()
        return reply

    patch.setattr(Model, "_tell", tell)
    patch.setattr(Model, "execute", execute)


def the_last_to_wait_is_the_first(patch: pytest.MonkeyPatch) -> None:
    true_blpop = Blocking.blpop

    def blpop(self: Blocking, client: Client, command: Sequence[bytes]) -> bytes:
        reply = true_blpop(self, client, command)
        for key in client.blocked_on:
            self._waiting[key] = {client.number: client, **self._waiting[key]}
        return reply

    patch.setattr(Blocking, "blpop", blpop)


def waits_end_one_ms_early(patch: pytest.MonkeyPatch) -> None:
    true_wait_ms_of = blocking.wait_ms_of
    patch.setattr(blocking, "wait_ms_of", lambda timeout: max(true_wait_ms_of(timeout) - 1, 0))


def ties_stand_by_arrival(patch: pytest.MonkeyPatch) -> None:
    def put(self: SortedSet, member: bytes, score: float) -> None:
        self.order = [pair for pair in self.order if pair[1] != member]
        self.scores[member] = score
        insort(self.order, (score, member), key=lambda pair: pair[0])

    patch.setattr(SortedSet, "put", put)


def scores_lose_digits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dialect, "text_of", lambda self, value: b"%.15g" % value)


def a_string_keeps_its_end(patch: pytest.MonkeyPatch) -> None:
    true_put = Keyspace.put

    def put(self: Keyspace, key: bytes, value: bytes, end_ms: int | None) -> None:
        true_put(self, key, value, self.ends_ms.get(key) if end_ms is None else end_ms)

    patch.setattr(Keyspace, "put", put)


def an_empty_hash_stays(patch: pytest.MonkeyPatch) -> None:
    def hdel(keys: Keyspace, command: Sequence[bytes]) -> int:
        fields = keys.hash(command[1])
        return 0 if fields is None else sum(fields.pop(field, None) is not None for field in command[2:])

    patch.setitem(commands.COMMANDS, b"HDEL", hdel)


def a_failed_script_is_undone(patch: pytest.MonkeyPatch) -> None:
    true_evalsha = Scripts.evalsha

    def evalsha(self: Scripts, client: Client, command: Sequence[bytes]) -> bytes:
        before = self._keys.snapshot()
        try:
            return true_evalsha(self, client, command)
        except ErrorReply:
            self._keys.replace(before, "undone")
            raise

    patch.setattr(Scripts, "evalsha", evalsha)


def scripts_outlive_a_flush(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Model, "forgets_scripts", lambda self: None)


PLANTS: dict[str, Plant] = {
    plant.__name__.replace("_", "-"): plant
    for plant in (
        publish_counts_one_more,
        keys_live_one_ms_longer,
        keys_live_one_ms_less,
        own_changes_are_told_at_once,
        a_watch_lasts,
        an_expiry_is_not_told,
        messages_are_told_at_the_end,
        the_last_to_wait_is_the_first,
        waits_end_one_ms_early,
        ties_stand_by_arrival,
        scores_lose_digits,
        a_string_keeps_its_end,
        an_empty_hash_stays,
        a_failed_script_is_undone,
        scripts_outlive_a_flush,
    )
}
