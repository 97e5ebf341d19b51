"""Roll-out of a new version of a model under load, 50 times: numbers of lost requests and wrong responses.

python benchmarks/run.py triton_rollout [--rounds N] [--protocol grpc|http] [--shared-memory]

The server is a real Triton; the stack has a cache, a batcher and `TritonBackend` without a version. `servers.rollout`
has the steps and the definition of wrong responses. The exit status is 1 if a bar is missed.
"""

import argparse
import asyncio
import sys
import time

from _lib.figures import Figure
from servers.rollout import MODEL, roll_out
from servers.triton_server import TritonServer

import streaminfer as si
from streaminfer.backends.triton import TritonBackend

NAMES = {"grpc": "gRPC", "http": "HTTP"}
LOST = Figure("requests lost while versions of a Triton model are rolled out", form="{:.0f}", at_most=0)
WRONG = Figure("wrong responses while versions of a Triton model are rolled out", form="{:.0f}", at_most=0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--protocol", choices=("grpc", "http"), default="grpc")
    parser.add_argument("--shared-memory", action="store_true")
    asked = parser.parse_args()
    si.warmup()
    with TritonServer([MODEL]) as server:
        url = server.grpc_url if asked.protocol == "grpc" else server.http_url
        backend = TritonBackend(url, MODEL, protocol=asked.protocol, shared_memory=asked.shared_memory)
        began = time.perf_counter()
        report = asyncio.run(roll_out(server, backend, asked.rounds))
        took_s = time.perf_counter() - began
    print(
        f"{report.rounds} roll-outs in {took_s:.0f} s, {report.answered.total()} requests, "
        f"{report.from_cache} of them from the cache, {len(report.answered)} versions"
    )
    for error, count in report.lost.most_common(5):
        print(f"  {count} × {error}")
    for one in report.wrong[:5]:
        print(f"  {one}")
    case = f"{NAMES[asked.protocol]}{', shared memory' if asked.shared_memory else ''}"
    total, note = report.answered.total(), f"{report.rounds} roll-outs"
    met = [
        LOST.report(report.lost.total(), case=case, of=total, note=note),
        WRONG.report(len(report.wrong), case=case, of=total, note=note),
    ]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
