-- Removes the presence entries of a dead lease from a channel and tells its subscribers, in one atomic step.
-- KEYS: presence, pub/sub name. ARGV: 1 lease id (16 bytes), 2 publish command. Returns how many were removed.
local entries, removed = redis.call('HGETALL', KEYS[1]), 0
for i = 1, #entries, 2 do
  local value = entries[i + 1]
  -- An entry that another node, or the same one under a newer lease, has replaced is alive.
  if string.sub(value, 1, 16) == ARGV[1] then
    redis.call('HDEL', KEYS[1], entries[i])
    redis.call(ARGV[2], KEYS[2], 'u' .. string.sub(value, 17))
    removed = removed + 1
  end
end
return removed
