"""Policies of a running batcher: a new one takes over when what it decides with is loaded."""

import asyncio
from collections.abc import Callable

from streaminfer._runtime.loops import is_virtual
from streaminfer.batching.dispatcher import Dispatcher
from streaminfer.batching.policy import Greedy, Policy, adapt_policy

__all__ = ["PolicyChange"]


class PolicyChange:
    """Gives a dispatcher the policy that its batcher was configured with.

    Not thread-safe. Where Numba has to compile for seconds what a policy decides with, the greedy one sends the batches
    meanwhile: the event loop goes on.

    Args:
        dispatcher: which releases batches.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._loading: asyncio.Task[None] | None = None

    def begin(self, policy: Policy, max_batch_size: int, loop: asyncio.AbstractEventLoop | None) -> None:
        """Let a policy take over, at once if it can decide.

        Args:
            policy: the policy.
            max_batch_size: of the greedy one meanwhile.
            loop: on which requests are served; ``None``: on none yet, so that the first one waits for the policy.
        """
        self.cancel()
        prepare = adapt_policy(policy).prepare
        if loop is None or loop.is_closed() or prepare is None or prepare(wait=is_virtual(loop)):
            self._dispatcher.set_policy(policy)
        else:
            self._dispatcher.set_policy(Greedy(max_batch_size))
            self._loading = loop.create_task(self._load(policy, prepare))
        if loop is not None:
            self._dispatcher.schedule()  # the instant that the previous policy named is void

    def complete(self, policy: Policy) -> None:
        """Wait until a policy that was about to take over, or else the present one, can decide; blocks the loop.

        Args:
            policy: with which the batcher was configured.
        """
        if self._loading is not None:  # its loop has ended
            self.cancel()
            self._dispatcher.set_policy(policy)
        prepare = self._dispatcher.expectations.offered.prepare
        if prepare is not None:
            prepare(wait=True)

    def cancel(self) -> None:
        """Leave the dispatcher with the policy that it has."""
        loading, self._loading = self._loading, None
        if loading is not None and not loading.get_loop().is_closed():
            loading.cancel()

    async def _load(self, policy: Policy, prepare: Callable[..., bool]) -> None:
        await asyncio.to_thread(prepare, wait=True)
        self._loading = None
        self._dispatcher.set_policy(policy)
        self._dispatcher.schedule()
