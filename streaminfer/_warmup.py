"""Loading of the kernels before their first use; kernels that were not compiled ahead of time are compiled."""

from collections.abc import Callable

__all__ = ["kernel_loads", "warmup"]


def kernel_loads() -> dict[str, Callable[[], object]]:
    """Return the functions that load the kernels, by the name of the part."""
    from streaminfer.batching.planner import kernel_loader  # noqa: PLC0415 - loaded when needed
    from streaminfer.placement.solver import kernels as placement_kernels  # noqa: PLC0415
    from streaminfer.simulation.devices import optimum  # noqa: PLC0415

    return {
        "planner": kernel_loader.load,
        "offline optimum": optimum.load_kernel,
        "placement": placement_kernels.warm_up,
    }


def warmup() -> None:
    """Load every kernel; if none were compiled ahead of time, Numba compiles them, which takes some seconds.

    Numba stores the compiled kernels on disk, so the next process on the machine only loads them. A `Stack` loads the
    kernels that it needs when it starts. Off the event loop: ``await asyncio.to_thread(streaminfer.warmup)``.
    Thread-safe.

    Raises:
        MissingExtra: no kernels were compiled ahead of time, and Numba is not installed.
    """
    for load in kernel_loads().values():
        load()
