"""Both sides take the same steps, and the first difference is made short."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hiredis

from tests.sim.conformance.modelled import ModelSide
from tests.sim.conformance.real import RealSide
from tests.sim.conformance.steps import Do, Keys, Seen, Step

MOST_REPLAYS = 400


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs after the last of these steps."""

    what: str
    begin_us: int
    steps: Sequence[Step]

    def __str__(self) -> str:
        return "\n".join([self.what, "after", *[f"  {step}" for step in self.steps]])


class Pair:
    """A real server and the model of it."""

    def __init__(self, real: RealSide, model: ModelSide) -> None:
        self.real, self.model = real, model
        self.message_count = 0

    def begin(self, now_us: int) -> None:
        """Both are empty."""
        self.real.begin(now_us)
        self.model.begin(now_us)

    def take(self, step: Step) -> tuple[bytes, str | None]:
        """The model's reply, and what differs, if anything does."""
        if not self.model.can_take(step):
            return b"", None
        real, modelled = self.real.take(step), self.model.take(step)
        self.message_count += sum(raw.count(b"$7\r\nmessage\r\n") for raw in real.heard.values())
        return modelled.reply, difference(step, real, modelled)

    def first_difference(self, begin_us: int, steps: Sequence[Step]) -> Difference | None:
        """Takes the steps from the beginning."""
        self.begin(begin_us)
        for at, step in enumerate(steps):
            _, what = self.take(step)
            if what is not None:
                return Difference(what, begin_us, steps[: at + 1])
        return None

    def shortened(self, found: Difference) -> Difference:
        """Leaves out as many steps as it can while there is still a difference."""
        replays, size = 0, len(found.steps) // 2
        while size >= 1 and replays < MOST_REPLAYS:
            at = 0
            while at < len(found.steps) - 1 and replays < MOST_REPLAYS:
                steps = [*found.steps[:at], *found.steps[at + size :]]
                replays += 1
                shorter = self.first_difference(found.begin_us, steps)
                if shorter is None:
                    at += size
                else:
                    found = shorter
            size //= 2
        return found


def difference(step: Step, real: Seen, modelled: Seen) -> str | None:
    """What is not the same, in words."""
    if not _same_reply(step, real.reply, modelled.reply):
        return f"reply: real {real.reply!r}, model {modelled.reply!r}"
    for who in sorted(real.heard.keys() | modelled.heard.keys()):
        real_raw, model_raw = real.heard.get(who, b""), modelled.heard.get(who, b"")
        if real_raw != model_raw and not (step.has_no_order and _sorted(real_raw) == _sorted(model_raw)):
            return f"heard by {who}: real {real_raw!r}, model {model_raw!r}"
    if real.keys is not None and modelled.keys is not None and real.keys != modelled.keys:
        return _difference_of_keys(real.keys, modelled.keys)
    return None


def _same_reply(step: Step, real: bytes, modelled: bytes) -> bool:
    if real == modelled:
        return True
    if step.do is not Do.COMMAND:
        return False
    name = step.command[0]
    if name == b"CLIENT" and step.command[1] == b"ID":
        return real[:1] == modelled[:1]
    if name == b"HGETALL":  # a large hash has no order
        return _sorted(real) == _sorted(modelled)
    return name == b"LRANGE" and _plain(_parsed(real)[0]) == _plain(_parsed(modelled)[0])


def _difference_of_keys(real: Keys, modelled: Keys) -> str | None:
    for name in sorted(real.found.keys() | modelled.found.keys()):
        in_real, in_model = real.found.get(name), modelled.found.get(name)
        if in_real != in_model and _plain(in_real) != _plain(in_model):
            return f"key {name!r}: real {in_real}, model {in_model}"
    if real.count != modelled.count:
        return f"keys, those whose end has passed included: real {real.count}, model {modelled.count}"
    return None


def _plain(value: Any) -> Any:
    """The value where JSON, whose fields have no order, is read."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes) and value.startswith(b'{"'):
        return json.loads(value)
    return value


def _sorted(raw: bytes) -> list[str]:
    return sorted(map(repr, _flat(_parsed(raw))))


def _flat(values: list[Any]) -> list[Any]:
    return values[0] if len(values) == 1 and isinstance(values[0], list) else values


def _parsed(raw: bytes) -> list[Any]:
    reader = hiredis.Reader()
    reader.feed(raw)
    found: list[Any] = []
    while (reply := reader.gets()) is not False:
        found.append(reply)
    return found
