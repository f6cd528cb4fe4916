"""Mutants of the lock: what is granted, kept, given back, and found out to be lost."""

from __future__ import annotations

from tests.chaos.mutants.edits import Lua, Python
from tests.chaos.mutants.mutant import Mutant

_OVERLAP = ("holders_do_not_overlap", "overlaps_are_explained")
_STUCK = ("nothing_left_behind", "alive_after_healing", "takeover_in_time")

LOCKING = (
    Mutant(
        name="foreign-release",
        does="Frees the lock without looking whose it is.",
        caught_by=("no_foreign_release", *_OVERLAP),
        points=(("releasing", "freeze"),),
        hints=("hot", "coupons", "leases"),
        edits=(
            Lua(
                "release_alone.lua",
                """
                -  if holders[i] == ARGV[i] and (nobody_waits or call('EXISTS', KEYS[2 * count + i]) == 0) then
                +  if holders[i] and (nobody_waits or call('EXISTS', KEYS[2 * count + i]) == 0) then
                """,
            ),
            Lua(
                "release.lua",
                """
                -local is_granted = held_grant(lease_id, grant_fence, fencing_token)
                -if is_granted or grant_fence == '0' and call('GET', lock) == lease_id then
                +if call('GET', lock) then
                """,
            ),
            Lua("finish.lua", "-if not held_grant(lease_id, grant_fence, fencing_token) then return 0 end"),
            Lua(
                "lent_release.lua",
                """
                -if holder ~= lease_id then
                +if not holder then
                """,
            ),
        ),
    ),
    Mutant(
        name="deaf-renewal",
        does="Takes every renewal for granted, whatever Redis says, or does not say.",
        caught_by=_OVERLAP,
        points=(("decided", "freeze"), ("acquired", "flush")),
        run_s=6.0,
        clients=8,
        hints=("leases", "hot"),
        edits=(
            Python(
                "locks.renewal:extend",
                """
                -    outcome = ExtendOutcome((await store.ask(lease.name, command)).decode())
                +    try:
                +        await store.ask(lease.name, command)
                +    except LockStoreDown:
                +        sent_at_s = store.clock.monotonic_s()
                +    outcome = ExtendOutcome.EXTENDED
                """,
            ),
            Python(
                "locks.lending:Lending.extend",
                """
                -            raise self.over(name, lease_id, reply.decode())
                +            known = self._kept.get((name, lease_id))
                +            reply = [known.fencing_token if known else 0, 0, 0, b"", 0]
                """,
            ),
        ),
    ),
    Mutant(
        name="lock-cut-short",
        does="Gives the lock half the time that its holder believes to have.",
        caught_by=_OVERLAP,
        points=(("acquired", "delay"), ("rows_locked", "delay"), ("decided", "delay")),
        hints=("hot",),
        edits=(
            Lua(
                "acquire_free.lua",
                """
                -    if call('SET', lock, lease_id, 'NX', 'PX', lease_ms) then
                +    if call('SET', lock, lease_id, 'NX', 'PX', math.floor(lease_ms / 2)) then
                """,
            ),
        ),
    ),
    Mutant(
        name="fence-from-counter",
        does="Counts fencing tokens from what the lock's own key remembers, and so from nothing once Redis is empty.",
        caught_by=("fences_rise",),
        points=(("acquired", "flush"), ("decided", "flush"), ("acquired", "redis_restart")),
        hints=("hot", "leases"),
        edits=(
            Lua(
                "prelude.lua",
                """
                -  return math.max(last_grant() + 1, now_us, seen_fence + 1)
                +  return last_grant() + 1
                """,
            ),
            Lua(
                "acquire_free.lua",
                """
                -      local largest = seen_fence
                +      local largest = 0
                """,
            ),
            Lua(
                "acquire_free.lua",
                """
                -      fences[i] = now_us
                -      if largest >= now_us then
                +      if largest >= 0 then
                """,
            ),
        ),
    ),
    Mutant(
        name="acquire-then-expire",
        does="Takes the lock with one command, and gives it its end with the next.",
        caught_by=_STUCK,
        points=(("acquired", "die"),),
        run_s=4.0,
        hints=("hot", "wide"),
        edits=(
            Lua(
                "acquire_free.lua",
                """
                -    if call('SET', lock, lease_id, 'NX', 'PX', lease_ms) then
                +    if call('SET', lock, lease_id, 'NX') then
                """,
            ),
            Python(
                "locks.acquiring:Acquiring._begin_at_once",
                """
                -        return self._begin(lease, WakeSource.NONE)
                +        self._begin(lease, WakeSource.NONE)
                +        keys, lease_ms = packed_keys(name), milliseconds(lease_ttl_s)
                +        expire = self._store.scripts.extend(
                +            keys, lease_id, grant_fence=fencing_token, lease_ms=lease_ms, fencing_token=fencing_token
                +        )
                +        self._store.node_of(name).ask(expire).add_done_callback(lambda reply: reply.exception())
                +        return lease
                """,
            ),
        ),
    ),
    Mutant(
        name="no-takeover",
        does="Sleeps through the end of a dead holder's lease, to the end of its own patience.",
        caught_by=("takeover_in_time",),
        points=(("acquired", "die"), ("rows_locked", "die"), ("decided", "die")),
        targets=(1,),
        run_s=4.0,
        clients=10,
        hints=("hot",),
        edits=(
            Python(
                "locks.line:Line._refused",
                """
                -        wait_s = look_within_ms / 1000
                -        if place != 0 or remaining_ms != -2:
                +        wait_s = 10.0
                +        if True:
                             source = WakeSource.HEARTBEAT
                -        if place == 0:
                +        if place < 0:
                """,
            ),
        ),
    ),
    Mutant(
        name="acquire-not-idempotent",
        does="Does not know its own lock again when the answer to its acquire was lost, and queues behind itself.",
        caught_by=("no_lock_lies_idle",),
        points=(("releasing", "lose_redis_reply"), ("released", "lose_redis_reply")),
        run_s=4.0,
        clients=10,
        hints=("wide",),
        edits=(
            Lua(
                "acquire.lua",
                """
                -if holder == lease_id then
                +if false then
                """,
            ),
        ),
    ),
    Mutant(
        name="grant-without-expiry",
        does="Lets what is remembered of a grant stand for ever.",
        caught_by=("nothing_left_behind",),
        hints=("wide",),
        edits=(
            Lua(
                "acquire_free.lua",
                """
                -      local last = call('SET', grant, written_now .. tail, 'PX', kept_ms, 'GET')
                +      local last = call('SET', grant, written_now .. tail, 'GET')
                """,
            ),
        ),
    ),
    Mutant(
        name="register-unfenced",
        does="The program that holds a lease writes whatever came first, and not what the larger token says.",
        caught_by=("stale_writes_refused",),
        hints=("leases",),
        register_unfenced=True,
    ),
)
