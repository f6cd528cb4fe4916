-- Takes locks that nobody holds and nobody waits for: what nearly every call finds, many callers' at once.
-- KEYS: lock and queue of each, then the grant of each; ARGV: the largest fence that the caller's process has seen, then for
-- each its lease id, its lease in ms, for how long the grant is kept, and the grant's tail. Returns for each its fencing
-- token, or 0 where the lock is held or wanted.
local call = redis.call
local count = #KEYS / 3
local clock = call('TIME')
local seen_fence, now_us, written_now = tonumber(ARGV[1]), clock[1] * 1000000 + clock[2], clock[1] .. ' ' .. clock[2]
local all_free = call('EXISTS', unpack(KEYS, 1, 2 * count)) == 0
local fences = {}

for i = 1, count do
  local lock, queue, grant = KEYS[2 * i - 1], KEYS[2 * i], KEYS[2 * count + i]
  fences[i] = 0
  if all_free or call('EXISTS', lock, queue) == 0 then
    local lease_id, lease_ms, kept_ms, tail = ARGV[4 * i - 2], ARGV[4 * i - 1], ARGV[4 * i], ARGV[4 * i + 1]
    -- NX: a lock may be there twice, since a caller may give up and another come within one tick.
    if call('SET', lock, lease_id, 'NX', 'PX', lease_ms) then
      local last = call('SET', grant, written_now .. tail, 'PX', kept_ms, 'GET')
      local largest = seen_fence
      if last then
        local seconds, microseconds = string.match(last, '^(%d+) (%d+)')
        largest = math.max(largest, seconds * 1000000 + microseconds)
      end
      fences[i] = now_us
      if largest >= now_us then
        -- The clock was set back, or stands still: one more than the largest that anybody has seen.
        fences[i] = largest + 1
        local written = string.format('%.0f %.0f', math.floor(fences[i] / 1000000), fences[i] % 1000000)
        call('SET', grant, written .. tail, 'PX', kept_ms)
      end
    end
  end
end
return fences
