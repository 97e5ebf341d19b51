"""`DnsDiscovery`: the replicas that a name resolves to, looked up at intervals.

*Design.* Each lookup compares the addresses with those of the previous lookup. A new address gets a replica, which
starts slowly. If an address is gone, its replica completes its requests and is stopped. New replicas are added before
old ones are removed, but a lookup waits for them an interval at most. Each start and each end has its own task, so a
server that hangs, or drains for long, does not delay the others; a start is cancelled when its address is gone. A
lookup that fails, or finds nothing, changes nothing: a name server that is down says nothing about the servers.

Lookups never block the event loop: without ``resolve`` the system's resolver runs in a thread of the loop's executor.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any

import attrs

from streaminfer._internal.error_log import Log
from streaminfer._internal.validation import check_duration, check_instance, field_check, is_name
from streaminfer._runtime.lifecycle import keep_running
from streaminfer._runtime.pending_calls import DeadlineCalls
from streaminfer.routing.replicas.replica import Replica

__all__ = ["DnsDiscovery", "Finder"]

_log = Log("streaminfer.routing")


async def _resolve(host: str) -> list[str]:
    """Return the addresses of a name, as the system resolves it."""
    addresses = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[4][0]) for address in addresses]


@attrs.frozen
class DnsDiscovery:
    """Discovery of replicas by a name.

    Args:
        host: the name to resolve, for instance of a headless Kubernetes service.
        make: a function of an address that returns its `Replica`.
        interval_s: seconds from the end of one lookup to the next.
        timeout_s: seconds that a lookup may take.
        resolve: an async function of the name that returns its addresses, as text; the default is the system's
            resolver, in a thread.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """

    host: str = attrs.field(validator=field_check(check_instance, is_name, "a name, not empty"))
    make: Callable[[str], Replica] = attrs.field(validator=field_check(check_instance, callable, "a function"))
    interval_s: float = attrs.field(default=10.0, kw_only=True, validator=field_check(check_duration, positive=True))
    timeout_s: float = attrs.field(default=5.0, kw_only=True, validator=field_check(check_duration, positive=True))
    resolve: Callable[[str], Awaitable[Iterable[str]]] = attrs.field(
        default=_resolve, kw_only=True, validator=field_check(check_instance, callable, "a function")
    )


@attrs.define(eq=False)
class Finder:
    """Keeps the replicas of `Replicas` equal to the addresses of a name.

    Args:
        discovery: the name and how to look it up.
        add_replica: adds a replica.
        remove_replica: removes the replica of a name.
        all_names: returns the names of all replicas, including those that the discovery did not find.

    Attributes:
        lookups: how often the name was resolved.
        failed: how many of these lookups failed, or found nothing.
    """

    _discovery: DnsDiscovery
    _add_replica: Callable[[Replica], Awaitable[None]]
    _remove_replica: Callable[[str], Awaitable[None]]
    _all_names: Callable[[], Collection[str]]
    _names: dict[str, str] = attrs.field(init=False, factory=dict)  # address → name of its replica
    _calls: DeadlineCalls = attrs.field(init=False, factory=DeadlineCalls)
    _starting: dict[str, asyncio.Task[None]] = attrs.field(init=False, factory=dict)  # address → start of its replica
    _leaving: set[asyncio.Task[None]] = attrs.field(init=False, factory=set)  # replicas, and starts that were cancelled
    _task: asyncio.Task[None] | None = attrs.field(init=False, default=None)
    _is_failing: bool = attrs.field(init=False, default=False)
    lookups: int = attrs.field(init=False, default=0)
    failed: int = attrs.field(init=False, default=0)

    async def look_up(self, *, strict: bool = False) -> BaseException | None:
        """Resolve the name once, and add and remove replicas accordingly.

        Args:
            strict: raise the error of a replica that cannot be added, instead of logging it.

        Returns:
            Why no address was found; ``None``: at least one was found.
        """
        self.lookups += 1
        try:
            addresses = await self._addresses()
        except Exception as failure:  # noqa: BLE001 - whatever a resolver raises, the replicas stay
            self.failed += 1
            if not self._is_failing:
                text = "%r was not resolved: the replicas stay as they are (%r)"
                _log.warning(text, self._discovery.host, failure, exc_info=failure)
            self._is_failing = True
            return failure
        self._is_failing = False
        for address in [address for address in self._starting if address not in addresses]:
            start = self._starting.pop(address)
            start.cancel()
            self._track(start)
        for address in addresses:
            if address not in self._names and address not in self._starting:
                if strict:
                    await self._add(address)
                else:
                    self._starting[address] = asyncio.get_running_loop().create_task(self._try_to_add(address))
        if self._starting:
            await asyncio.wait(self._starting.values(), timeout=self._discovery.interval_s)
        present = self._all_names()
        for address in [
            address for address, name in self._names.items() if not (address in addresses or name in present)
        ]:
            del self._names[address]  # its replica was removed by other means
        removable = max(len(present) - 1, 0)  # if no new replica could be added, one of the old ones stays
        for address in [address for address in self._names if address not in addresses][:removable]:
            self._track(asyncio.get_running_loop().create_task(self._leave(address)))
        return None

    def begin(self) -> None:
        """Look the name up every ``interval_s`` from now on."""
        self._task = keep_running(self._look_up_regularly, f"the discovery of {self._discovery.host!r}", _log.name)

    def cancel(self) -> list[asyncio.Future[Any]]:
        """Stop the lookups; return the cancelled tasks, also earlier ones, and the ends of replicas that leave."""
        ending = [*([] if self._task is None else [self._task]), *self._starting.values(), *self._calls]
        self._task = None
        self._starting.clear()
        for task in ending:
            task.cancel()
        return [*ending, *self._leaving]

    async def _look_up_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._discovery.interval_s)
            await self.look_up()

    async def _addresses(self) -> dict[str, None]:
        """Return the addresses, each once, in their order.

        Raises:
            LookupError: there is no address.
            Exception: the error of the resolver.
        """
        discovery = self._discovery
        resolved: Any = await self._calls.end_within(
            discovery.timeout_s, discovery.resolve(discovery.host), f"the resolver of {discovery.host!r}"
        )
        check_instance("resolve", resolved, lambda it: not isinstance(it, (str, bytes)), "a list of addresses from it")
        if addresses := dict.fromkeys(resolved):
            return addresses
        raise LookupError(f"{discovery.host!r} has no address")

    async def _add(self, address: str) -> None:
        replica = self._discovery.make(address)
        check_instance("make", replica, Replica, "a function that returns a Replica")
        await self._add_replica(replica)
        self._names[address] = replica.name

    async def _try_to_add(self, address: str) -> None:
        try:
            await self._add(address)
        except Exception as error:  # noqa: BLE001 - no caller waits for the end of this task
            _log.exception("the replica at %r could not be added; the next lookup tries again", address, exc_info=error)
        finally:
            if self._starting.get(address) is asyncio.current_task():
                del self._starting[address]

    def _track(self, task: asyncio.Task[None]) -> None:
        """Let a stop wait for the end of a task."""
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _leave(self, address: str) -> None:
        name = self._names.pop(address)  # here: if this task is cancelled before it begins, the address stays known
        try:
            await self._remove_replica(name)
        except Exception as error:  # noqa: BLE001 - no caller waits for the end of this task
            _log.exception("replica %r left and could not be stopped", name, exc_info=error)
