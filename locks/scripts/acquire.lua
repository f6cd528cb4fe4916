-- Takes the lock when it is free and nobody live stands before; else queues. Idempotent for its own id, and its heartbeat.
-- Returns {fence} when held now, else {false, holder's remaining ms (-1: no expiry), place in the queue (0: next, -1: not queued)}.
local lease_id, lease_ms, enqueue, alive_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4])
local channel, grace_ms, keep_ms = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])

local holder = redis.call('GET', lock)
if holder == lease_id then
  redis.call('PEXPIRE', lock, lease_ms)
  local fence = redis.call('HGET', meta, 'fence')
  if not fence then
    fence = next_fence()
    redis.call('HSET', meta, 'fence', fence)
  end
  redis.call('PEXPIRE', meta, lease_ms + keep_ms)
  return {fence}
end

local head = live_head()
local take = false
if not holder then
  if not head or head == lease_id then
    take = true
  else
    -- The head was told that the lock is free. It has a moment to come for it; then anybody may, so that it never lies idle.
    local grace_until = tonumber(redis.call('HGET', meta, 'grace_until') or '0')
    if grace_until == 0 then
      redis.call('HSET', meta, 'grace_until', now_ms + grace_ms)
      wake_head()
    elseif now_ms > grace_until then
      take = true
    end
  end
end

if take then
  local fence = next_fence()
  redis.call('SET', lock, lease_id, 'PX', lease_ms)
  redis.call('HSET', meta, 'fence', fence)
  if head then drop(lease_id) end
  redis.call('HDEL', meta, 'grace_until', 'handoffs')
  redis.call('PEXPIRE', meta, lease_ms + keep_ms)
  return {fence}
end

if not enqueue then return {false, redis.call('PTTL', lock), -1} end
if not redis.call('ZSCORE', queue, lease_id) then
  redis.call('ZADD', queue, redis.call('HINCRBY', meta, 'ticket', 1), lease_id)
  redis.call('HSET', meta, 'channel:' .. lease_id, channel, 'lease:' .. lease_id, lease_ms)
end
-- The grace is for a free lock; python-redis-lock, which took it meanwhile, knows nothing of it.
if holder then redis.call('HDEL', meta, 'grace_until') end
redis.call('HSET', meta, 'alive:' .. lease_id, now_ms + alive_ms)
redis.call('PEXPIRE', queue, alive_ms + keep_ms)
redis.call('PEXPIRE', meta, math.max(lease_ms, alive_ms) + keep_ms)
return {false, redis.call('PTTL', lock), redis.call('ZRANK', queue, lease_id)}
