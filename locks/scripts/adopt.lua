-- Makes a lease that another process has exported ours: its full time again, and our name in the grant. Idempotent.
-- Returns the fencing token, or 'taken', 'forced' or 'deleted' as extend does.
local lease_id, lease_ms, who = ARGV[1], ARGV[2], ARGV[3]

local holder = call('GET', lock)
local fence, _, granted_id = last_grant()
if holder == lease_id then
  if granted_id ~= lease_id then fence = next_fence(0) end
  give(fence, lease_id, lease_ms, lease_ms, who)
  return fence
end
if call('HGET', waiters, '.forced') == lease_id then return 'forced' end
return holder and 'taken' or 'deleted'
