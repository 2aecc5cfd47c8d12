-- Hands a presence entry over to a bucket of those that linger, if one of these leases has written it.
-- KEYS: presence, pub/sub name.
-- ARGV: 1 client id (16 bytes), 2 bucket id (16 bytes), 3 end of the bucket in ms, 4 publish command, then lease ids.
-- Returns 0 when there is no such entry, 1 when it lingers, 2 when it was so late that it left at once.
local value = redis.call('HGET', KEYS[1], ARGV[1])
if not value then return 0 end
local lease = string.sub(value, 1, 16)
for i = 5, #ARGV do
  if lease == ARGV[i] then
    local clock = redis.call('TIME')
    -- A bucket that is over may have been emptied: whoever comes into it afterwards would stay for ever.
    if clock[1] * 1000 + clock[2] / 1000 < tonumber(ARGV[3]) then
      redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. string.sub(value, 17))
      return 1
    end
    redis.call('HDEL', KEYS[1], ARGV[1])
    redis.call(ARGV[4], KEYS[2], 'u' .. string.sub(value, 17))
    return 2
  end
end
return 0
