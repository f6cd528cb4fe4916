-- Frees locks that are held and that nobody waits for, many holders' at once.
-- KEYS: lock of each, then grant of each, then signal of each, then queue of each; ARGV: lease id and grant of each, 'seconds
-- microseconds' of its token. Returns 1 for each that was freed, 0 where there is more to it.
local call = redis.call
local count, signal_ms = #ARGV / 2, tostring(SIGNAL_MS) -- a number would be made into text for each lock
local found = call('MGET', unpack(KEYS, 1, 2 * count)) -- holders, then grants
local nobody_waits = call('EXISTS', unpack(KEYS, 3 * count + 1, 4 * count)) == 0
local freed, gone = {}, {}

for i = 1, count do
  freed[i] = 0
  local is_ours = found[i] == ARGV[2 * i - 1] and string.match(found[count + i] or '', '^%d+ %d+') == ARGV[2 * i]
  if is_ours and (nobody_waits or call('EXISTS', KEYS[3 * count + i]) == 0) then
    freed[i] = 1
    gone[#gone + 1] = KEYS[i]
    gone[#gone + 1] = KEYS[2 * count + i]
  end
end
if #gone > 0 then call('DEL', unpack(gone)) end
for i = 2, #gone, 2 do
  call('LPUSH', gone[i], '1')
  call('PEXPIRE', gone[i], signal_ms)
end
return freed
