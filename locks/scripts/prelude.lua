-- Shared by every script: the server's clock, the grant with its fencing token, and the queue with its dead dropped.
-- Times in ms are the server's; the constants in capitals stand before this file and come from QueueLimits.
local lock, queue, waiters, grant, signal = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local call = redis.call
local clock = call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now_ms = math.floor(now_us / 1000)

-- The last grant: 'seconds microseconds' of its fence, which is the time it was made unless the clock was set back, and how
-- many smaller tokens of its run are still to be used before it; then tab-separated lease in ms, lease id, and who:
-- channel, instance, host, pid and for whom. Returns fence, lease in ms, lease id, who, turns left.
local function last_grant()
  local seconds, microseconds, left, lease_ms, lease_id, who =
    string.match(call('GET', grant) or '0 0', '^(%d+) (%d+) ?(%d*)\t?(%d*)\t?([^\t]*)\t?(.*)$')
  return seconds * 1000000 + microseconds, tonumber(lease_ms), lease_id, who, tonumber(left) or 0
end

-- The grant whose last turn has this token, where the lock is held under it: returns what last_grant() does, else nil. The id
-- alone does not tell: an acquire that is carried out late takes the lock again under its id, for nobody. fencing_token, where
-- it is there: the turn's own, since the server may know of an earlier turn of the run only, by that one's id.
local function held_grant(lease_id, grant_fence, fencing_token)
  local fence, lease_ms, granted_id, who, left = last_grant()
  if fence ~= tonumber(grant_fence) or call('GET', lock) ~= granted_id then return nil end
  local is_earlier_turn = fencing_token and fence - left < tonumber(fencing_token)
  if granted_id == lease_id or is_earlier_turn then return fence, lease_ms, granted_id, who, left end
end

-- Whether the lock, held under this id, is so by another grant than the one with this token. 0: any grant will do. Where nothing
-- is known of the grant, as of a lock without expiry that has been held for an hour, the id counts.
local function is_another_grant(lease_id, grant_fence)
  local fence, _, granted_id = last_grant()
  return grant_fence ~= '0' and granted_id == lease_id and fence ~= tonumber(grant_fence)
end

-- Why a lease that was ours is not any more: 'forced', 'taken' when the lock is held otherwise, 'deleted' when it is not held.
local function why_lost(lease_id)
  if call('HGET', waiters, '.forced') == lease_id then return 'forced' end
  return call('EXISTS', lock) == 1 and 'taken' or 'deleted'
end

-- max(last + 1, the server's time in microseconds, what the caller has seen) rises across FLUSHALL, restart and failover.
local function next_fence(seen_fence)
  return math.max(last_grant() + 1, now_us, seen_fence + 1)
end

-- Gives the lock to lease_id for held_ms, and remembers to whom. `left`: so many turns of a run follow, nil for none.
local function give(fence, lease_id, lease_ms, held_ms, who, left)
  call('SET', lock, lease_id, 'PX', held_ms)
  call('SET', grant, string.format('%.0f %.0f %d\t%s\t%s\t%s',
    math.floor(fence / 1000000), fence % 1000000, left or 0, lease_ms, lease_id, who), 'PX', lease_ms + KEEP_MS)
end

-- A lease that begins a run is given so much longer that the last turn of it still has its whole time.
local function with_run(lease_ms, left)
  return left > 0 and lease_ms + RUN_MS or lease_ms
end

-- Gives the lease that has the lock its time again, counted from now: no less than it has, for what is carried out late must
-- not take away what was given since; nor more than it was given, which it has after the clock was set back.
local function give_again(fence, lease_id, lease_ms, held_ms, who, left)
  local _, granted_ms, granted_id, granted_who, granted_left = last_grant()
  local remaining_ms = call('PTTL', lock)
  if remaining_ms > tonumber(held_ms) and remaining_ms <= granted_ms + RUN_MS then
    lease_ms, held_ms = granted_ms, remaining_ms
  end
  local is_known = granted_id == lease_id and granted_who == who and granted_left == tonumber(left)
  if is_known and granted_ms == tonumber(lease_ms) then
    -- A server that is out of memory still does this.
    call('PEXPIRE', lock, held_ms)
    call('PEXPIRE', grant, lease_ms + KEEP_MS)
  else
    give(fence, lease_id, lease_ms, held_ms, who, left)
  end
end

local function drop(waiter)
  call('ZREM', queue, waiter)
  call('HDEL', waiters, waiter)
end

-- A place by age, not by arrival: who comes again after the server has lost its data stands where it stood. `later`: how many
-- us after the first waiter each of the next came, separated by commas.
local function stand_in_line(waiter, wanted)
  call('ZADD', queue, string.format('%.0f', now_us - wanted.age_us), waiter)
  call('HSET', waiters, waiter, string.format('%.0f %d %s\t%s\t%s\t%s\t%s',
    now_ms, ALIVE_MS, wanted.later, wanted.waiter_count, wanted.lease_ms, wanted.lease_id, wanted.who))
  call('PEXPIRE', queue, ALIVE_MS + KEEP_MS)
  call('PEXPIRE', waiters, ALIVE_MS + KEEP_MS)
end

-- What a process that stands in line has said: since when and for how long it counts as alive, and what it wants.
local function heard(waiter)
  local seen_ms, alive_ms, later, waiter_count, lease_ms, lease_id, who =
    string.match(call('HGET', waiters, waiter) or '', '^(%d+) (%d+) (%S*)\t(%d+)\t(%d+)\t([^\t]+)\t(.*)$')
  if not seen_ms then return nil end
  return {
    -- One from the future: the clock was set back.
    alive = tonumber(seen_ms) <= now_ms and now_ms < seen_ms + alive_ms,
    alive_for_ms = seen_ms + alive_ms - now_ms,
    later = later, waiter_count = waiter_count, lease_ms = lease_ms, lease_id = lease_id, who = who,
  }
end

-- The first process in line that has shown a sign of life in time, what it wants, and when its first waiter came; those
-- before it are dropped.
local function live_head()
  while true do
    local first = call('ZRANGE', queue, 0, 0, 'WITHSCORES')
    local head = first[1]
    if not head then return nil end
    local wanted = heard(head)
    if wanted and wanted.alive then return head, wanted, tonumber(first[2]) end
    drop(head)
  end
end

local function state(field)
  return tonumber(call('HGET', waiters, field) or '0')
end

-- Until when something was to be waited for: 0 when that is over, or is from before the clock was set back.
local function still_until(field, most_ms)
  local until_ms = state(field)
  if until_ms > now_ms and until_ms <= now_ms + most_ms then return until_ms end
  return 0
end

-- Tells the first process in line to look; those that are gone are dropped. Returns whether there is one.
local function wake_head()
  while true do
    local head, wanted = live_head()
    if not head then return false end
    if call('PUBLISH', head, 'look ' .. wanted.lease_id) > 0 then return true end
    drop(head)
  end
end

-- The same, and keeps the free lock for it for a moment.
local function offer()
  if wake_head() then call('HSET', waiters, '.grace_until', string.format('%.0f', now_ms + GRACE_MS)) end
end

local function leave_signal()
  call('DEL', signal)
  call('LPUSH', signal, 1)
  call('PEXPIRE', signal, SIGNAL_MS)
end

local function remember_sync_program()
  call('HSET', waiters, '.sync_at', string.format('%.0f', now_ms))
end

-- Whether a python-redis-lock program waits: one that does has taken the signal that was left a while ago.
local function sync_program_waits()
  local since_ms = now_ms - state('.signal_at')
  if since_ms >= 0 and since_ms < SIGNAL_MS - 100 then
    local waits = call('EXISTS', signal) == 0
    if waits then remember_sync_program() end
    return waits
  end
  leave_signal()
  call('HSET', waiters, '.signal_at', string.format('%.0f', now_ms))
  return false
end

-- Counts the turns that python-redis-lock programs take while the queue waits: a turn has a holder and an end of its own.
local function count_sync_turn(holder, remaining_ms)
  local ends_ms = remaining_ms < 0 and 0 or now_ms + remaining_ms
  if call('HGET', waiters, '.sync_holder') ~= holder or math.abs(ends_ms - state('.sync_ends')) > 2 then
    call('HINCRBY', waiters, '.sync_turns', 1)
    call('HSET', waiters, '.sync_holder', holder, '.sync_ends', string.format('%.0f', ends_ms))
    remember_sync_program()
  end
end

-- So many handoffs in a row, and then a python-redis-lock program that waits gets its turn: about as many as such programs
-- have just had, so that neither kind starves beside the other.
local function handoffs_in_a_row()
  return math.min(math.max(HANDOFFS, state('.sync_turns')), MOST_HANDOFFS)
end

-- Frees the held lock. Where a python-redis-lock program waits, the queue lets it go first, for a moment.
local function free(sync_first)
  call('DEL', lock)
  leave_signal()
  call('PEXPIRE', grant, KEEP_MS)
  if call('EXISTS', queue) == 0 then return end
  if sync_first then
    call('HSET', waiters, '.signal_at', string.format('%.0f', now_ms),
      '.yield_until', string.format('%.0f', now_ms + YIELD_MS))
  end
  call('HDEL', waiters, '.handoffs', '.sync_turns')
  offer()
end

-- How many waiters of one process may go in turn before anybody else's, at most `most`: those that came before the first of
-- another process at `other_us`, or so little later that it is chance who came first.
local function turns_of(first_us, later, other_us, most)
  local turns, limit_us = 1, other_us + 1000 * SLACK_MS
  for after_us in string.gmatch(later, '%d+') do
    if turns >= most or first_us + after_us > limit_us then break end
    turns = turns + 1
  end
  return turns
end

local function arrival_at(place)
  local found = call('ZRANGE', queue, place, place, 'WITHSCORES')
  return tonumber(found[2] or math.huge)
end

-- Gives the held lock to the next in line, or frees it. `wanted`: what the process of own_channel wants next, or nil; it
-- stands in line by its age like everybody else. Who gets the lock gets it for as many turns as it has waiters that came
-- before anybody else's: a run, with a fencing token for each. Returns {fence, lease id, turns} where it is own_channel's,
-- which so knows without a message; 2 handed over to another process; 1 freed. Another process gets a short claim at
-- first, which its confirmation makes a whole lease; nobody listening on its channel means that it is gone.
local function pass_on(own_channel, wanted)
  local head, heads, head_us = live_head()
  local own_us = wanted and now_us - wanted.age_us or math.huge
  local handoffs = state('.handoffs')
  while head or wanted do
    local in_a_row = handoffs_in_a_row()
    if handoffs >= in_a_row and sync_program_waits() then
      if wanted then stand_in_line(own_channel, wanted) end
      free(true)
      return 1
    end
    handoffs = handoffs < in_a_row and handoffs or 0
    local most = now_ms - state('.sync_at') < SYNC_MS and in_a_row - handoffs or RUN_TURNS
    -- Within the slack nobody came first, and a lock that stays where it is costs no message; but not for ever.
    local turns_here = state('.turns_here')
    local may_stay = head and own_us > head_us and own_us <= head_us + 1000 * SLACK_MS and turns_here < most
    if wanted and (not head or head == own_channel or own_us <= head_us or may_stay) then
      local other_us = head and (head == own_channel and arrival_at(1) or head_us) or math.huge
      local turns = turns_of(own_us, wanted.later, other_us, may_stay and most - turns_here or most)
      local fence = next_fence(0)
      if head then drop(own_channel) end
      give(fence + turns - 1, wanted.lease_id, wanted.lease_ms, with_run(wanted.lease_ms, turns - 1), wanted.who, turns - 1)
      call('HSET', waiters, '.handoffs', handoffs + turns, '.turns_here', turns_here + turns)
      call('PEXPIRE', waiters, ALIVE_MS + KEEP_MS)
      return {fence, wanted.lease_id, turns}
    end
    local turns = turns_of(head_us, heads.later, math.min(own_us, arrival_at(1)), most)
    local fence = next_fence(0)
    drop(head)
    local message = string.format('granted %s %.0f %d %s', heads.lease_id, fence, turns, string.sub(lock, 7, -2))
    if call('PUBLISH', head, message) > 0 then
      give(fence + turns - 1, heads.lease_id, heads.lease_ms, math.min(heads.lease_ms, CLAIM_MS), heads.who, turns - 1)
      call('HSET', waiters, '.handoffs', handoffs + turns, '.turns_here', turns)
      call('PEXPIRE', waiters, ALIVE_MS + KEEP_MS)
      if wanted then stand_in_line(own_channel, wanted) end
      return 2
    end
    head, heads, head_us = live_head()
  end
  free(false)
  return 1
end
