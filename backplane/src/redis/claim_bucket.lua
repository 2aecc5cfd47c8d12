-- Gives one bucket whose time is over to the caller, who has to empty it. Others get it when the claim is over.
-- KEYS: buckets. ARGV: time of the claim in ms. Returns the bucket's id, or nothing.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local due = redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', 0, 1)
if not due[1] then return false end
redis.call('ZADD', KEYS[1], 'XX', string.format('%.0f', now + ARGV[1]), due[1])
return due[1]
