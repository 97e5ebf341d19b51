"""Compiles ahead what would otherwise be compiled at first use."""

__all__ = ["warmup"]


def warmup() -> None:
    """Compiles every Numba kernel, which takes some seconds once a process.

    Without it a kernel is compiled at its first use: call this at start-up, off the event loop
    (``await asyncio.to_thread(streaminfer.warmup)``). Thread-safe.
    """
    from streaminfer.batching import optimum_kernels, padding  # noqa: PLC0415 - numba loads here and not before
    from streaminfer.batching.compiling import compile_kernels  # noqa: PLC0415
    from streaminfer.telemetry import kernels  # noqa: PLC0415

    compile_kernels()
    padding.compile_kernels()
    optimum_kernels.warm_up()
    kernels.warm_up()
