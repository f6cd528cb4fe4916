-- Shared by every script: the server's clock, the grant with its fencing token, and the queue with its dead dropped.
-- Times in ms are the server's; the constants in capitals stand before this file and come from QueueLimits.
local lock, queue, waiters, grant, signal = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local call = redis.call
local clock = call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now_ms = math.floor(now_us / 1000)

-- The last grant: 'seconds microseconds' of its fence, which is the time it was made unless the clock was set back, then
-- tab-separated lease in ms, lease id, and who: channel, instance, host, pid and request.
-- Returns fence, lease in ms, lease id, who.
local function last_grant()
  local seconds, microseconds, lease_ms, lease_id, who =
    string.match(call('GET', grant) or '0 0', '^(%d+) (%d+)\t?(%d*)\t?([^\t]*)\t?(.*)$')
  return seconds * 1000000 + microseconds, tonumber(lease_ms), lease_id, who
end

-- max(last + 1, the server's time in microseconds, what the caller has seen) rises across FLUSHALL, restart and failover.
local function next_fence(seen_fence)
  return math.max(last_grant() + 1, now_us, seen_fence + 1)
end

-- Gives the lock to lease_id for held_ms, and remembers to whom.
local function give(fence, lease_id, lease_ms, held_ms, who)
  call('SET', lock, lease_id, 'PX', held_ms)
  call('SET', grant, string.format('%.0f %.0f\t%s\t%s\t%s',
    math.floor(fence / 1000000), fence % 1000000, lease_ms, lease_id, who), 'PX', lease_ms + KEEP_MS)
end

local function drop(waiter)
  call('ZREM', queue, waiter)
  call('HDEL', waiters, waiter)
end

-- A place by age, not by arrival: who comes again after the server has lost its data stands where it stood.
local function stand_in_line(waiter, wanted)
  call('ZADD', queue, string.format('%.0f', now_us - wanted.age_us), waiter)
  call('HSET', waiters, waiter, string.format('%.0f %d\t%s\t%s\t%s\t%s',
    now_ms, ALIVE_MS, wanted.waiter_count, wanted.lease_ms, wanted.lease_id, wanted.who))
  call('PEXPIRE', queue, ALIVE_MS + KEEP_MS)
  call('PEXPIRE', waiters, ALIVE_MS + KEEP_MS)
end

-- The first process in line that has shown a sign of life in time, and its entry; those before it are dropped. One from
-- the future is from before the clock was set back.
local function live_head()
  while true do
    local head = call('ZRANGE', queue, 0, 0)[1]
    if not head then return nil end
    local entry = call('HGET', waiters, head)
    local seen_ms, alive_ms = string.match(entry or '0 0', '^(%d+) (%d+)')
    if tonumber(seen_ms) <= now_ms and now_ms < seen_ms + alive_ms then return head, entry end
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

-- Tells the first process in line to look, and keeps the free lock for it for a moment; those that are gone are dropped.
local function offer()
  while true do
    local head, entry = live_head()
    if not head then return end
    if call('PUBLISH', head, 'look ' .. string.match(entry, '^%d+ %d+\t%d+\t%d+\t([^\t]+)')) > 0 then
      call('HSET', waiters, '.grace_until', string.format('%.0f', now_ms + GRACE_MS))
      return
    end
    drop(head)
  end
end

local function leave_signal()
  call('DEL', signal)
  call('LPUSH', signal, 1)
  call('PEXPIRE', signal, SIGNAL_MS)
end

-- Whether a python-redis-lock program waits: one that does has taken the signal that was left a while ago.
local function sync_program_waits()
  local since_ms = now_ms - state('.signal_at')
  if since_ms >= 0 and since_ms < SIGNAL_MS - 100 then return call('EXISTS', signal) == 0 end
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

-- Gives the held lock to the next in line, or frees it. `wanted`: what the process of own_channel wants next, or nil; it
-- stands in line by its age like everybody else. Returns {fence, lease id} where it gets the lock, and so knows without a
-- message; 2 handed over to another process; 1 freed. Another process gets a short claim at first, which its confirmation
-- makes a whole lease; nobody listening on its channel means that it is gone.
local function pass_on(own_channel, wanted)
  local head, entry = live_head()
  local handoffs = state('.handoffs')
  while head or wanted do
    local in_a_row = handoffs_in_a_row()
    if handoffs >= in_a_row and sync_program_waits() then
      if wanted then stand_in_line(own_channel, wanted) end
      free(true)
      return 1
    end
    handoffs = handoffs < in_a_row and handoffs or 0
    local fence = next_fence(0)
    if wanted and (not head or head == own_channel or now_us - wanted.age_us <= tonumber(call('ZSCORE', queue, head))) then
      if head then drop(own_channel) end
      give(fence, wanted.lease_id, wanted.lease_ms, wanted.lease_ms, wanted.who)
      call('HSET', waiters, '.handoffs', handoffs + 1)
      call('PEXPIRE', waiters, ALIVE_MS + KEEP_MS)
      return {fence, wanted.lease_id}
    end
    local lease_ms, lease_id, who = string.match(entry, '^%d+ %d+\t%d+\t(%d+)\t([^\t]+)\t(.*)$')
    drop(head)
    if call('PUBLISH', head, string.format('granted %s %s', lease_id, string.sub(lock, 7, -2))) > 0 then
      give(fence, lease_id, lease_ms, math.min(lease_ms, CLAIM_MS), who)
      call('HSET', waiters, '.handoffs', handoffs + 1)
      call('PEXPIRE', waiters, ALIVE_MS + KEEP_MS)
      if wanted then stand_in_line(own_channel, wanted) end
      return 2
    end
    head, entry = live_head()
  end
  free(false)
  return 1
end
