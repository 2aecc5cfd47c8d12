-- Notes what a node reports, and drops a few reports that no longer count.
-- KEYS: reports, times. ARGV: 1 node, 2 report, 3 how long a report counts in microseconds, 4 ttl of both keys ms,
--       5 how many others to look after at most.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local now_text = string.format('%.0f', now)
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], now_text, ARGV[1])
local ended = string.format('%.0f', now - ARGV[3])
for _, node in ipairs(redis.call('ZRANGE', KEYS[2], '-inf', ended, 'BYSCORE', 'LIMIT', 0, ARGV[5])) do
  redis.call('HDEL', KEYS[1], node)
  redis.call('ZREM', KEYS[2], node)
end
-- Times ahead of this clock come from a server that was replaced: without this a dead node would stay until then.
for _, node in ipairs(redis.call('ZRANGE', KEYS[2], '(' .. now_text, '+inf', 'BYSCORE', 'LIMIT', 0, ARGV[5])) do
  redis.call('ZADD', KEYS[2], now_text, node)
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
