-- Removes a session. KEYS: record, written. ARGV: encoded session id.
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
