-- Frees a lock that is still ours because its work is done for all: everybody who waits is told, and needs no turn.
-- Returns 1 freed, 0 not ours. Repeating it is harmless: the second call finds the lock not ours.
local lease_id, grant_fence, fencing_token = ARGV[1], ARGV[2], ARGV[3]

if not held_grant(lease_id, grant_fence, fencing_token) then return 0 end
for _, channel in ipairs(call('ZRANGE', queue, 0, -1)) do
  call('PUBLISH', channel, 'finished ' .. string.sub(lock, 7, -2))
end
call('DEL', queue, waiters)
free(false)
return 1
