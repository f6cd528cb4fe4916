-- Frees locks that are held and that nobody waits for, many holders' at once; each under an id that was asked for once only,
-- which so has no other grant.
-- KEYS: lock of each, then signal of each, then queue of each; ARGV: lease ids. Returns 1 for each that was freed, 0 where
-- there is more to it.
local call = redis.call
local count, signal_ms = #ARGV, tostring(SIGNAL_MS) -- a number would be made into text for each lock
local holders = call('MGET', unpack(KEYS, 1, count))
local nobody_waits = call('EXISTS', unpack(KEYS, 2 * count + 1, 3 * count)) == 0
local freed, gone = {}, {}

for i = 1, count do
  freed[i] = 0
  if holders[i] == ARGV[i] and (nobody_waits or call('EXISTS', KEYS[2 * count + i]) == 0) then
    freed[i] = 1
    gone[#gone + 1] = KEYS[i]
    gone[#gone + 1] = KEYS[count + i]
  end
end
if #gone > 0 then call('DEL', unpack(gone)) end
for i = 2, #gone, 2 do
  call('LPUSH', gone[i], '1')
  call('PEXPIRE', gone[i], signal_ms)
end
return freed
