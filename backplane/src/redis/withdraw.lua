-- Removes what a node has reported. KEYS: reports, times. ARGV: node.
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
