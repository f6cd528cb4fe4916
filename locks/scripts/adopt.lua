-- Makes a lease that another process has exported ours: its full time again, our name in the grant, and an id of ours, so that
-- whoever has the same text adopts nothing any more. Idempotent.
-- In a run, grant_fence is the token of its last turn, and the server may not know yet which turn was exported: that one's
-- token, which stays, is fencing_token. Returns 1, or 'taken', 'forced' or 'deleted' as extend does.
local lease_id, new_id, lease_ms, who = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local fencing_token, grant_fence = ARGV[5], ARGV[6]

if not held_grant(new_id, grant_fence) and not held_grant(lease_id, grant_fence, fencing_token) then
  return why_lost(lease_id)
end
give_again(grant_fence, new_id, lease_ms, lease_ms, who, grant_fence - fencing_token)
return 1
