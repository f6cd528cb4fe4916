-- Gives a lease that is still ours its full time again, counted from now. Idempotent.
-- Returns 'extended', or 'taken' when another grant holds the lock, 'forced' when an operator ended it, 'deleted' when none does.
local lease_id, lease_ms, grant_fence, fencing_token = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local fence, _, granted_id, who, left = held_grant(lease_id, grant_fence, fencing_token)
if not fence then return why_lost(lease_id) end
give_again(fence, granted_id, lease_ms, with_run(lease_ms, left), who, left)
return 'extended'
