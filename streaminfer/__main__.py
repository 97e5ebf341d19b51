"""Command line: ``streaminfer warmup`` and ``streaminfer loadtest``, also as ``python -m streaminfer``."""

import argparse
import sys
import time
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: command-line arguments; ``None``: those of the process.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="streaminfer", description="Predictable tail latency for ML inference.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "warmup",
        help="compile the kernels into Numba's cache, for an image build; nothing to do where the package has them",
    )
    load = commands.add_parser("loadtest", help="run a scenario of requests and judge the tail of their latency")
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] != ["loadtest"]:
        parser.parse_args(words)
        return _warm_up()
    from streaminfer.loadtest import cli  # noqa: PLC0415 - not to warm up

    cli.add_arguments(load)
    return cli.execute(parser.parse_args(words))


def _warm_up() -> int:
    from streaminfer._warmup import kernel_loads  # noqa: PLC0415 - not to parse arguments
    from streaminfer.batching.planner import kernel_loader  # noqa: PLC0415
    from streaminfer.errors import MissingExtra  # noqa: PLC0415

    ahead = kernel_loader.is_compiled_ahead()
    print("kernels: compiled ahead of time" if ahead else "kernels: compiled by Numba, once on a machine", flush=True)
    try:
        with kernel_loader.must_keep():
            for name, load in kernel_loads().items():
                began = time.perf_counter()
                print(f"  {name} ...", end=" ", flush=True)
                load()
                print(f"{time.perf_counter() - began:.1f} s", flush=True)
    except (MissingExtra, OSError) as error:
        print("failed", flush=True)
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
