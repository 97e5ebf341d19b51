"""Load the kernels, or compile those that were not compiled ahead of time, before they are used."""

from collections.abc import Callable

__all__ = ["kernel_loads", "warmup"]


def kernel_loads() -> dict[str, Callable[[], object]]:
    """Return what loads the kernels of each part, by its name."""
    from streaminfer.batching.planner import kernel_loader  # noqa: PLC0415 - loaded when needed
    from streaminfer.placement.solver import kernels as placement_kernels  # noqa: PLC0415
    from streaminfer.simulation.devices import optimum  # noqa: PLC0415

    return {
        "planner": kernel_loader.load,
        "offline optimum": optimum.load_kernel,
        "placement": placement_kernels.warm_up,
    }


def warmup() -> None:
    """Load every kernel; where none were compiled ahead of time, Numba compiles them for some seconds.

    Numba keeps on disk what it compiled, so that the next process on the machine loads it. A `Stack` does the same for
    what it serves with when it starts. Off the event loop: ``await asyncio.to_thread(streaminfer.warmup)``.
    Thread-safe.

    Raises:
        MissingExtra: no kernels were compiled ahead of time, nor is Numba installed.
    """
    for load in kernel_loads().values():
        load()
