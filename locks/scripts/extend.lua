-- Gives a lease that is still ours its full time again, counted from now. Idempotent.
-- Returns 'extended', or 'taken' when another holds the lock, 'forced' when an operator ended it, 'deleted' when nobody did.
local lease_id, lease_ms = ARGV[1], ARGV[2]

local holder = call('GET', lock)
if holder == lease_id then
  call('PEXPIRE', lock, lease_ms)
  call('PEXPIRE', grant, lease_ms + KEEP_MS)
  return 'extended'
end
if call('HGET', waiters, '.forced') == lease_id then return 'forced' end
return holder and 'taken' or 'deleted'
