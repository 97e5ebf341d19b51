"""`RedisTier`: entries on a Redis or Valkey server that the machines of a site share.

A server that is down must cost its callers only misses: each operation has a timeout, nothing is retried, and a circuit
breaker stops the calls when they fail. The tier does not trust the server's responses: records have a checksum (with
keys, a seal) and contain their own name and age.

``scripts`` describes the data on the server and has the scripts that change them.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import check_count, check_duration, check_instance, expected
from streaminfer.caching.codec import CorruptRecord
from streaminfer.caching.tiers._records import MediumTier, selection
from streaminfer.caching.tiers.encryption import KeyProvider
from streaminfer.caching.tiers.protocol import Entry, Held, Notice, RecordCopy
from streaminfer.caching.tiers.redis.connection import blocking_client_of, check_url, client_of, close
from streaminfer.caching.tiers.redis.redis_notices import RedisNotices
from streaminfer.caching.tiers.redis.scripts import BEGIN, ERASE, LOOK, OPEN, PUT, TAKE
from streaminfer.caching.tiers.redis.tls import TlsFiles
from streaminfer.caching.tiers.time_limit import error_of_limit
from streaminfer.errors import BackendError, CircuitOpen, Closed, text_of_error
from streaminfer.protocols import Clock
from streaminfer.resilience.breaker.circuit_breaker import CircuitBreaker

__all__ = ["RedisTier"]

T = TypeVar("T")

ERASE_CHUNK = 1024
SCAN_CHUNK = 256
WRONG_TYPE = "WRONGTYPE"  # error of a command on a key with another data type
NO_WRITES = ("MISCONF", "NOREPLICAS")  # errors of writes to a server that cannot save or has lost its replicas
MAX_COUNTED_KEYS = 100_000
MAX_TTL_MS = 2**53  # largest integer that a Lua number represents exactly


class RedisTier(MediumTier):
    """Tier on a Redis (≥ 6.2) or Valkey server; on Redis Cluster it uses one slot only.

    Args:
        url: ``redis://[[user]:password@]host[:port][/db]``, ``rediss://`` for TLS, ``unix://`` for a socket. The
            certificate and name of a TLS server are always checked. Options after ``?`` can be ``client_name``, ``db``,
            ``password``, ``protocol`` and ``username``.
        namespace: prefix of its keys; tiers with the same namespace share entries.
        keys: encrypts records and names with keys of this provider; ``None``: they are plain, with checksums.
        timeout_s: seconds that a get or put may take; after that it is a miss. A connection that takes longer to open
            continues to open for up to 5 s, and serves a later operation.
        invalidate: when one process deletes or erases entries, all other processes with this option remove them from
            their memory and from faster tiers. Takes one more connection.
        lease_s: if more than 0, one of all processes with this option computes a response, and the others wait for its
            entry for at most this time, also if that process dies.
        erase_timeout_s: seconds for each step of an erasure, which checks 1,024 keys.
        breaker: a `CircuitBreaker`; ``None``: one that opens for 5 s when half of the last 5 to 20 operations failed.
        max_connections: most connections at once; an operation waits for a free one within its timeout.
        max_value_bytes: larger records are rejected.
        tls_ca: path of the certificates of the trusted authorities; ``None``: those of the system.
        tls_certificate, tls_key: paths of a client certificate and its unencrypted key, if the server requires one.
            These files and ``tls_ca`` are read for each connection, so replaced files apply to later connections.
        wall_clock: returns nanoseconds since 1970; ``None``: ``time.time_ns``. The tier checks the ages of entries by
            this clock, so the clocks of all machines must agree closely enough for these ages.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
        MissingExtra: ``redis`` is not installed.

    All coroutines belong to one event loop.
    """

    name = "redis"
    on_disk = False
    shared = True
    purge_bound_s = None  # the server frees expired entries at times of its own, but never returns them

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "streaminfer",
        keys: KeyProvider | None = None,
        invalidate: bool = False,
        lease_s: float = 0.0,
        timeout_s: float = 0.05,
        erase_timeout_s: float = 5.0,
        breaker: CircuitBreaker | None = None,
        max_connections: int = 16,
        max_value_bytes: int = 16 * 2**20,
        tls_ca: str | None = None,
        tls_certificate: str | None = None,
        tls_key: str | None = None,
        wall_clock: Clock | None = None,
    ) -> None:
        self._tls = check_url(url, TlsFiles(tls_ca, tls_certificate, tls_key))
        check_instance("namespace", namespace, str, "a string")
        if not namespace or "{" in namespace or "}" in namespace:
            raise ValueError(expected("namespace", "a name without braces", namespace))
        check_instance("breaker", breaker, CircuitBreaker | None, "a CircuitBreaker")
        super().__init__(keys, wall_clock)
        self._redis = require("redis.asyncio", extra="redis", purpose="the Redis tier")
        self._url = url
        self._prefix = b"{" + namespace.encode() + b"}:"
        self._timeout_s = check_duration("timeout_s", timeout_s, positive=True)
        self._erase_timeout_s = check_duration("erase_timeout_s", erase_timeout_s, positive=True)
        self.breaker = breaker or CircuitBreaker(window=20, minimum_calls=5, open_s=5.0)
        self._max_connections = check_count("max_connections", max_connections)
        self._max_value_bytes = check_count("max_value_bytes", max_value_bytes)
        self.namespace = namespace
        parts = urlsplit(url)
        self.place = f"{parts.hostname or ''}:{parts.port or ''}{parts.path} {namespace}"
        check_instance("invalidate", invalidate, bool, "True or False")
        self.notices = RedisNotices(self._prefix + b"n", self._records, self._blocking) if invalidate else None
        self.lease_s = check_duration("lease_s", lease_s)
        self._client: Any = None
        self._sealer: ThreadPoolExecutor | None = None

    async def start(self) -> None:
        """Prepare the tier; the first operation connects, so the server may start later.

        Raises:
            RuntimeError: the tier runs already.
        """
        if self._client is not None:
            raise RuntimeError("the Redis tier runs already")
        self._client = self._connect(self._max_connections)
        if self.encrypted:  # a key provider may block
            self._sealer = ThreadPoolExecutor(1, thread_name_prefix="streaminfer-seal")
        if self.notices is not None:
            self.notices.start(self._connect(1))

    async def stop(self) -> None:
        """Close the connections; idempotent. Operations in flight end as misses."""
        client, self._client = self._client, None
        sealer, self._sealer = self._sealer, None
        try:
            if self.notices is not None:
                await self.notices.stop()
            if sealer is not None:
                await asyncio.wrap_future(sealer.submit(int))  # waits for the running one without blocking the loop
                sealer.shutdown(wait=True)
        finally:  # also if a key provider hangs until the stop is cancelled
            if sealer is not None:
                sealer.shutdown(wait=False)
            if client is not None:
                await close(client)

    async def erase(self, *, subject: str | None = None, tag: str | None = None) -> int:
        """Remove all entries of a subject or with a tag; checks every entry of the namespace.

        Returns:
            The number of removed entries; those that the server had already removed as expired do not count.

        Raises:
            TypeError: not exactly one of the two is given.
            BackendError, CircuitOpen: the server did not do it; some entries may still be there.
            Closed: the tier does not run.
        """
        kind, text = selection(subject, tag)
        label = b"l" + kind + self._records.name(kind, text)
        await self._demand(self._call, "unlink", self._prefix + b"g")  # so that puts in flight have no effect
        total = 0
        async for keys in self._entries(ERASE_CHUNK):
            erased = await self._demand(self._script, ERASE, label, *keys)
            total += erased
            self._counters.erased += erased
        await self._demand(self._announce, Notice(subject=subject, tag=tag))
        return total

    async def inventory(self, classes: Iterable[str] = ()) -> list[Held] | None:
        """Return the entries of the namespace by data class, in steps of 256 keys, so that the server can serve others.

        Args:
            classes: names of data classes. The server may have only keyed hashes of them; others appear as ``"?"``.

        Returns:
            The entries; ``None`` if the server has more than 100,000 keys, because checking them would take too long.

        Raises:
            BackendError, CircuitOpen: the server did not respond.
            Closed: the tier does not run.
        """
        if await self._demand(self._call, "dbsize") > MAX_COUNTED_KEYS:
            return None
        class_names = {self._records.name(b"c", name): name for name in ("", *classes)}
        seen: set[bytes] = set()
        by_class: dict[str, list[tuple[int, int]]] = {}
        async for keys in self._entries(SCAN_CHUNK):
            unseen = set(keys) - seen  # a scan may name a key twice
            seen |= unseen
            for name, stored_ns, size in await self._demand(self._script, LOOK, *unseen):
                data_class = class_names.get(name, "?" if self.encrypted else str(name[2:], "utf-8", "replace"))
                by_class.setdefault(data_class, []).append((int(stored_ns), size))
        return [Held(name, len(rows), min(rows)[0], sum(size for _, size in rows)) for name, rows in by_class.items()]

    async def take_lease(self, key: str | bytes, token: bytes) -> bool:
        """Take the lease of a key; return whether to compute."""
        return bool(await self._lease(TAKE, key, token))

    async def open_lease(self, key: str | bytes, token: bytes) -> None:
        """End a lease without an entry."""
        await self._lease(OPEN, key, token)

    async def _lease(self, script: str, key: str | bytes, token: bytes) -> Any:
        lease_ms = min(max(round(self.lease_s * 1e3), 1), MAX_TTL_MS)
        arguments = (self._prefix, self._records.name(b"k", key), token, lease_ms)
        return await self._attempt(1, self._script, script, *arguments)

    def hear(self, listener: Callable[[Notice], object]) -> None:
        """Call ``listener`` with others' deletions and erasures while the tier runs; needs ``invalidate``."""
        if self.notices is not None:
            self.notices.listeners.append(listener)

    def scan(self) -> Iterator[RecordCopy]:
        """Yield every copy of a record in any key of the namespace, of any type; SCAN finds the keys, not an index.

        Callable in any thread, whether or not the tier runs; blocks, on a separate connection.

        Raises:
            BackendError: the server did not respond.
        """
        redis = require("redis", extra="redis", purpose="the Redis tier")
        try:
            with blocking_client_of(redis, self._url, timeout_s=self._erase_timeout_s, tls=self._tls) as server:
                for part in _read_raw(server, self._prefix):
                    yield from self._records.copies(part, "redis key")
        except self._redis.RedisError as error:
            raise BackendError(f"the Redis tier {self.namespace!r} failed: {text_of_error(error)}") from error

    async def _entries(self, chunk: int) -> AsyncIterator[list[bytes]]:
        """Yield the keys of all entries that exist during the whole scan, about ``chunk`` at once."""
        pattern = _literally(self._prefix + b"e") + b"*"
        cursor = -1
        while cursor:
            cursor, keys = await self._demand(self._call, "scan", max(cursor, 0), pattern, chunk)
            if keys:
                yield keys

    async def _get(self, key: str | bytes) -> Entry | None:
        name = self._records.name(b"k", key)
        try:
            record = await self._server().hget(self._prefix + b"e" + name, b"d")
        except self._redis.ResponseError as error:
            if WRONG_TYPE in str(error):  # remove a foreign value, like a corrupt record
                await self._drop(name)
            raise
        if record is None:
            return None
        try:
            entry = await self._blocking(self._records.unpack, name, record)
        except CorruptRecord as error:
            self._counters.unreadable += 1
            self._counters.last_error = text_of_error(error)
            await self._drop(name)
            return None
        return None if entry.is_expired(self.wall_clock()) else entry

    async def _drop(self, name: bytes) -> None:
        await self._server().unlink(self._prefix + b"e" + name)

    async def _put(self, key: str | bytes, entry: Entry | None) -> bool:
        name = self._records.name(b"k", key)
        if entry is None:
            await self._drop(name)
            return True
        try:
            return await self._put_record(name, entry)
        except self._redis.ResponseError:  # for example a full server, which can still delete
            with suppress(self._redis.ResponseError):
                await self._drop(name)  # the old entry is not the latest value any more
            raise

    async def _put_record(self, name: bytes, entry: Entry) -> bool:
        token = await self._script(BEGIN, self._prefix, os.urandom(16))
        record = await self._blocking(self._records.pack, name, entry)
        now_ns = self.wall_clock()
        if not 0 < len(record) <= self._max_value_bytes or entry.is_expired(now_ns):
            self._counters.rejected += 1
            await self._drop(name)  # the old entry is not the latest value any more
            return False
        ttl_ms = -1
        if entry.expires_ns is not None:
            ttl_ms = min((entry.expires_ns - now_ns) // 10**6 + 1, MAX_TTL_MS)
        places = [(b"t", tag) for tag in sorted(entry.tags)]
        if entry.subject is not None:
            places.append((b"s", entry.subject))
        labels = [kind + self._records.name(kind, text) for kind, text in places]
        about = self._records.name(b"c", entry.data_class), entry.stored_ns
        stored = await self._script(PUT, self._prefix, name, record, ttl_ms, *about, token, now_ns, *labels)
        if stored != 1:
            self._counters.rejected += 1
            self._counters.last_error = "not put: something was erased meanwhile, or a later value is stored"
            return False
        self._counters.stored += 1
        return True

    async def _delete(self, key: str | bytes) -> bool:
        name = self._records.name(b"k", key)
        await self._server().unlink(self._prefix + b"g")  # so that puts in flight have no effect
        self._counters.erased += await self._server().unlink(self._prefix + b"e" + name)
        await self._announce(Notice(key=key))
        return True

    async def _announce(self, notice: Notice) -> None:
        """Publish a notice; call it after the deletion, so that receivers do not find the entry here."""
        if self.notices is not None:
            await self._server().publish(self.notices.channel, await self.notices.record(notice))

    async def _attempt(self, otherwise: T, operation: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run an operation within the timeout, if the breaker permits."""
        limit = asyncio.timeout(self._timeout_s)
        try:
            self._server()
            async with self.breaker.guard(), limit:
                try:
                    return await operation(*args)
                except self._redis.ResponseError as error:  # the server responds and can serve other operations
                    if not self._is_of_this_operation(error):
                        raise
                    self._counters.failed(error)
        except (CircuitOpen, Closed):
            self._counters.skipped += 1
        except Exception as error:  # noqa: BLE001 - whatever a broken server or provider leads to: a miss, counted
            self._counters.failed(error_of_limit(error, limit, self._timeout_s))
        return otherwise

    def _is_of_this_operation(self, error: Exception) -> bool:
        """Return whether the error concerns one key (wrong type) or writes only (full, a replica, unable to save)."""
        no_writes = isinstance(error, (self._redis.OutOfMemoryError, self._redis.ReadOnlyError))
        return no_writes or WRONG_TYPE in str(error) or str(error).startswith(NO_WRITES)

    async def _demand(self, operation: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run a step of an erasure, whose failure the caller must know."""
        self._server()
        limit = asyncio.timeout(self._erase_timeout_s)
        try:
            async with self.breaker.guard(), limit:
                return await operation(*args)
        except (CircuitOpen, Closed):
            raise
        except Exception as caught:
            error = error_of_limit(caught, limit, self._erase_timeout_s)
            self._counters.failed(error)
            raise BackendError(f"the Redis tier {self.namespace!r} failed: {text_of_error(error)}") from caught

    def _server(self) -> Any:
        if self._client is None:  # not started, or stopped
            raise Closed("the Redis tier does not run")
        return self._client

    def _connect(self, max_connections: int) -> Any:
        return client_of(
            self._redis, self._url, max_connections=max_connections, wait_s=self._erase_timeout_s, tls=self._tls
        )

    async def _call(self, name: str, *args: Any) -> Any:
        return await getattr(self._server(), name)(*args)

    async def _script(self, source: str, *args: Any) -> Any:
        return await self._server().register_script(source)(args=args)

    async def _blocking(self, operation: Callable[..., T], *args: Any) -> T:
        if self._sealer is None:
            return operation(*args)
        return await asyncio.wrap_future(self._sealer.submit(operation, *args))

    def __repr__(self) -> str:
        return f"<RedisTier({self.namespace!r}, {'running' if self._client else 'stopped'})>"


def _literally(text: bytes) -> bytes:
    """Return a pattern that matches exactly this text."""
    return b"".join(b"\\" + bytes((byte,)) if byte in b"*?[]\\^-" else bytes((byte,)) for byte in text)


def _read_raw(server: Any, prefix: bytes) -> Iterator[bytes]:
    """Yield each key that begins with a prefix, and all its bytes; SCAN finds the keys, not an index.

    Args:
        server: a blocking client.
        prefix: of the keys.
    """
    for key in server.scan_iter(match=_literally(prefix) + b"*", count=SCAN_CHUNK):
        yield key
        match server.type(key):
            case b"string":
                yield server.get(key) or b""
            case b"hash":
                for name, value in server.hscan_iter(key, count=SCAN_CHUNK):
                    yield from (name, value)
            case b"set":
                yield from server.sscan_iter(key, count=SCAN_CHUNK)
            case b"zset":
                yield from (member for member, _ in server.zscan_iter(key, count=SCAN_CHUNK))
            case b"list":
                yield from server.lrange(key, 0, -1)
            case b"stream":
                for _, fields in server.xrange(key):
                    yield from (*fields, *fields.values())
