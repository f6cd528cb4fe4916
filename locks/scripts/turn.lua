-- Makes the next turn of a run the holder: its own lease id, its whole time, its name in the grant. The turn has begun
-- already, under the run's lease; this comes behind. Idempotent.
-- last_fence: the largest token of the run; left: how many turns follow. Returns 1, or 'taken', 'forced' or 'deleted'.
local lease_id, next_lease_id, lease_ms, last_fence, left, who = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]

if held_grant(next_lease_id, last_fence) then
  give_again(last_fence, next_lease_id, lease_ms, lease_ms + RUN_MS, who, left)
  return 1
elseif held_grant(lease_id, last_fence) then
  give(last_fence, next_lease_id, lease_ms, lease_ms + RUN_MS, who, left)
  return 1
end
return why_lost(lease_id)
