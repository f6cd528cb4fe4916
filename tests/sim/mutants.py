"""Broken variants of the locks that live in the simulation: chaos' own, and those that only virtual time shows."""

from __future__ import annotations

from tests.chaos.mutants.edits import Lua, Python
from tests.chaos.mutants.locking import LOCKING
from tests.chaos.mutants.mutant import Mutant
from tests.chaos.mutants.unseen import UNSEEN

# What it breaks is the register of the program that holds a lease, in Postgres: no part of the locks.
ELSEWHERE = frozenset({"register-unfenced"})

_OVERLAP = ("holders_do_not_overlap", "overlaps_are_explained")
_IDLE = ("no_lock_lies_idle", "takeover_in_time")

_OWN = (
    Mutant(
        name="no-seen-fence",
        does="Gives tokens by what the server remembers, whatever the callers have seen.",
        caught_by=("fences_rise",),
        edits=(
            Lua(
                "prelude.lua",
                """
                -  return math.max(last_grant() + 1, now_us, seen_fence + 1)
                +  return math.max(last_grant() + 1, now_us)
                """,
            ),
            Lua(
                "acquire_free.lua",
                """
                -      local largest = seen_fence
                +      local largest = 0
                """,
            ),
        ),
    ),
    Mutant(
        name="no-lease-end-timer",
        does="Does not look when the holder's lease ends, nor watches the lock.",
        caught_by=_IDLE,
        edits=(
            Python(
                "locks.line:Line._refused",
                """
                -            if self.expires_in_s is not None and self.expires_in_s + TIMER_SLACK_S < wait_s:
                +            if False:
                """,
            ),
            Python(
                "locks.line:Line._refused",
                """
                -            if not self._watched:
                +            if False:
                """,
            ),
        ),
    ),
    Mutant(
        name="wake-head-keeps-dead",
        does="Takes whoever stands first for woken, whether or not anybody hears.",
        caught_by=_IDLE,
        edits=(
            Lua(
                "prelude.lua",
                """
                -    if call('PUBLISH', head, 'look ' .. wanted.lease_id) > 0 then return true end
                -    drop(head)
                +    call('PUBLISH', head, 'look ' .. wanted.lease_id)
                +    do return true end
                """,
            ),
        ),
    ),
    Mutant(
        name="new-head-untold",
        does="Does not tell whoever stands first from now on, because the one before has moved behind.",
        caught_by=_IDLE,
        edits=(
            Lua(
                "acquire.lua",
                """
                -if head == channel then
                +if false then
                """,
            ),
        ),
    ),
    Mutant(
        name="silent-head-unwatched",
        does="Looks no sooner where whoever stands before counts as dead.",
        caught_by=_IDLE,
        edits=(
            Lua(
                "acquire.lua",
                """
                -  if its and its.alive then look_within_ms = math.min(look_within_ms, its.alive_for_ms + 1) end
                +  if false then end
                """,
            ),
        ),
    ),
    Mutant(
        name="leaves-untold",
        does="Does not tell whoever stands first from now on that the one before has left, while the lock is held.",
        caught_by=_IDLE,
        edits=(
            Lua(
                "release.lua",
                """
                -    if call('EXISTS', lock) == 0 then offer() else wake_head() end
                +    if call('EXISTS', lock) == 0 then offer() end
                """,
            ),
        ),
    ),
    Mutant(
        name="claims-for-the-dead",
        does="Hands the lock over whether or not anybody hears of it; the claim has its end all the same.",
        caught_by=_IDLE,
        edits=(
            Lua(
                "prelude.lua",
                """
                -    if call('PUBLISH', head, message) > 0 then
                +    if call('PUBLISH', head, message) >= 0 then
                """,
            ),
        ),
    ),
    Mutant(
        name="late-grants-used",
        does="Uses a grant however late it hears of it.",
        caught_by=(*_OVERLAP, "told_of_loss_in_time"),
        edits=(
            Python(
                "locks.lease:is_over",
                """
                -    return after_s >= lease_ttl_s - margin_s(lease_ttl_s)
                +    return False
                """,
            ),
        ),
    ),
    Mutant(
        name="claim-counted-from-hearing",
        does="Counts a claim from when it hears of it.",
        caught_by=_OVERLAP,
        edits=(
            Python(
                "locks.line:Line.granted_by_message",
                """
                -        ends_at_s = self._stood_at_s + claim_s - margin_s(claim_s)
                +        ends_at_s = heard_at_s + claim_s - margin_s(claim_s)
                """,
            ),
        ),
    ),
    Mutant(
        name="old-messages-believed",
        does="Takes every message of a grant for one of a grant that it has not heard of.",
        caught_by=_OVERLAP,
        edits=(
            Python(
                "locks.line:Line.granted_by_message",
                """
                -        is_new = fencing_token > self._told_fence
                +        is_new = True
                """,
            ),
        ),
    ),
    Mutant(
        name="grant-by-id-alone",
        does="Knows a grant by its lease id, and not by its token.",
        caught_by=(*_OVERLAP, "leases_end_at_the_holder_first", "fences_rise"),
        edits=(
            Lua(
                "prelude.lua",
                """
                -  if fence ~= tonumber(grant_fence) or call('GET', lock) ~= granted_id then return nil end
                +  if call('GET', lock) ~= granted_id then return nil end
                """,
            ),
        ),
    ),
    Mutant(
        name="frozen-stay-in-line",
        does="Keeps a place in line for a process that shows no sign of life.",
        caught_by=_IDLE,
        edits=(
            Lua(
                "prelude.lua",
                """
                -    alive = tonumber(seen_ms) <= now_ms and now_ms < seen_ms + alive_ms,
                +    alive = true,
                """,
            ),
        ),
    ),
    Mutant(
        name="cancelled-not-given-back",
        does="Leaves the place in line, or the lock that comes, of a caller who gave up.",
        caught_by=(*_IDLE, "nothing_left_behind", "nobodys_lock_is_given_back"),
        edits=(
            Python(
                "locks.line:Line.leave",
                """
                -        self._give_back()
                         self._lines.forget(self)
                """,
            ),
        ),
    ),
    Mutant(
        name="late-answer-kept",
        does="Forgets the lock that an answer brings after everybody has left.",
        caught_by=(*_IDLE, "nobodys_lock_is_given_back"),
        edits=(
            Python(
                "locks.line:Line._answered",
                """
                -                self._lines.granted_to_nobody(self.name, lease_id, fencing_token, turns)
                +                pass
                """,
            ),
        ),
    ),
    Mutant(
        name="owed-forgotten",
        does="Gives back once, and no more where that did not come through.",
        caught_by=(*_IDLE, "nobodys_lock_is_given_back"),
        edits=(
            Python(
                "locks.returns:Returns._keep",
                """
                -        self._owed[owed.name, owed.lease_id] = owed
                """,
            ),
        ),
    ),
    Mutant(
        name="margin-none",
        does="Counts a lease to its last moment, as if no clock went wrong.",
        caught_by=(*_OVERLAP, "leases_end_at_the_holder_first"),
        edits=(
            Python(
                "locks.lease:margin_s",
                """
                -    return 0.01 * lease_ttl_s + 0.002
                +    return 0.0
                """,
            ),
        ),
    ),
    Mutant(
        name="extended-from-the-answer",
        does="Counts an extension from its answer, and not from when it was asked for.",
        caught_by=(*_OVERLAP, "leases_end_at_the_holder_first"),
        edits=(
            Python(
                "locks.renewal:extend",
                """
                     outcome = ExtendOutcome((await store.ask(lease.name, command)).decode())
                +    sent_at_s = store.clock.monotonic_s()
                """,
            ),
        ),
    ),
    Mutant(
        name="turns-after-lending",
        does="Goes on with the run of a lease that is being lent, whether or not the server has lent it by now.",
        caught_by=(*_OVERLAP, "leases_end_at_the_holder_first"),
        edits=(
            Python(
                "locks.line:Line.end_run",
                """
                -        if self._run is not None and self._run.lease is lease:
                +        if False:
                """,
            ),
        ),
    ),
    Mutant(
        name="timers-armed-late",
        does="Counts a timer from when it is armed, though the process may have stood still just before.",
        caught_by=("told_of_loss_in_time", *_IDLE),
        edits=(
            Python(
                "locks.suspension:call_when",
                """
                -    loop_s = loop.time()
                -    return loop.call_at(loop_s + max(0.0, due_s - now_s()), callback, *args)
                +    wait_s = max(0.0, due_s - now_s())
                +    return loop.call_later(wait_s, callback, *args)
                """,
            ),
        ),
    ),
    Mutant(
        name="late-adoption-used",
        does="Adopts a lease however late it hears that it has it.",
        caught_by=("told_of_loss_in_time",),
        edits=(
            Python(
                "locks.adopting:Adopting.adopt",
                """
                -        if lease.is_lost:  # the answer took so long
                +        if False:
                """,
            ),
        ),
    ),
    Mutant(
        name="extension-taken-for-nothing",
        does="Takes an extension of the holder's lease for a change that was none, and listens to no news for a while.",
        caught_by=_IDLE,
        edits=(
            Python(
                "locks.line:Line._watch",
                """
                -            is_changed = holder is None or holder != self._watched_holder or is_extended
                +            is_changed = holder is None or holder != self._watched_holder
                """,
            ),
        ),
    ),
    Mutant(
        name="own-turn-given-back",
        does="Takes a grant that is told once more for nobody's, once a later turn of it goes by an id of its own.",
        caught_by=(*_OVERLAP, "leases_end_at_the_holder_first"),
        edits=(
            Python(
                "locks.held:HeldLeases.known_as",
                """
                -        ids = () if lease is None else (lease.lease_id, lease.known_as, lease.granted_as)
                +        ids = () if lease is None else (lease.lease_id, lease.known_as)
                """,
            ),
        ),
    ),
    Mutant(
        name="unanswered-extension-kept",
        does="Leaves a lock to its lease whose extension was never answered: the server may have carried it out.",
        caught_by=(*_IDLE, "nobodys_lock_is_given_back"),
        edits=(
            Python(
                "locks.locker:Locker._lost",
                """
                -        if reason is LossReason.TAKEN or lease.may_outlast or lease.unanswered:
                +        if reason is LossReason.TAKEN or lease.may_outlast:
                """,
            ),
        ),
    ),
    Mutant(
        name="tracking-lost",
        does="Hears of no changes any more once the connection for messages was back before the other one.",
        caught_by=_IDLE,
        edits=(
            Python(
                "locks.node:Node._commands_up",
                """
                -            self._begin_to_track()
                +            pass
                """,
            ),
        ),
    ),
    Mutant(
        name="newest-first",
        does="Puts those who have waited longest last.",
        caught_by=("order_of_arrival",),
        edits=(
            Lua(
                "prelude.lua",
                """
                -  call('ZADD', queue, string.format('%.0f', now_us - wanted.age_us), waiter)
                +  call('ZADD', queue, string.format('%.0f', now_us + wanted.age_us), waiter)
                """,
            ),
        ),
    ),
    Mutant(
        name="holds-without-limit",
        does="Extends a lease for longer than its holder may hold it.",
        caught_by=("bodies_end_with_their_leases",),
        edits=(
            Python(
                "locks.lease:Lease.bound",
                """
                -        self.holds_until_s = from_s + max_hold_s
                +        self.holds_until_s = math.inf
                """,
            ),
        ),
    ),
    Mutant(
        name="body-not-cancelled",
        does="Tells whoever asks of a loss, and lets the body run on.",
        caught_by=("bodies_end_with_their_leases",),
        edits=(
            Python(
                "locks.hold:_Body._cancel",
                """
                -        self._task.cancel()
                +        pass
                """,
            ),
        ),
    ),
    Mutant(
        name="renewed-once",
        does="Asks for more time once a lease, and takes it that this was enough.",
        caught_by=("losses_have_a_cause",),
        edits=(
            Python(
                "locks.renewal:Renewal._renew",
                """
                -        if is_last:
                +        if True:
                """,
            ),
        ),
    ),
    Mutant(
        name="renewed-at-the-end",
        does="Asks for more time when so little is left that no answer can come in time.",
        caught_by=("losses_have_a_cause",),
        edits=(
            Python(
                "locks.renewal:Renewal._attend",
                """
                -        elif ahead_s < _renewal_due_s(lease):
                -            self._look_at(lease, _renewal_due_s(lease))
                +        elif ahead_s < lease.deadline_s - 2 * SLOT_S:
                +            self._look_at(lease, lease.deadline_s - 2 * SLOT_S)
                """,
            ),
        ),
    ),
    Mutant(
        name="patience-late",
        does="Lets everybody wait for 3 s longer than he would.",
        caught_by=("patience_is_kept",),
        edits=(
            Python(
                "locks.line:Line._count_patience",
                """
                -            waiter.timer = call_when(self._lines.now_s, waiter.ends_at_s, self._give_up, waiter)
                +            waiter.timer = call_when(self._lines.now_s, waiter.ends_at_s + 3.0, self._give_up, waiter)
                """,
            ),
        ),
    ),
    Mutant(
        name="patience-short",
        does="Tells whoever waits that the lock is busy when half of his time is over.",
        caught_by=("patience_is_kept",),
        edits=(
            Python(
                "locks.waiter:Waiter.__init__",
                """
                -        self.ends_at_s = None if wait_s is None else started_at_s + wait_s
                +        self.ends_at_s = None if wait_s is None else started_at_s + wait_s / 2
                """,
            ),
        ),
    ),
    Mutant(
        name="early-timers-believed",
        does="Takes it that the time of whoever waits is over as soon as its timer fires.",
        caught_by=("patience_is_kept",),
        edits=(
            Python(
                "locks.line:Line._give_up",
                """
                -        if waiter.ends_at_s is not None and self._lines.now_s() < waiter.ends_at_s:
                +        if False:
                """,
            ),
        ),
    ),
    Mutant(
        name="force-called-a-deletion",
        does="Tells a holder whose lease was ended by force that its key is gone.",
        caught_by=("losses_have_a_cause",),
        edits=(
            Python(
                "locks.locker:Locker._on_forced",
                """
                -            self._renewal.lose(lease, LossReason.FORCED)
                +            self._renewal.lose(lease, LossReason.DELETED)
                """,
            ),
        ),
    ),
    Mutant(
        name="force-by-id-alone",
        does="Takes force that ended an earlier grant under a lease's id for its own end.",
        caught_by=("losses_have_a_cause", *_IDLE),
        edits=(
            Python(
                "locks.locker:Locker._on_forced",
                """
                -        elif lease.fencing_token <= fencing_token:  # else it has the lock again, under the same id
                +        else:
                """,
            ),
        ),
    ),
    Mutant(
        name="lent-lost-in-an-outage",
        does="Takes a lease that it has lent for lost where the server does not answer.",
        caught_by=("losses_have_a_cause",),
        edits=(
            Python(
                "locks.lending:Lending._look",
                """
                -            self._look_in(kept, LOOK_AGAIN_S)
                +            self._ended(kept, "expired")
                """,
            ),
        ),
    ),
    Mutant(
        name="silence-called-busy",
        does="Tells whoever has heard nothing that another has the lock.",
        caught_by=("busy_is_true",),
        edits=(
            Python(
                "locks.line:Line._give_up",
                """
                -        if is_unheard:
                +        if False:
                """,
            ),
        ),
    ),
    Mutant(
        name="free-called-busy",
        does="Gives the lock only to those who would wait for it.",
        caught_by=("busy_is_true",),
        edits=(
            Lua(
                "acquire.lua",
                """
                -  if take then
                +  if take and age_us then
                """,
            ),
        ),
    ),
    Mutant(
        name="outages-waited-for",
        does="Waits for a connection for as long as for the lock.",
        caught_by=("outages_are_told",),
        edits=(
            Python(
                "locks.line:Line._store_is_down",
                """
                -        if left_s <= 0 or isinstance(error, LockStoreRefused):
                +        if isinstance(error, LockStoreRefused):
                """,
            ),
        ),
    ),
    Mutant(
        name="looks-without-pause",
        does="Asks again and again who has the lock.",
        caught_by=("little_is_asked",),
        edits=(
            Python(
                "locks.line:Line._look_in",
                """
                -        self._next_look = loop.call_later(max(0.0, wait_s), self._look_now, source)
                +        self._next_look = loop.call_later(0.002, self._look_now, source)
                """,
            ),
        ),
    ),
    Mutant(
        name="force-not-told",
        does="Ends a lease by force, and does not tell its holder.",
        caught_by=("told_of_loss_in_time",),
        edits=(
            Lua(
                "force.lua",
                """
                -  call('PUBLISH', channel, string.format('forced %s %s %.0f', holder, name, fence))
                """,
            ),
        ),
    ),
    Mutant(
        name="extension-shortens",
        does="Gives a lease its time again, though it has more.",
        caught_by=(*_OVERLAP, "leases_end_at_the_holder_first"),
        edits=(
            Lua(
                "prelude.lua",
                """
                -  if remaining_ms > tonumber(held_ms) and remaining_ms <= granted_ms + RUN_MS then
                +  if false then
                """,
            ),
        ),
    ),
    Mutant(
        name="inspect-drops-head",
        does="Takes whoever stands first out of the line as it looks at it.",
        caught_by=("order_of_arrival", *_IDLE),
        edits=(
            Lua(
                "inspect.lua",
                """
                   local wanted = heard(order[i])
                +  if i == 1 then drop(order[1]) end
                """,
            ),
        ),
    ),
)

SIM_MUTANTS = {mutant.name: mutant for mutant in (*LOCKING, *UNSEEN, *_OWN) if mutant.name not in ELSEWHERE}

# The scenes in which some of them show best, as the points of chaos' mutants.
SHOWS_IN: dict[str, tuple[str, ...]] = {
    "silence-called-busy": ("silence",),
    "force-by-id-alone": ("force",),
    "lent-lost-in-an-outage": ("lend-on",),
    "old-messages-believed": ("impatient",),
    "turns-after-lending": ("hang-up",),
    "grant-by-id-alone": ("adopt-nobodys",),
    "late-adoption-used": ("adopt-late",),
    "timers-armed-late": ("lapse",),
    "early-timers-believed": ("give-up",),
    "owed-forgotten": ("long",),
    "late-answer-kept": ("scripts-long",),
    "cancelled-not-given-back": ("long",),
    "wake-head-keeps-dead": ("forget",),
    "claims-for-the-dead": ("dead-head",),
    "frozen-stay-in-line": ("deaf-head",),
    "extended-from-the-answer": ("extend-once",),
    "unanswered-extension-kept": ("extend-late",),
    "extension-taken-for-nothing": ("beside",),
    "new-head-untold": ("beside-impatient",),
    "leaves-untold": ("beside-impatient",),
    "silent-head-unwatched": ("beside-silent",),
    "tracking-lost": ("beside",),
    "own-turn-given-back": ("scripts",),
    "extension-shortens": ("extend-by-more",),
    "inspect-drops-head": ("inspect",),
}
