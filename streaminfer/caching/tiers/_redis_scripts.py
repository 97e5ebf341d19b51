"""The layout of a `RedisTier` on its server, and the Lua scripts that change it.

On the server, all under one namespace, with the braces that put it into one slot::

    {namespace}:e<name>   hash     d: the record   c: its data class   s: when it was computed
                                   i8, i9, …: the indices that have it
    {namespace}:s<name>   set      the names of a subject's entries
    {namespace}:t<name>   set      the names of a tag's entries
    {namespace}:l<name>   string   the lease of who computes it, see ``_redis_leases``
    {namespace}:n         channel  notices of what was deleted and erased, see ``_redis_notices``
    {namespace}:g         string   16 random bytes, others after each erasure or deletion

Each change is one script, so an index has every entry that exists. The server removes expired entries itself, and an
index when the last of its entries expires; what an index holds beyond its entries goes with :meth:`~RedisTier.purge`.

**A put that comes too late.** A server that stalls may do what it was asked long after the caller gave up, and after an
erasure that another connection brought. So a put asks for the random bytes first, and its script does nothing if they
have changed by then: what was begun before an erasure has no effect after it, whoever erased.
"""

from __future__ import annotations

from streaminfer.caching.tiers._redis_leases import OPEN, TAKE

__all__ = ["BEGIN", "DELETE", "DROP", "ERASE", "LOOK", "PUT", "SCRIPTS", "TRIM"]

_UNLINK = """
local function drop(prefix, name)
  local entry = prefix .. 'e' .. name
  local fields = {}
  if redis.call('TYPE', entry).ok == 'hash' then fields = redis.call('HGETALL', entry) end
  for at = 1, #fields, 2 do
    if string.sub(fields[at], 1, 1) == 'i' then redis.call('SREM', fields[at + 1], name) end
  end
  return redis.call('UNLINK', entry)
end
"""
BEGIN = """
redis.call('SET', ARGV[1] .. 'g', ARGV[2], 'NX')
return redis.call('GET', ARGV[1] .. 'g')
"""
PUT = (
    _UNLINK
    + """
local prefix, name, record, ttl = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
if redis.call('GET', prefix .. 'g') ~= ARGV[7] then return 0 end
drop(prefix, name)
redis.call('DEL', prefix .. 'l' .. name)
local entry = prefix .. 'e' .. name
redis.call('HSET', entry, 'd', record, 'c', ARGV[5], 's', ARGV[6])
if ttl >= 0 then redis.call('PEXPIRE', entry, ttl) end
for at = 8, #ARGV do
  local index = ARGV[at]
  local left = redis.call('PTTL', index)
  redis.call('HSET', entry, 'i' .. at, index)
  redis.call('SADD', index, name)
  if ttl < 0 then redis.call('PERSIST', index)
  elseif left == -2 or (left >= 0 and left < ttl) then redis.call('PEXPIRE', index, ttl) end
end
return 1
"""
)
DROP = _UNLINK + "return drop(ARGV[1], ARGV[2])"
DELETE = _UNLINK + "redis.call('SET', ARGV[1] .. 'g', ARGV[3]) return drop(ARGV[1], ARGV[2])"
ERASE = (
    _UNLINK
    + """
redis.call('SET', ARGV[1] .. 'g', ARGV[4])
local names = redis.call('SRANDMEMBER', ARGV[2], tonumber(ARGV[3]))
local erased = 0
for _, name in ipairs(names) do
  for _, index in ipairs(redis.call('HVALS', ARGV[1] .. 'e' .. name)) do
    if index == ARGV[2] then erased = erased + drop(ARGV[1], name) break end
  end
  redis.call('SREM', ARGV[2], name)
end
return {erased, #names}
"""
)
TRIM = """
local gone = 0
for at = 3, #ARGV do
  if redis.call('EXISTS', ARGV[1] .. 'e' .. ARGV[at]) == 0 then gone = gone + redis.call('SREM', ARGV[2], ARGV[at]) end
end
return gone
"""
LOOK = """
local found = {}
for at = 1, #ARGV do
  local fields = redis.call('HMGET', ARGV[at], 'c', 's')
  if fields[2] then found[#found + 1] = {fields[1], fields[2], redis.call('HSTRLEN', ARGV[at], 'd')} end
end
return found
"""

SCRIPTS = (TAKE, OPEN, BEGIN, PUT, DROP, DELETE, ERASE, TRIM, LOOK)
