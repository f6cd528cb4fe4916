"""Random commands as a Locker's process sends them, each built by locks.store.Scripts."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

from locks.contention_store import (
    DAY_MS,
    GONE_MS,
    INCIDENTS,
    INDEX,
    MOST_INCIDENTS,
    PREFIX,
    Additions,
    cell_key,
    hot_key,
    list_key,
    picture_key,
    slot_key,
)
from locks.keys import packed_keys
from locks.node import Node
from locks.store import QueueLimits, Scripts
from tests.sim.conformance.drawing import Draw, Process, unpacked

SCRIPTS = Scripts(QueueLimits(), holder="instance-1\thost\t17")
Build = Callable[[Draw, Any], str]


def acquire_free(draw: Draw, process: Process) -> str:
    names = [draw.name() for _ in range(draw.rng.choice((1, 1, 1, 2, 4)))]
    items = [
        SCRIPTS.acquire_item(_node(process), name, draw.new_id(), lease_ms=draw.lease_ms(), for_whom=draw.for_whom())
        for name in names
    ]
    return SCRIPTS.acquire_free(items, seen_fence=draw.seen_fence(names[0]))


def release_alone(draw: Draw, process: Process) -> str:
    names = [draw.held_name() for _ in range(draw.rng.choice((1, 1, 1, 2, 4)))]
    return SCRIPTS.release_alone([(name, draw.some_id(name)) for name in names])


def acquire_or_queue(draw: Draw, process: Process) -> str:
    name = draw.name()
    return SCRIPTS.acquire_or_queue(
        _node(process),
        packed_keys(name),
        draw.new_id() if draw.rng.random() < 0.6 else draw.rng.choice((draw.some_id(name), draw.waiting_id(name))),
        lease_ms=draw.lease_ms(),
        seen_fence=draw.seen_fence(name),
        age_us=draw.age_us(),
        later=draw.later(),
        waiter_count=draw.rng.randint(1, 6),
        stood=draw.rng.random() < 0.3,
        for_whom=draw.for_whom(),
    )


def acquire_now(draw: Draw, process: Process) -> str:
    name = draw.name()
    return SCRIPTS.acquire_now(
        _node(process),
        packed_keys(name),
        draw.new_id() if draw.rng.random() < 0.8 else draw.some_id(name),
        lease_ms=draw.lease_ms(),
        seen_fence=draw.seen_fence(name),
        for_whom=draw.for_whom(),
    )


def release(draw: Draw, process: Process) -> str:
    name = draw.held_name()
    grant = draw.grant(name)
    token = grant.fence - draw.rng.randint(0, grant.left)
    return SCRIPTS.release(
        _node(process), packed_keys(name), grant.lease_id, grant_fence=grant.fence, fencing_token=token
    )


def give_back(draw: Draw, process: Process) -> str:
    name = draw.name()
    lease_id = draw.waiting_id(name) if draw.rng.random() < 0.5 else draw.some_id(name)
    return SCRIPTS.give_back(_node(process), packed_keys(name), lease_id)


def finish(draw: Draw, process: Process) -> str:
    name = draw.held_name()
    grant = draw.grant(name)
    token = grant.fence - draw.rng.randint(0, grant.left)
    return SCRIPTS.finish(packed_keys(name), grant.lease_id, grant_fence=grant.fence, fencing_token=token)


def release_in_line(draw: Draw, process: Process) -> str:
    name = draw.held_name()
    grant = draw.grant(name)
    return SCRIPTS.release_in_line(
        _node(process),
        packed_keys(name),
        grant.lease_id,
        grant_fence=grant.fence,
        fencing_token=grant.fence - draw.rng.randint(0, grant.left),
        next_lease_id=draw.new_id(),
        lease_ms=draw.lease_ms(),
        age_us=draw.age_us(),
        later=draw.later(),
        waiter_count=draw.rng.randint(1, 6),
        for_whom=draw.for_whom(),
    )


def turn(draw: Draw, process: Process) -> str:
    name = draw.held_name()
    grant = draw.grant(name)
    return SCRIPTS.turn(
        _node(process),
        packed_keys(name),
        grant.lease_id,
        next_lease_id=draw.new_id() if draw.rng.random() < 0.8 else grant.lease_id,
        lease_ms=draw.lease_ms(),
        last_fence=grant.fence,
        turns_left=max(0, grant.left - draw.rng.randint(0, 2)),
        for_whom=draw.for_whom(),
    )


def extend(draw: Draw, process: Process) -> str:
    name = draw.held_name()
    grant = draw.grant(name)
    return SCRIPTS.extend(
        packed_keys(name),
        grant.lease_id,
        grant_fence=grant.fence,
        lease_ms=draw.lease_ms(),
        fencing_token=grant.fence - draw.rng.randint(0, grant.left),
    )


def adopt(draw: Draw, process: Process) -> str:
    name = draw.held_name()
    grant = draw.grant(name)
    return SCRIPTS.adopt(
        _node(process),
        packed_keys(name),
        grant.lease_id,
        new_id=draw.new_id(),
        fencing_token=grant.fence - draw.rng.randint(0, grant.left),
        grant_fence=grant.fence,
        lease_ms=draw.lease_ms(),
        for_whom=draw.for_whom(),
    )


def lent_extend(draw: Draw, process: Process) -> str:
    name = draw.held_name()
    return SCRIPTS.lent_extend(_node(process), name, draw.some_id(name), lease_ms=draw.lease_ms())


def lent_ask(draw: Draw, process: Process) -> str:
    name = draw.held_name()
    grant = draw.grant(name)
    lends = draw.rng.random() < 0.6
    return SCRIPTS.lent_ask(
        _node(process),
        name,
        draw.new_id() if draw.rng.random() < 0.6 else draw.some_id(name),
        lease_ms=draw.lease_ms(),
        for_whom=draw.for_whom(),
        own_id=grant.lease_id if lends else "",
        own_fence=grant.fence if lends else 0,
        own_token=grant.fence if lends else 0,
    )


def lent_release(draw: Draw, process: Process) -> str:
    name = draw.held_name()
    call_id = draw.rng.choice(("call-1", "call-2"))
    age_ms = draw.rng.choice((0, 0, 50, 1500))
    return SCRIPTS.lent_release(_node(process), name, draw.some_id(name), call_id=call_id, age_ms=age_ms)


def lent_look(draw: Draw, process: Process) -> str:
    name = draw.held_name()
    return SCRIPTS.lent_look(_node(process), packed_keys(name), draw.some_id(name))


def force(draw: Draw, process: Process) -> str:
    name = draw.held_name()
    grant = draw.grant(name)
    return SCRIPTS.force(
        packed_keys(name),
        fencing_token=draw.rng.choice((grant.fence - grant.left, grant.fence - grant.left, 0)),
        call_id=draw.rng.choice(("call-1", "call-2", "call-3")),
    )


def inspect(draw: Draw, process: Process) -> str:
    return SCRIPTS.inspect(packed_keys(draw.name()))


def publish(draw: Draw, process: Process) -> str:
    at_s = draw.now_us // 1_000_000
    additions = Additions()
    for _ in range(draw.rng.randint(0, 4)):
        name = draw.name()
        additions.add("HINCRBY", slot_key(at_s, 5), f"w:{draw.rng.randint(0, 3)}", draw.rng.randint(1, 4))
        additions.add("ZINCRBY", hot_key(at_s), round(draw.rng.uniform(0, 900), 3), name)
        additions.add("ZINCRBY", cell_key(at_s), 1, f"w{draw.rng.randint(0, 3)} {name}")
    if additions.keys:
        additions.add("PEXPIRE", slot_key(at_s, 5), 60_000)
        additions.add("ZREMRANGEBYRANK", cell_key(at_s), 0, -3)
    if draw.rng.random() < 0.3:
        additions.add("LPUSH", INCIDENTS, json.dumps({"at": at_s, "kind": "lost"}))
        additions.add("LTRIM", INCIDENTS, 0, 3)
    token = process.name
    keys = [INDEX, picture_key(token), list_key(token), f"{PREFIX}applied:{token}", INCIDENTS, *additions.keys]
    who = f"{token}\tinstance/{token}\thost\t{17}"
    listed = draw.rng.choice(("", '["a"]'))
    number = str(draw.rng.randint(0, 3))
    most = draw.rng.choice((MOST_INCIDENTS, 5))
    return SCRIPTS.publish(keys, [who, number, '{"picture": 1}', listed, additions.text, GONE_MS, DAY_MS, most])


def _node(process: Process) -> Node:
    return cast(Node, process)  # of a node, the scripts want the channel


WEIGHTS: dict[Build, int] = {
    acquire_free: 10,
    release_alone: 7,
    acquire_or_queue: 22,
    acquire_now: 4,
    release: 8,
    give_back: 4,
    finish: 2,
    release_in_line: 7,
    turn: 5,
    extend: 4,
    adopt: 3,
    lent_extend: 3,
    lent_ask: 5,
    lent_release: 4,
    lent_look: 2,
    force: 2,
    inspect: 3,
    publish: 3,
}


def drawn(draw: Draw, process: Process) -> tuple[bytes, ...]:
    """One of them."""
    build = draw.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    return unpacked(build(draw, process))


def load_for(command: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """What loads the script of one of these commands."""
    return unpacked(SCRIPTS.load_for(f"$7\r\nEVALSHA\r\n$40\r\n{command[1].decode()}\r\n"))
