-- Removes a presence entry if one of these leases has written it.
-- KEYS: presence. ARGV: 1 client id (16 bytes), then lease ids (16 bytes). Returns how many were removed.
local value = redis.call('HGET', KEYS[1], ARGV[1])
if not value then return 0 end
local lease = string.sub(value, 1, 16)
for i = 2, #ARGV do
  if lease == ARGV[i] then return redis.call('HDEL', KEYS[1], ARGV[1]) end
end
return 0
