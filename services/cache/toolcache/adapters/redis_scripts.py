"""What Redis does by itself, at one stroke each: the Lua scripts of the Redis store, and the keys they keep.

All keys of a namespace begin with the same `toolcache:{NAMESPACE}:` (redis_connection.slot). After it comes:

    meta         hash: spec (JSON), order (the last one given), bytes, environments (how many), deleting
    revision     string; missing: there is no such namespace
    profiles     hash: JSON by tool
    evidence     hash: counts by JSON [tool, kind, what is counted]
    k:KEY        string: the key's samples, oldest first. All that an exact answer reads
    e:N          hash: the rest of entries, by order; 128 consecutive orders in each, so that all can be walked in order
    v:N          hash: vectors by order, likewise; the embedder's version, a zero byte, the vector
    tools        hash: by tool with entries, how many keys have more than one sample
    t:TOOL       sorted set: orders
    env:TEXT     set: orders, likewise tag:TEXT
    equal:TEXT   sorted set: orders of that `place.equal`, likewise call:TEXT
    used         sorted set: keys by the time they were used or recorded
    expires      sorted set: orders by the time they expire
    changes      stream: what happened to vectors
    once:TEXT    string that expires: a request that was put, or whose evidence was added

Scripts name keys which they are not given: allowed where all lie in one slot, as here. They are sent so little that
Redis is never held for more than some milliseconds; who has more to do calls again.
"""

from __future__ import annotations

from toolcache.adapters.redis_connection import Script
from toolcache.core.entries import CLOCK_SKEW_S, MOST_RESULTS

CHANGES_KEPT = 10_000
"""Writes that a follower of vectors may lag behind (one of them tells of up to a slice of vectors): about 1 MB."""
SLICE = 100
"""Entries that one script changes at most: 2 to 4 ms of the time of Redis."""

_BEGIN = r"""
local at = string.sub(KEYS[1], 1, -5) -- KEYS[1] ends with "meta"
local KEY, TOOL, ENVIRONMENT, ARGUMENTS, CANONICAL = 1, 2, 3, 5, 6 -- places in the rest of an entry; 4 is its scope
local GUARD, EQUAL, CALL, TAGS, SIZE = 7, 8, 9, 10, 11
local bytes, environments = 0, 0 -- by how much they grew
local gone = {} -- by tool: orders whose vectors went

local function rests(order) return at .. 'e:' .. math.floor(order / 128) end
local function vectors(order) return at .. 'v:' .. math.floor(order / 128) end

local function rest_of(order)
    local packed = redis.call('HGET', rests(order), order)
    return packed and cmsgpack.unpack(packed)
end

local function samples_of(key)
    local packed = redis.call('GET', at .. 'k:' .. key)
    return packed and cmsgpack.unpack(packed) or {}
end

local function keep(key, samples)
    if #samples > 0 then
        redis.call('SET', at .. 'k:' .. key, cmsgpack.pack(samples))
    else
        redis.call('DEL', at .. 'k:' .. key)
        redis.call('ZREM', at .. 'used', key)
    end
end

local function use(key, at_s)
    if at_s then redis.call('ZADD', at .. 'used', 'GT', at_s, key) end
end

local function expire(order, at_s)
    if at_s > 0 then
        redis.call('ZADD', at .. 'expires', at_s, order)
    else
        redis.call('ZREM', at .. 'expires', order)
    end
end

-- A result that was recorded again: counted, and as new as the later recording; of two at one time the other's. What is
-- known and later by more than skew_s has its time from a wrong clock.
local function unite(known, other, skew_s)
    known.seen = known.seen + other.seen
    local ahead_s = known.recorded_at_s - other.recorded_at_s
    if ahead_s <= 0 or ahead_s > skew_s then
        known.recorded_at_s, known.expires_at_s = other.recorded_at_s, other.expires_at_s
        expire(known.order, known.expires_at_s)
    end
end

-- Add tags to the rest of an entry, in order; whether there were new ones.
local function tag(order, rest, tags)
    local had = #rest[TAGS]
    for _, each in ipairs(tags) do
        if redis.call('SADD', at .. 'tag:' .. each, order) == 1 then table.insert(rest[TAGS], each) end
    end
    if had > 0 then table.sort(rest[TAGS]) end
    return #rest[TAGS] > had
end

local function show(order, rest)
    if rest[EQUAL] ~= '' then redis.call('ZADD', at .. 'equal:' .. rest[EQUAL], order, order) end
    if rest[CALL] ~= '' then redis.call('ZADD', at .. 'call:' .. rest[CALL], order, order) end
end

local function hide(order, rest)
    if rest[EQUAL] ~= '' then redis.call('ZREM', at .. 'equal:' .. rest[EQUAL], order) end
    if rest[CALL] ~= '' then redis.call('ZREM', at .. 'call:' .. rest[CALL], order) end
end

-- Put a sample among those of its key, oldest first.
local function insert(key, tool, samples, sample)
    local place = #samples + 1
    while place > 1 and samples[place - 1].order > sample.order do place = place - 1 end
    table.insert(samples, place, sample)
    redis.call('HINCRBY', at .. 'tools', tool, #samples == 2 and 1 or 0)
    keep(key, samples)
end

-- Take an entry's sample from its key.
local function detach(order, rest)
    local samples = samples_of(rest[KEY])
    for place, sample in ipairs(samples) do
        if sample.order == order then
            table.remove(samples, place)
            if #samples == 1 then redis.call('HINCRBY', at .. 'tools', rest[TOOL], -1) end
            keep(rest[KEY], samples)
            return sample
        end
    end
end

-- Forget all of an entry but its sample.
local function drop(order, rest)
    hide(order, rest)
    redis.call('HDEL', rests(order), order)
    if redis.call('HDEL', vectors(order), order) == 1 then
        gone[rest[TOOL]] = gone[rest[TOOL]] or {}
        table.insert(gone[rest[TOOL]], order)
    end
    redis.call('ZREM', at .. 't:' .. rest[TOOL], order)
    if redis.call('EXISTS', at .. 't:' .. rest[TOOL]) == 0 then redis.call('HDEL', at .. 'tools', rest[TOOL]) end
    redis.call('SREM', at .. 'env:' .. rest[ENVIRONMENT], order)
    environments = environments - 1 + redis.call('EXISTS', at .. 'env:' .. rest[ENVIRONMENT])
    for _, each in ipairs(rest[TAGS]) do redis.call('SREM', at .. 'tag:' .. each, order) end
    redis.call('ZREM', at .. 'expires', order)
    bytes = bytes - rest[SIZE]
end

local function remove(order)
    local rest = rest_of(order)
    if not rest then return 0 end
    detach(order, rest)
    drop(order, rest)
    return 1
end

local function announce(kind, tool, orders)
    local words = table.concat(orders, ' ')
    redis.call('XADD', at .. 'changes', 'MAXLEN', '~', CHANGES_KEPT, '*', 'kind', kind, 'tool', tool, 'orders', words)
end

local function finish()
    if bytes ~= 0 then redis.call('HINCRBY', KEYS[1], 'bytes', bytes) end
    if environments ~= 0 then redis.call('HINCRBY', KEYS[1], 'environments', environments) end
    for tool, orders in pairs(gone) do announce('removed', tool, orders) end
end

-- The revision is a time in microseconds: a namespace that is made anew, or a server that lost its last writes, never
-- shows a number again that once meant something else.
local function revise()
    local now = redis.call('TIME')
    local last = tonumber(redis.call('GET', at .. 'revision') or 0)
    redis.call('SET', at .. 'revision', string.format('%.0f', math.max(last + 1, now[1] * 1000000 + now[2])))
end

-- The rest and the sample of each of these orders, up to so many bytes; first, how many orders that were.
local function rows(orders, most_bytes)
    local reply, length, read = {#orders}, 0, {}
    for count, order in ipairs(orders) do
        local packed = redis.call('HGET', rests(order), order)
        if packed then
            local key = cmsgpack.unpack(packed)[KEY]
            read[key] = read[key] or samples_of(key)
            for _, sample in ipairs(read[key]) do
                if sample.order == tonumber(order) then
                    local one = cmsgpack.pack(sample)
                    table.insert(reply, packed)
                    table.insert(reply, one)
                    length = length + #packed + #one
                end
            end
        end
        if length >= most_bytes then
            reply[1] = count
            break
        end
    end
    return reply
end
"""
_CONSTANTS = {"CHANGES_KEPT": CHANGES_KEPT, "CLOCK_SKEW_S": CLOCK_SKEW_S, "MOST_RESULTS": MOST_RESULTS}


def _script(text: str) -> Script:
    text = _BEGIN + text
    for name, value in _CONSTANTS.items():
        text = text.replace(name, str(value))
    return Script(text=text)


KNOWN = _script(r"""
local revision = redis.call('GET', at .. 'revision')
if not revision then return {} end
local spec = redis.call('HGET', KEYS[1], 'spec')
return {revision, spec, redis.call('HGETALL', at .. 'profiles'), redis.call('HGETALL', at .. 'evidence')}
""")
"""() -> revision, spec, profiles, evidence; nothing if there is no such namespace"""

PUT_NAMESPACE = _script(r"""
if redis.call('HEXISTS', KEYS[1], 'deleting') == 1 then return 0 end
redis.call('HSET', KEYS[1], 'spec', ARGV[1])
revise()
return 1
""")
"""spec -> 0 while a deletion has not come to its end"""

MARK_DELETED = _script(r"""
if redis.call('DEL', at .. 'revision') == 1 or redis.call('EXISTS', at .. 'tools') == 1 then
    redis.call('HSET', KEYS[1], 'deleting', 1)
end
return redis.call('HEXISTS', KEYS[1], 'deleting')
""")
"""() -> 0 if there is neither such a namespace nor entries in it"""

FINISH_DELETION = _script(r"""
if redis.call('HEXISTS', KEYS[1], 'deleting') == 0 then return 1 end
if redis.call('EXISTS', at .. 'tools') == 1 then return 0 end
for _, name in ipairs({'meta', 'profiles', 'evidence', 'used', 'expires', 'changes'}) do
    redis.call('UNLINK', at .. name)
end
return 1
""")
"""() -> 0 while there are entries"""

PUT_PROFILES = _script(r"""
if redis.call('EXISTS', at .. 'revision') == 0 then return end
for i = 1, #ARGV, 2 do redis.call('HSET', at .. 'profiles', ARGV[i], ARGV[i + 1]) end
revise()
""")
"""tool, profile, ..."""

ADD_EVIDENCE = _script(r"""
if redis.call('EXISTS', at .. 'revision') == 0 then return end
if ARGV[1] ~= '' and not redis.call('SET', at .. 'once:' .. ARGV[1], 1, 'NX', 'PX', ARGV[2]) then return end
for i = 3, #ARGV, 2 do redis.call('HINCRBY', at .. 'evidence', ARGV[i], ARGV[i + 1]) end
revise()
""")
"""name of the request or nothing, milliseconds to remember it, then field, count, ..."""

CLEAR_EVIDENCE = _script(r"""
local cleared = 0
for _, field in ipairs(redis.call('HKEYS', at .. 'evidence')) do
    if cjson.decode(field)[1] == ARGV[1] then cleared = cleared + redis.call('HDEL', at .. 'evidence', field) end
end
if cleared > 0 then revise() end
""")
"""tool"""

PUT = _script(r"""
local again = ARGV[2] and not redis.call('SET', at .. 'once:' .. ARGV[2], 1, 'NX', 'PX', ARGV[3])
local order = tonumber(redis.call('HGET', KEYS[1], 'order') or 0)
local reply = {order}

local function put(rest, sample)
    local key = rest[KEY]
    local samples = samples_of(key)
    local have = #samples
    for _, each in ipairs(samples) do
        if each.expires_at_s > 0 and each.expires_at_s <= sample.recorded_at_s then have = have - remove(each.order) end
    end
    if have < #samples then samples = samples_of(key) end
    for _, known in ipairs(samples) do
        if known.result_digest == sample.result_digest then
            if again then return 1 end
            unite(known, sample, CLOCK_SKEW_S)
            keep(key, samples)
            use(key, sample.recorded_at_s)
            if #rest[TAGS] > 0 then
                local own = rest_of(known.order)
                if own and tag(known.order, own, rest[TAGS]) then
                    redis.call('HSET', rests(known.order), known.order, cmsgpack.pack(own))
                end
            end
            return 1
        end
    end
    if have >= MOST_RESULTS then
        table.sort(samples, function(a, b) return a.seen < b.seen or a.seen == b.seen and a.order < b.order end)
        for i = 1, have - MOST_RESULTS + 1 do remove(samples[i].order) end
        samples = samples_of(key)
    end
    order = order + 1
    sample.order = order
    insert(key, rest[TOOL], samples, sample)
    use(key, sample.recorded_at_s)
    local tags = rest[TAGS]
    rest[TAGS] = {}
    tag(order, rest, tags)
    redis.call('HSET', rests(order), order, cmsgpack.pack(rest))
    redis.call('ZADD', at .. 't:' .. rest[TOOL], order, order)
    environments = environments + 1 - redis.call('EXISTS', at .. 'env:' .. rest[ENVIRONMENT])
    redis.call('SADD', at .. 'env:' .. rest[ENVIRONMENT], order)
    if sample.expires_at_s > 0 then expire(order, sample.expires_at_s) end
    show(order, rest)
    bytes = bytes + rest[SIZE]
    return have > 0 and 2 or 0
end

for _, each in ipairs(cmsgpack.unpack(ARGV[1])) do table.insert(reply, put(each[1], each[2])) end
redis.call('HSET', KEYS[1], 'order', order)
finish()
return reply
""")
"""entries, [name of the request, milliseconds to remember it] -> last order before, and for each entry
0 stored, 1 known, 2 conflict"""

ROWS = _script(r"""
return rows(cmsgpack.unpack(ARGV[1]), tonumber(ARGV[2]))
""")
"""orders, bytes -> how many orders were read, then rest, sample, ..."""

ROWS_OF = _script(r"""
return rows(redis.call(ARGV[1], at .. ARGV[2], 0, ARGV[3] - 1), math.huge)
""")
"""ZRANGE or ZREVRANGE, index, count -> as ROWS"""

ORDERS = _script(r"""
local after, most, tool = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
if tool then
    local orders = redis.call('ZRANGEBYSCORE', at .. 't:' .. tool, '(' .. ARGV[1], '+inf', 'LIMIT', 0, most)
    table.insert(orders, 1, #orders == most and tonumber(orders[most]) or -1)
    return orders
end
local first = math.floor((after + 1) / 128)
local last = math.floor(tonumber(redis.call('HGET', KEYS[1], 'order') or 0) / 128)
for n = first, last do
    local orders = {}
    for _, order in ipairs(redis.call('HKEYS', at .. 'e:' .. n)) do
        if tonumber(order) > after then table.insert(orders, tonumber(order)) end
    end
    table.sort(orders)
    if #orders > most then
        orders = {unpack(orders, 1, most)}
        table.insert(orders, 1, orders[most])
        return orders
    end
    if n < last and (#orders > 0 or n - first >= 1000) then
        table.insert(orders, 1, n * 128 + 127)
        return orders
    end
    if n == last then
        table.insert(orders, 1, -1)
        return orders
    end
end
return {-1}
""")
"""after, how many, [tool] -> where to go on (-1: that was all), then orders, ascending"""

REMOVE = _script(r"""
local which = ARGV[2] and cmsgpack.unpack(ARGV[2]) or {}

local function has(list, one)
    for _, each in ipairs(list) do
        if each == one then return true end
    end
end

local function is_before(order, rest, at_s)
    for _, sample in ipairs(samples_of(rest[KEY])) do
        if sample.order == order then return sample.recorded_at_s < at_s end
    end
end

local removed = 0
for _, order in ipairs(cmsgpack.unpack(ARGV[1])) do
    local rest = rest_of(order)
    if rest
        and (not which.tool or rest[TOOL] == which.tool)
        and (not which.environment or rest[ENVIRONMENT] == which.environment)
        and (not which.tag or has(rest[TAGS], which.tag))
        and (not which.recorded_before_s or is_before(order, rest, which.recorded_before_s))
    then
        removed = removed + remove(order)
    end
end
finish()
return removed
""")
"""orders, [filter] -> how many went"""

REMOVE_EXPIRED = _script(r"""
local orders = redis.call('ZRANGEBYSCORE', at .. 'expires', '(0', ARGV[1], 'LIMIT', 0, ARGV[2])
local removed = 0
for _, order in ipairs(orders) do
    removed = removed + remove(tonumber(order))
    redis.call('ZREM', at .. 'expires', order)
end
finish()
return {#orders, removed}
""")
"""now, how many -> how many were looked at, how many went"""

EVICT = _script(r"""
local most = tonumber(ARGV[1])
local before = tonumber(redis.call('HGET', KEYS[1], 'bytes') or 0)
local removed, i = 0, 2
while i < #ARGV and before + bytes > most do
    local score = redis.call('ZSCORE', at .. 'used', ARGV[i])
    if score and tonumber(score) == tonumber(ARGV[i + 1]) then -- else it was used since, or is gone
        for _, sample in ipairs(samples_of(ARGV[i])) do removed = removed + remove(sample.order) end
        redis.call('ZREM', at .. 'used', ARGV[i])
    end
    i = i + 2
end
finish()
return {removed, before + bytes > most and 1 or 0}
""")
"""most bytes, key, when it was used, ... -> how many entries went, whether it is still too much"""

REKEY = _script(r"""
local moving = ARGV[2] -- hash: where entries go that are yet to be moved, of which these are some

local function leaves(order, key)
    local to = moving and redis.call('HGET', moving, order)
    return to and to ~= key
end

-- Put a sample under its new key; false if an older entry has taken it in.
local function attach(rest, sample, used)
    local key = rest[KEY]
    local samples = samples_of(key)
    use(key, used)
    for _, other in ipairs(samples) do
        if other.result_digest == sample.result_digest and not leaves(other.order, key) then
            local own = rest_of(other.order)
            if own and other.order < sample.order then
                unite(other, sample, math.huge)
                keep(key, samples)
                if tag(other.order, own, rest[TAGS]) then
                    redis.call('HSET', rests(other.order), other.order, cmsgpack.pack(own))
                end
                return false
            end
            unite(sample, other, math.huge)
            if own then tag(sample.order, rest, own[TAGS]) end
            used = redis.call('ZSCORE', at .. 'used', key)
            remove(other.order)
            samples = samples_of(key)
            use(key, used)
            break
        end
    end
    insert(key, rest[TOOL], samples, sample)
    return true
end

local tools, taken = {}, {}
for _, move in ipairs(cmsgpack.unpack(ARGV[1])) do
    local order, key = move[1], move[2]
    local rest = rest_of(order)
    if rest then
        tools[rest[TOOL]] = true
        local used, sample
        if rest[KEY] ~= key then
            used = redis.call('ZSCORE', at .. 'used', rest[KEY])
            sample = detach(order, rest)
        end
        table.insert(taken, {move = move, rest = rest, sample = sample, used = used})
    end
end
for _, each in ipairs(taken) do
    local order, key, canonical, guard, equal, call = unpack(each.move)
    local rest = each.rest
    hide(order, rest)
    local before = rest[CANONICAL] == '' and rest[ARGUMENTS] or rest[CANONICAL]
    rest[SIZE] = rest[SIZE] + #canonical - #before
    bytes = bytes + #canonical - #before
    rest[KEY], rest[GUARD], rest[EQUAL], rest[CALL] = key, guard, equal, call
    rest[CANONICAL] = canonical == rest[ARGUMENTS] and '' or canonical
    if not each.sample or attach(rest, each.sample, each.used) then
        redis.call('HSET', rests(order), order, cmsgpack.pack(rest))
        show(order, rest)
    else
        drop(order, rest)
    end
end
finish()
for tool in pairs(tools) do announce('moved', tool, {}) end
""")
"""(order, key, canonical arguments, guard, equal, call), ..., by order; [moving]"""

SIZE = _script(r"""
local reply = {redis.call('HGET', KEYS[1], 'bytes') or 0, redis.call('HGET', KEYS[1], 'environments') or 0}
local tools = redis.call('HGETALL', at .. 'tools')
for i = 1, #tools, 2 do
    table.insert(reply, tools[i])
    table.insert(reply, redis.call('ZCARD', at .. 't:' .. tools[i]))
    table.insert(reply, tools[i + 1])
end
return reply
""")
"""() -> bytes, environments, then tool, entries, keys with more than one result, ..."""

PUT_VECTORS = _script(r"""
local version = ARGV[2] .. '\0'
local added = {}
for i = 3, #ARGV, 2 do
    local order = tonumber(ARGV[i])
    local rest = rest_of(order)
    if rest and rest[TOOL] == ARGV[1] then
        local old = redis.call('HGET', vectors(order), order)
        if not old or string.sub(old, 1, #version) ~= version then
            redis.call('HSET', vectors(order), order, version .. ARGV[i + 1])
            table.insert(added, order)
        end
    end
end
if #added > 0 then announce('added', ARGV[1], added) end
""")
"""tool, version, order, vector, ..."""

VECTORS = _script(r"""
local version = ARGV[2] .. '\0'
local reply = {}
for _, order in ipairs(cmsgpack.unpack(ARGV[1])) do
    local vector = redis.call('HGET', vectors(order), order)
    if vector and string.sub(vector, 1, #version) == version then
        local rest = rest_of(order)
        table.insert(reply, rest[TOOL])
        table.insert(reply, order)
        table.insert(reply, rest[GUARD])
        table.insert(reply, string.sub(vector, #version + 1))
    end
end
return reply
""")
"""orders, version -> tool, order, guard, vector, ..."""

CHANGES = _script(r"""
if redis.call('EXISTS', at .. 'changes') == 0 then return {0, '0-0', {}} end
local info = redis.call('XINFO', 'STREAM', at .. 'changes')
local about = {}
for i = 1, #info, 2 do about[info[i]] = info[i + 1] end
local changes = redis.call('XRANGE', at .. 'changes', '(' .. ARGV[1], '+', 'COUNT', ARGV[2])
return {about['entries-added'], about['last-generated-id'], changes}
""")
"""[id, how many] -> changes ever made, id of the last one, changes after the given one"""
