-- Revokes what a user was authorised for so far. KEYS: revocation, written. ARGV: ttl ms.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
-- Not below a revision that was given when the clock was ahead.
local last = tonumber(redis.call('ZRANGE', KEYS[2], 0, 0, 'REV', 'WITHSCORES')[2] or '0')
local before = tonumber(redis.call('GET', KEYS[1]) or '0')
-- Not forgotten while a session lives.
local ttl = math.max(tonumber(ARGV[1]), redis.call('PTTL', KEYS[2]), redis.call('PTTL', KEYS[1]))
redis.call('SET', KEYS[1], string.format('%.0f', math.max(now, last, before)), 'PX', string.format('%.0f', ttl))
return 1
