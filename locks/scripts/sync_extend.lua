-- Gives a lease that is still ours lease_ms from now. Idempotent. Returns 'extended', 'unexpiring' when it is ours and needs
-- no time, or why it is not ours any more: 'forced', 'taken', 'deleted'.
local lease_id, lease_ms = ARGV[1], ARGV[2]

local holder = call('GET', lock)
if holder ~= lease_id then
  if call('HGET', waiters, '.forced') == lease_id then return 'forced' end
  return holder and 'taken' or 'deleted'
end
if call('PTTL', lock) < 0 then return 'unexpiring' end
local fence, _, last_lease_id, who = last_grant()
if last_lease_id == lease_id then
  -- The grant says how long the lease may last, and whoever waits believes it.
  give(fence, lease_id, lease_ms, lease_ms, who)
else
  call('PEXPIRE', lock, lease_ms)
end
return 'extended'
