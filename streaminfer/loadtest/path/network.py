"""Network profiles as data, and simulated links that behave like them, repeatable by seed.

*Design.* A link is a queue at a rate limit, then a delay with jitter, then a loss process. A packet waits until the
packets before it are sent; the link drops a packet that would wait longer than ``queue_s``. Packets keep their order,
as through one queue. With a trace, a packet has the delay of the last recorded message sent before it, so outages have
their recorded time and length. The trace repeats: its first message follows its last one after a mean gap.

*Invariants.* Arrival times never decrease. Equal seeds and equal calls give equal arrivals.

*Complexity.* O(1) per burst of packets; O(log n) with a trace of n messages.
"""

import functools
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from streaminfer._internal.distributions.real_arrays import real_array
from streaminfer._internal.validation import (
    check_count,
    check_duration,
    check_duration_ns,
    check_instance,
    check_whole,
    expected,
    field_check,
    is_name,
    make_from_table,
)
from streaminfer.loadtest.devices.delivery import check_loss, check_run, draw_jitter_ns
from streaminfer.loadtest.devices.library import list_profiles, load_profile
from streaminfer.loadtest.devices.loss import GilbertElliott
from streaminfer.loadtest.stored_arrays import load_arrays

__all__ = ["DelayTrace", "Link", "NetworkProfile", "network_names", "network_profile"]

_MAX_PACKETS = 1_000_000
_MAX_SIZE = 2**40


def _sent(values: ArrayLike) -> NDArray[np.float64]:
    return real_array("sent_s", values).copy()


def _delays(values: ArrayLike) -> NDArray[np.float64]:
    return real_array("delay_s", values).copy()


@attrs.frozen(eq=False)
class DelayTrace:
    """Measured one-way delays.

    Attributes:
        sent_s: send time of each message, in seconds from the start of the trace, never decreasing.
        delay_s: delay of each message.
    """

    sent_s: NDArray[np.float64] = attrs.field(converter=_sent)
    delay_s: NDArray[np.float64] = attrs.field(converter=_delays)

    def __attrs_post_init__(self) -> None:
        shape = self.sent_s.shape
        if len(shape) != 1 or not shape[0] or shape != self.delay_s.shape:
            raise ValueError(expected("sent_s", "one value per delay, at least one", self.sent_s))
        if not (np.isfinite(self.sent_s).all() and (np.diff(self.sent_s) >= 0).all() and self.sent_s[0] >= 0):
            raise ValueError(expected("sent_s", "finite seconds ≥ 0 that never decrease", self.sent_s))
        if not (np.isfinite(self.delay_s).all() and (self.delay_s >= 0).all()):
            raise ValueError(expected("delay_s", "finite seconds ≥ 0", self.delay_s))

    @classmethod
    def from_round_trips(cls, sent_ms: ArrayLike, rtt_ms: ArrayLike) -> "DelayTrace":
        """Return the trace of measured round trips, with half of each as the one-way delay.

        Args:
            sent_ms: send time of each message, in milliseconds.
            rtt_ms: round-trip time of each message, in milliseconds; messages with NaN or infinity are left out.
        """
        sent, rtt = real_array("sent_ms", sent_ms), real_array("rtt_ms", rtt_ms)
        if rtt.shape != sent.shape or rtt.ndim != 1:
            raise ValueError(expected("rtt_ms", "one number for each of sent_ms", rtt))
        is_finite = np.isfinite(rtt)
        sent = sent[is_finite]
        return cls((sent - sent[:1].sum()) / 1e3, rtt[is_finite] / 2e3)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        run: int = 0,
        sent: str = "send_ms",
        rtt: str = "rtt_ms",
        offsets: str = "offsets",
    ) -> "DelayTrace":
        """Read measured round trips from an ``.npz`` file with one run, or several concatenated runs.

        Args:
            path: the file.
            run: number of the run.
            sent: name of the array of send times, in milliseconds.
            rtt: name of the array of round-trip times, in milliseconds.
            offsets: name of the array of positions at which the runs begin, and at which the last one ends; a file
                without it has one run.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file has no such array or run.
        """
        sent_ms, rtt_ms = load_arrays(path, sent, rtt, run=run, offsets=offsets)
        return cls.from_round_trips(sent_ms, rtt_ms)

    def delay_ns(self, at_ns: int) -> int:
        """Return the delay of a packet that is sent at an instant, counted from the start of the trace.

        Before the first message, the delay is that of the first message.
        """
        first_s, length_s = float(self.sent_s[0]), float(self.sent_s[-1] - self.sent_s[0])
        # when the trace repeats, its first message follows the last one after a mean gap
        period_s = length_s + length_s / max(self.sent_s.size - 1, 1) or 1.0
        position_s = max(at_ns / 1e9 - first_s, 0.0) % period_s
        index = int(np.searchsorted(self.sent_s, first_s + position_s, side="right")) - 1
        return round(float(self.delay_s[index]) * 1e9)


@attrs.frozen(kw_only=True)
class NetworkProfile:
    """An access network, one way.

    Attributes:
        name: name of the profile.
        rate: bits per second; ``None``: not limited.
        delay_s: fixed delay of every packet, in seconds.
        jitter_s: standard deviation of the random delay on top of it.
        loss: share of the packets that are lost.
        loss_run: mean number of successive packets that are lost together; 1: losses are independent.
        queue_s: seconds of traffic that the queue at the rate limit holds; packets beyond it are dropped.
        retransmits: most retransmissions of a packet that the network lost; a packet that the queue dropped has none.
        trace: measured delays, in place of ``delay_s`` and ``jitter_s``.
    """

    name: str = attrs.field(validator=field_check(check_instance, is_name, "a name"))
    rate: int | None = attrs.field(
        default=None, validator=field_check(check_count, at_least=1_000, at_most=10**15, optional=True)
    )
    delay_s: float = attrs.field(default=0.0, validator=field_check(check_duration))
    jitter_s: float = attrs.field(default=0.0, validator=field_check(check_duration))
    loss: float = attrs.field(default=0.0, validator=check_loss)
    loss_run: float = attrs.field(default=1.0, validator=check_run)
    queue_s: float = attrs.field(default=0.25, validator=field_check(check_duration))
    retransmits: int = attrs.field(default=2, validator=field_check(check_count, at_least=0, at_most=100))
    trace: DelayTrace | None = attrs.field(
        default=None,
        validator=field_check(check_instance, DelayTrace | None, "a DelayTrace or None"),
    )


@functools.cache
def network_names() -> tuple[str, ...]:
    """Return the names of the profiles in the library."""
    return list_profiles(__package__, "networks")


def network_profile(source: str | Path | NetworkProfile) -> NetworkProfile:
    """Return a profile from the library or from a TOML or JSON file; a profile is returned unchanged.

    Args:
        source: a name such as ``"lte"``; a path that ends in ``.toml`` or ``.json``; or a profile. A table ``trace`` in
            the file has the arguments of `DelayTrace.load`; its ``path`` is relative to the file.

    Raises:
        ValueError: no profile has this name, or the file holds an invalid one.
        OSError: the file cannot be read.
    """
    if isinstance(source, NetworkProfile):
        return source
    return load_profile(source, __package__, "networks", lambda data: _from_dict(data, Path(source).parent), "network")


def _from_dict(data: Mapping[str, Any], folder: Path) -> NetworkProfile:
    values = dict(data)
    if (trace := values.get("trace")) is not None:
        check_instance("trace", trace, lambda it: isinstance(it, Mapping) and "path" in it, "a table with a path")
        where = {"path": folder / os.path.expandvars(trace["path"])}
        values["trace"] = make_from_table(DelayTrace.load, {**trace, **where}, "trace")
    return make_from_table(NetworkProfile, values, "", "the profile")


class Link:
    """One direction of a network; a state machine.

    Args:
        profile: profile of the network.
        seed: seed of jitter and loss.
    """

    def __init__(self, profile: NetworkProfile, seed: int = 0) -> None:
        check_instance("profile", profile, NetworkProfile, "a NetworkProfile")
        self._profile = profile
        self._rng = random.Random(check_whole("seed", seed, "a whole number"))  # noqa: S311 - repeatable, not secret
        self._losses = GilbertElliott(profile.loss, profile.loss_run, self._rng)
        # packets that are sent a round trip after a run of losses do not shorten the run
        self._later_losses = GilbertElliott(profile.loss, profile.loss_run, self._rng)
        self._fixed_ns = check_duration_ns("delay_s", profile.delay_s)
        self._queue_ns = check_duration_ns("queue_s", profile.queue_s)
        self._start_ns: int | None = None
        self._free_ns = 0
        self._last_ns = 0

    @property
    def free_ns(self) -> int:
        """Instant at which all packets so far have left the queue at the rate limit; 0 without a rate limit."""
        return self._free_ns

    def send(self, size: int, now_ns: int) -> int | None:
        """Send a packet and return its arrival time; ``None`` if it is lost.

        Args:
            size: bytes of the packet.
            now_ns: send time, not before that of an earlier call.
        """
        arrived_ns, dropped, lost = self.send_burst(size, 1, now_ns)
        return None if dropped or lost else arrived_ns

    def send_burst(self, size: int, packets: int, now_ns: int) -> tuple[int, int, int]:
        """Send packets together; return the last arrival, and the numbers of dropped and of lost packets.

        The full queue drops packets; the network loses others behind the queue. All packets have the same delay.

        Args:
            size: bytes of all packets together.
            packets: number of packets, of equal size.
            now_ns: send time, not before that of an earlier call.
        """
        packets = check_count("packets", packets, at_most=_MAX_PACKETS)
        size = check_count("size", size, at_least=0, at_most=_MAX_SIZE)
        accepted, sent_ns = self._enqueue(max(size, 1) / packets, packets, now_ns)
        lost = self._losses.count(accepted)
        arrived_ns = sent_ns + self._delay_ns(sent_ns)
        if lost < accepted:
            self._last_ns = max(self._last_ns, arrived_ns)
        return max(self._last_ns, arrived_ns), packets - accepted, lost

    def reserve(self, size: float, now_ns: int) -> int | None:
        """Put a packet into the queue to send it later; return when it may leave, ``None`` if the queue is full.

        Args:
            size: bytes of the packet.
            now_ns: instant of the reservation, not before that of an earlier call.
        """
        accepted, sent_ns = self._enqueue(max(size, 1), 1, now_ns)
        return sent_ns if accepted else None

    def send_alone(self, now_ns: int) -> tuple[int, bool]:
        """Return the arrival time of a packet that does not wait in the queue, and whether it is lost."""
        return now_ns + self._delay_ns(now_ns), self._later_losses.loses()

    def delay_ns(self, now_ns: int) -> int:
        """Return the delay, without jitter, of a packet that is sent at an instant."""
        if self._start_ns is None:
            self._start_ns = now_ns
        trace = self._profile.trace
        return self._fixed_ns if trace is None else trace.delay_ns(now_ns - self._start_ns)

    def _enqueue(self, size: float, packets: int, now_ns: int) -> tuple[int, int]:
        """Put packets of equal size into the queue; return how many it accepts, and when the last one leaves."""
        if (rate := self._profile.rate) is None:
            return packets, now_ns
        each_ns = size * 8e9 / rate
        waits_ns = max(0, self._free_ns - now_ns)
        room = int((self._queue_ns - waits_ns) / each_ns) + 1 if waits_ns <= self._queue_ns else 0
        accepted = min(packets, room)
        sent_ns = now_ns + waits_ns + round(accepted * each_ns)
        if accepted:
            self._free_ns = sent_ns
        return accepted, sent_ns

    def _delay_ns(self, now_ns: int) -> int:
        delay_ns = self.delay_ns(now_ns)
        if self._profile.trace is not None:
            return delay_ns
        return delay_ns + draw_jitter_ns(self._profile.jitter_s, self._rng)
