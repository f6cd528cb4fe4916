-- Gives a lease that is still ours its full time again, counted from now. Idempotent.
-- Returns 'extended', or 'taken' when another holds the lock, 'forced' when an operator ended it, 'deleted' when nobody did.
local lease_id, lease_ms = ARGV[1], ARGV[2]

local holder = call('GET', lock)
if holder == lease_id then
  local fence, granted_ms, granted_id, who, left = last_grant()
  if granted_id == lease_id and granted_ms ~= tonumber(lease_ms) then
    -- Whoever waits goes by the grant: a key that has more time left than that is from before the clock was set back.
    give(fence, lease_id, lease_ms, with_run(lease_ms, left), who, left)
  else
    call('PEXPIRE', lock, with_run(lease_ms, left))
    call('PEXPIRE', grant, lease_ms + KEEP_MS)
  end
  return 'extended'
end
if call('HGET', waiters, '.forced') == lease_id then return 'forced' end
return holder and 'taken' or 'deleted'
