-- Makes a lease that another process has exported ours: its full time again, and our name in the grant. Idempotent.
-- Returns the fencing token, which stays, or 'taken', 'forced' or 'deleted' as extend does.
local lease_id, lease_ms, who, exported_fence = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

local holder = call('GET', lock)
local fence, _, granted_id = last_grant()
if holder == lease_id then
  -- In a run the grant's fence is that of its last turn, and the server may not know yet which turn was exported.
  local left = fence - exported_fence
  if granted_id ~= lease_id or left < 0 or left >= RUN_TURNS then fence, left = next_fence(0), 0 end
  give(fence, lease_id, lease_ms, lease_ms, who, left)
  return fence - left
end
if call('HGET', waiters, '.forced') == lease_id then return 'forced' end
return holder and 'taken' or 'deleted'
