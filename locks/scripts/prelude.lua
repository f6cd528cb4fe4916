-- Shared by every script: the server's clock, the fencing token, and the queue of waiters with its dead dropped.
-- Queue: sorted set, waiter's lease id -> ticket. Meta: hash with fence, ticket, handoffs, grace_until, and for each
-- waiter alive:<id> (deadline in ms), channel:<id>, lease:<id> (ms).
local lock, queue, meta, signal = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now_ms = math.floor(now_us / 1000)

-- max(last + 1, the server's time in microseconds) rises across FLUSHALL, restart and failover, and its key may expire.
local function next_fence()
  local last = tonumber(redis.call('HGET', meta, 'fence') or '0')
  return string.format('%.0f', math.max(last + 1, now_us))
end

local function drop(waiter)
  redis.call('ZREM', queue, waiter)
  redis.call('HDEL', meta, 'alive:' .. waiter, 'channel:' .. waiter, 'lease:' .. waiter)
end

-- The first waiter that has shown a sign of life in time; those before it are dropped.
local function live_head()
  while true do
    local head = redis.call('ZRANGE', queue, 0, 0)[1]
    if not head then return nil end
    if tonumber(redis.call('HGET', meta, 'alive:' .. head) or '0') > now_ms then return head end
    drop(head)
  end
end

-- False when nobody listens on the waiter's channel: its process is gone.
local function tell(waiter, message)
  local channel = redis.call('HGET', meta, 'channel:' .. waiter)
  return channel and redis.call('PUBLISH', channel, message) > 0
end

-- Wakes the first waiter whose process is there.
local function wake_head()
  while true do
    local head = live_head()
    if not head or tell(head, head) then return head end
    drop(head)
  end
end

-- Tells the first waiter that the lock is free, and keeps it for that one for a moment.
local function offer(grace_ms)
  if wake_head() then
    redis.call('HSET', meta, 'grace_until', now_ms + grace_ms)
  else
    redis.call('HDEL', meta, 'grace_until')
  end
end

-- Gives the held lock to the next waiter, under a short claim that the waiter's first renewal makes a full lease.
-- After `most` handoffs in a row the lock is freed instead, so that python-redis-lock's waiters get their turn.
local function pass_on(claim_ms, most, grace_ms)
  local handoffs = tonumber(redis.call('HGET', meta, 'handoffs') or '0')
  while handoffs < most do
    local head = live_head()
    if not head then break end
    local fence = next_fence()
    local lease_ms = tonumber(redis.call('HGET', meta, 'lease:' .. head) or claim_ms)
    redis.call('SET', lock, head, 'PX', math.min(lease_ms, claim_ms))
    redis.call('HSET', meta, 'fence', fence, 'handoffs', handoffs + 1)
    if tell(head, head .. ' ' .. fence) then
      drop(head)
      return true
    end
    drop(head)
  end
  redis.call('DEL', lock, signal)
  redis.call('LPUSH', signal, 1)
  redis.call('PEXPIRE', signal, 1000)
  redis.call('HDEL', meta, 'handoffs')
  offer(grace_ms)
  return false
end
