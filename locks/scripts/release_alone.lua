-- Frees locks that are held and that nobody waits for, many holders' at once.
-- KEYS: lock, queue and signal of each; ARGV: lease ids. Returns 1 for each that was freed, 0 where there is more to it.
local call = redis.call
local freed, signal_ms = {}, tostring(SIGNAL_MS) -- a number would be made into text for each lock

for i = 1, #ARGV do
  local lock, queue, signal = KEYS[3 * i - 2], KEYS[3 * i - 1], KEYS[3 * i]
  freed[i] = 0
  if call('EXISTS', queue) == 0 and call('GET', lock) == ARGV[i] then
    call('DEL', lock, signal)
    call('LPUSH', signal, '1')
    call('PEXPIRE', signal, signal_ms)
    freed[i] = 1
  end
end
return freed
