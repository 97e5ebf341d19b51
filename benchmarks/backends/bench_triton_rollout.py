"""A new version of a model rolled out under load, 50 times: how many requests were lost, and how many answers wrong.

python benchmarks/run.py triton_rollout [--rounds N] [--protocol grpc|http] [--shared-memory]

The server is a real Triton, the stack a cache, a batcher and `TritonBackend` without a version; `servers.rollout` says
what is done and what is wrong. Bar: 0 lost, 0 wrong; the run ends with 1 where it is missed.
"""

import argparse
import asyncio
import sys
import time

from servers.rollout import MODEL, roll_out
from servers.triton_server import TritonServer

import streaminfer as si
from streaminfer.backends.triton import TritonBackend


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
    way = f"{asked.protocol}{', shared memory' if asked.shared_memory else ''}"
    print(
        f"{way}: {report.rounds} roll-outs in {took_s:.0f} s, "
        f"{report.answered.total()} requests, {report.from_cache} of them from the cache, "
        f"{len(report.answered)} versions: {report.lost.total()} lost, {len(report.wrong)} wrong"
    )
    for error, count in report.lost.most_common(5):
        print(f"  {count} × {error}")
    for one in report.wrong[:5]:
        print(f"  {one}")
    return 1 if report.lost or report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
