-- Gives a lease that is still ours its full time again, counted from now. Idempotent.
-- Returns the fencing token, or 'taken' when another holds the lock, or 'deleted' when nobody does.
local lease_id, lease_ms, keep_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local holder = redis.call('GET', lock)
if not holder then return 'deleted' end
if holder ~= lease_id then return 'taken' end
redis.call('PEXPIRE', lock, lease_ms)
redis.call('PEXPIRE', meta, lease_ms + keep_ms)
return 'extended'
