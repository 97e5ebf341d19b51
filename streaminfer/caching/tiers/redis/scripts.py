"""Layout of a `RedisTier` on its server, and the Lua scripts that change it.

On the server, all keys are in one namespace; its braces put them into one slot::

    {namespace}:e<name>   hash     d: the record   c: its data class   s: when it was computed
                                   ls<name>, lt<name>, …: the subject and the tags that it has
    {namespace}:l<name>   string   the lease of who computes it: its random bytes; it expires, and goes with a put
    {namespace}:n         channel  notices of what was deleted and erased, see ``redis_notices``
    {namespace}:g         string   16 random bytes, others after each erasure or deletion

An entry lists its own labels, so a server that evicts entries removes both or neither. An erasure scans all entries
(``SCAN`` returns every key that exists from its beginning to its end) and needs no index.

**Leases.** A holder that has nothing to put replaces its random bytes by a mark, which lasts as long as a lease. Other
processes then compute at once, instead of waiting for one another in turn.

**A put that comes too late.** A server that stalls may execute a put long after the caller stopped waiting, and after
an erasure from another connection. A put therefore first reads the random bytes of the namespace. Its script does
nothing if they have changed or are gone by then. A put that began before an erasure thus has no effect after it,
whichever process erased. Nor has one of an older value than the entry, unless that is from the future: then the clock
was set back.
"""

__all__ = ["BEGIN", "ERASE", "LOOK", "OPEN", "PUT", "TAKE"]

TAKE = """
local lease = ARGV[1] .. 'l' .. ARGV[2]
local held = redis.call('GET', lease)
if held then return held == '-' and 1 or 0 end
redis.call('SET', lease, ARGV[3], 'PX', ARGV[4])
return 1
"""
OPEN = """
local lease = ARGV[1] .. 'l' .. ARGV[2]
if redis.call('GET', lease) == ARGV[3] then redis.call('SET', lease, '-', 'PX', ARGV[4]) end
return 1
"""

BEGIN = """
redis.call('SET', ARGV[1] .. 'g', ARGV[2], 'NX')
return redis.call('GET', ARGV[1] .. 'g')
"""
PUT = """
local prefix, record, ttl = ARGV[1], ARGV[3], tonumber(ARGV[4])
if redis.call('GET', prefix .. 'g') ~= ARGV[7] then return 0 end
local entry = prefix .. 'e' .. ARGV[2]
local stored = tonumber(redis.pcall('HGET', entry, 's')) or 0
if stored > tonumber(ARGV[6]) and stored <= tonumber(ARGV[8]) then return 0 end
redis.call('UNLINK', entry, prefix .. 'l' .. ARGV[2])
redis.call('HSET', entry, 'd', record, 'c', ARGV[5], 's', ARGV[6])
for at = 9, #ARGV do redis.call('HSET', entry, 'l' .. ARGV[at], '') end
if ttl >= 0 then redis.call('PEXPIRE', entry, ttl) end
return 1
"""
ERASE = """
local erased = 0
for at = 2, #ARGV do
  if redis.call('TYPE', ARGV[at]).ok == 'hash' and redis.call('HEXISTS', ARGV[at], ARGV[1]) == 1 then
    erased = erased + redis.call('UNLINK', ARGV[at])
  end
end
return erased
"""
LOOK = """
local found = {}
for at = 1, #ARGV do
  local fields = redis.call('TYPE', ARGV[at]).ok == 'hash' and redis.call('HMGET', ARGV[at], 'c', 's') or {}
  if fields[2] then found[#found + 1] = {fields[1], fields[2], redis.call('HSTRLEN', ARGV[at], 'd')} end
end
return found
"""
