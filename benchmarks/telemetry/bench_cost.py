"""Cost meter on real ONNX models: sums that must be zero, and the savings of batching and caching.

    python benchmarks/run.py cost [--seconds 2] [--rounds 3]

Each model serves 32 callers in a closed loop, at a price of one per second, with batches of one (the baseline) and of
up to 32; then for the same time with pauses, and with a cache. Requests belong to five tenants. "Sum" is the sum of all
shares minus the charges of the batches, "bill" is busy + padding + idle minus the bill, in nanoseconds.
"""

import argparse
import asyncio
import statistics
import sys

from _lib.figures import Figure
from _lib.models import MODELS, Model

import streaminfer as si
from streaminfer.telemetry import CostStatistics

CALLERS = 32
SHARES = Figure("shares of the cost meter's tenants less the charges of their batches", form="{:.0f} ns", at_most=0)
BILL = Figure("busy, padding and idle time of the cost meter less its bill", form="{:.0f} ns", at_most=0)
PRICE = Figure("price of 1,000 responses on time, batches of up to 32", over="batches of one")


async def serve(model: Model, cap: int, seconds: float, pause_s: float, *, cached: bool = False) -> CostStatistics:
    meter = si.CostMeter(per_second=1.0, name=model.name)
    batcher = si.AdaptiveBatcher(max_batch_size=cap, slo_s=30.0, buckets=model.buckets)
    layers = [meter, si.EdgeCache(maxsize=10_000)] if cached else [meter]
    async with si.Stack(*layers, batcher, model.make()) as service:
        until = asyncio.get_running_loop().time() + seconds

        async def caller(number: int) -> None:
            sent = number
            while asyncio.get_running_loop().time() < until:
                await service(model.inputs[sent % len(model.inputs)], tenant=str(number % 5))
                sent += CALLERS
                if pause_s:
                    await asyncio.sleep(pause_s)

        await asyncio.gather(*(caller(number) for number in range(CALLERS)))
        return meter.statistics()


def differences(found: CostStatistics) -> tuple[int, int]:
    device = found.devices["device"]
    shares_ns = sum(row.cost_ns["device"] for row in found.tenants.values())
    charges_ns = device.busy_ns - device.running_ns
    return shares_ns - charges_ns, device.busy_ns + device.padding_ns + device.idle_ns - device.bill_ns


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    shares_ns = bills_ns = 0
    print(f"{'':44}{'per 1,000':>10}{'busy':>8}{'padding':>9}{'idle':>8}{'set-up':>8}{'rows':>9}{'sum':>6}{'bill':>6}")
    for make in MODELS.values():
        model = make()
        baseline = 1.0
        for cap, pause_s, cached in [(1, 0.0, False), (32, 0.0, False), (32, 0.05, False), (32, 0.0, True)]:
            runs = [
                asyncio.run(serve(model, cap, options.seconds, pause_s, cached=cached)) for _ in range(options.rounds)
            ]
            per_1000 = [run.per_1000_on_time for run in runs]
            middle = statistics.median(per_1000)
            baseline = middle if cap == 1 else baseline
            found = runs[per_1000.index(sorted(per_1000)[len(runs) // 2])]
            off = [differences(run) for run in runs]
            shares_ns += sum(abs(shares) for shares, _ in off)
            bills_ns += sum(abs(bill) for _, bill in off)
            words = f"{model.name}, batches of {cap}{', pauses' if pause_s else ''}{', cache' if cached else ''}"
            print(
                f"{words:44}{middle:10.4f}{found.busy / found.bill:8.1%}{found.padding / found.bill:9.1%}"
                f"{found.idle / found.bill:8.1%}{found.total.setup / max(found.busy, 1e-9):8.1%}{found.total.rows:9,}"
                f"{sum(abs(shares) for shares, _ in off):6}{sum(abs(bill) for _, bill in off):6}"
                f"   {middle / baseline:.2f} × batches of one ({min(per_1000):.4f} to {max(per_1000):.4f})"
            )
            if cap > 1 and not pause_s and not cached:
                PRICE.report([price / baseline for price in per_1000], case=model.name)
    is_met = SHARES.report(shares_ns)
    is_met &= BILL.report(bills_ns)
    return not is_met


if __name__ == "__main__":
    sys.exit(main())
