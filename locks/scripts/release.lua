-- Gives the lock back if it is still ours, to the next waiter where one stands, and leaves the queue if we stood there.
-- Returns 2 handed over, 1 freed, 0 not ours. Repeating it is harmless: the second call finds the lock not ours.
local lease_id, claim_ms, most, grace_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

if redis.call('GET', lock) == lease_id then
  return pass_on(claim_ms, most, grace_ms) and 2 or 1
end
local was_head = redis.call('ZRANGE', queue, 0, 0)[1] == lease_id
drop(lease_id)
if was_head and redis.call('EXISTS', lock) == 0 then offer(grace_ms) end
return 0
