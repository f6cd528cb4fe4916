-- Ends the lease with this fencing token (0: a python-redis-lock program's, which has none) and tells its holder; the next
-- in line gets the lock. Sent again after a lost answer, it remembers by call_id that it has done so.
-- Returns 'free', 'changed' when another lease is the current one, or 'forced'.
local expected_fence, call_id = tonumber(ARGV[1]), ARGV[2]

if call('HGET', waiters, '.forced_by') == call_id then return 'forced' end
local holder = call('GET', lock)
if not holder then return 'free' end
local fence, lease_ms, lease_id, who, left = last_grant()
local current_fence = holder == lease_id and fence - left or 0
if current_fence ~= expected_fence then return 'changed' end
call('HSET', waiters, '.forced_by', call_id)
call('PEXPIRE', waiters, ALIVE_MS + KEEP_MS)
if current_fence ~= 0 then
  call('HSET', waiters, '.forced', holder)
  call('PEXPIRE', waiters, lease_ms + KEEP_MS)
  local name = string.sub(lock, 7, -2)
  local channel = string.match(who, '^[^\t]*')
  call('PUBLISH', channel, string.format('forced %s %s %.0f', holder, name, fence))
end
pass_on('', nil)
return 'forced'
