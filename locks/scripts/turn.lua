-- Makes the next turn of a run the holder: its own lease id, its whole time, its name in the grant. The turn has begun
-- already, under the run's lease; this comes behind. Idempotent.
-- last_fence: the largest token of the run; left: how many turns follow. Returns 1, or 'taken', 'forced' or 'deleted'.
local lease_id, next_lease_id, lease_ms, last_fence, left, who = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]

local fence, _, granted_id = held_grant(next_lease_id, last_fence, last_fence - left)
if not fence then return why_lost(lease_id) end
if granted_id == next_lease_id then
  give_again(fence, next_lease_id, lease_ms, lease_ms + RUN_MS, who, left)
else
  give(fence, next_lease_id, lease_ms, lease_ms + RUN_MS, who, left)
end
return 1
