-- Takes the lock when it is free and nobody live stands before; else queues. Idempotent for its own id, and its heartbeat.
-- Returns the fencing token when held now, {fencing token, turns} when held for a run of turns, else {holder's remaining ms
-- (-1: no expiry, -2: nobody holds it), place in the queue (0: next, -1: not queued), look again within ms, 1 when the
-- holder is a python-redis-lock program, a token that whatever is granted from now on exceeds}.
-- seen_fence: the largest that the caller's process has seen. age_us: for how long its first waiter has been waiting,
-- waiter_count: how many wait, later: as for stand_in_line, stood: 1 where its process has stood in this line before; none
-- of them is there where nobody wants to wait.
local lease_id, lease_ms, who, seen_fence = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local age_us, waiter_count, later, stood = ARGV[5], ARGV[6], ARGV[7], ARGV[8]

local holder = call('GET', lock)
local last_fence, last_lease_ms, last_lease_id, last_who, left = last_grant()
if holder == lease_id then
  if last_lease_id == lease_id then
    give_again(last_fence, lease_id, lease_ms, with_run(lease_ms, left), last_who, left)
    return left > 0 and {last_fence - left, left + 1} or last_fence
  end
  local fence = next_fence(seen_fence)
  give(fence, lease_id, lease_ms, lease_ms, who)
  return fence
end

local channel = string.match(who, '^[^\t]+')
local head, _, head_us = live_head()
-- First in line by the place that it has, or by its age: the time on the way tells that a little differently each time, and
-- two who came together must not wait for each other.
local function is_first()
  return head and age_us and (head == channel or now_us - age_us <= head_us)
end

-- Who has stood in line and finds nothing of it: the server has lost its data. Others that have waited longer may be on their
-- way back, so the lock is nobody's for a moment. Returns until when.
local function return_until()
  if stood == '1' and call('EXISTS', queue, waiters, grant) == 0 then
    call('HSET', waiters, '.return_until', string.format('%.0f', now_ms + GRACE_MS))
  end
  return still_until('.return_until', GRACE_MS)
end

local look_within_ms = math.floor(ALIVE_MS / 3)
local free_at_ms = holder and 0 or return_until()
if not holder and free_at_ms == 0 then
  if head and not is_first() and state('.grace_until') == 0 then
    -- The head is told that the lock is free. It has a moment to come for it; then anybody may, so that it never lies idle.
    offer()
    head, _, head_us = live_head() -- those before that are gone are not there any more
  end
  local take = not head
  if is_first() then
    local yield_until = still_until('.yield_until', YIELD_MS)
    take = yield_until == 0 or call('EXISTS', signal) == 1
    if not take then look_within_ms = yield_until - now_ms + 1 end
  elseif head then
    local grace_until = still_until('.grace_until', GRACE_MS)
    take = grace_until == 0
    if not take then look_within_ms = math.min(look_within_ms, grace_until - now_ms + 1) end
  end
  if take then
    local fence = next_fence(seen_fence)
    give(fence, lease_id, lease_ms, lease_ms, who)
    if age_us then drop(channel) end
    call('HDEL', waiters, '.grace_until', '.yield_until', '.handoffs')
    return fence
  end
end

local remaining_ms = call('PTTL', lock)
local by_sync_program = holder and holder ~= last_lease_id
if holder then
  -- A lease cannot have more time left than it was given: the clock was set back.
  if not by_sync_program and remaining_ms > last_lease_ms + RUN_MS then
    remaining_ms = last_lease_ms + RUN_MS
    call('PEXPIRE', lock, remaining_ms)
  end
  -- Grace and yield are for a free lock; a python-redis-lock program, which took it meanwhile, knows nothing of them.
  if head then call('HDEL', waiters, '.grace_until', '.yield_until') end
end
local told_fence = math.max(last_fence, now_us)
if not age_us then return {remaining_ms, -1, 0, by_sync_program and 1 or 0, told_fence} end

stand_in_line(channel, {
  age_us = age_us, later = later, waiter_count = waiter_count, lease_ms = lease_ms, lease_id = lease_id, who = who,
})
if head == channel then
  -- Our first waiter may have left, or took a little less time to be heard. Whoever is first now must know, since only the
  -- first watches the lock; who does not hear is gone.
  local first, its = live_head()
  while first ~= channel and call('PUBLISH', first, 'look ' .. its.lease_id) == 0 do
    drop(first)
    first, its = live_head()
  end
end
local place = call('ZRANK', queue, channel)
if place == 0 then
  if by_sync_program then count_sync_turn(holder, remaining_ms) end
  if free_at_ms > 0 then look_within_ms = math.min(look_within_ms, free_at_ms - now_ms + 1) end
else
  -- Whoever stands before us may be given the lock now and die: we look once before its first lease can have run out; or it
  -- may be dead: we look as soon as it does not count as alive any more.
  local before = call('ZRANGE', queue, place - 1, place - 1)[1]
  local its = heard(before)
  if its then look_within_ms = math.min(look_within_ms, tonumber(its.lease_ms)) end
  if its and its.alive then look_within_ms = math.min(look_within_ms, its.alive_for_ms + 1) end
  -- The first in line looks when the holder's lease ends. It may have died with the holder, and others before us too: each
  -- looks a little later than the one before it, and whoever looks drops all that are gone.
  local free_in_ms = free_at_ms > 0 and free_at_ms - now_ms or remaining_ms
  if free_in_ms >= 0 then look_within_ms = math.min(look_within_ms, free_in_ms + math.min(15 + 5 * place, 40)) end
end
return {remaining_ms, place, look_within_ms, by_sync_program and 1 or 0, told_fence}
