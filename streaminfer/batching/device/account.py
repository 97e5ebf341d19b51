"""Counters of one model's use of a device."""

from collections.abc import Hashable, Mapping

import attrs

from streaminfer.batching.device.statistics import DeviceModelStatistics

__all__ = ["Account", "model_statistics"]


@attrs.define
class Account:
    """Counters of one model's use of a device; `DeviceModelStatistics` describes each."""

    batches: int = 0
    busy_s: float = 0.0
    waits: int = 0
    longest_wait_s: float = 0.0
    loads: int = 0
    load_s: float = 0.0
    promoted: int = 0


def model_statistics(
    accounts: Mapping[str, Account], slowdowns: Mapping[tuple[Hashable, Hashable], float]
) -> dict[str, DeviceModelStatistics]:
    """Return a frozen snapshot of each account by the name of its model, sorted.

    Args:
        accounts: by name of the model.
        slowdowns: by model and other model, how many times as long a batch of the first takes beside the other.
    """
    return {
        name: DeviceModelStatistics(
            **attrs.asdict(account),
            slowdowns={str(other): how for (model, other), how in slowdowns.items() if model == name},
        )
        for name, account in sorted(accounts.items())
    }
