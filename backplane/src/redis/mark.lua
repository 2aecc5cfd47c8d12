-- Writes something: a replica that has it has everything before it.
-- KEYS: marker. ARGV: 1 ttl ms. Returns the replication id of the data set that it was written to.
local _, _, lineage = string.find(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
redis.call('SET', KEYS[1], '', 'PX', ARGV[1])
return lineage or ''
