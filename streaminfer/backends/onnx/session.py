"""One onnxruntime session as a worker: takes a batch, and returns rows."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from streaminfer._internal._named_rows_cy import named_rows
from streaminfer.backends.onnx.bfloat16 import run_with_bfloat16
from streaminfer.backends.onnx.binding import BoundRuns
from streaminfer.backends.priority import BatchPriority
from streaminfer.backends.signature import Signature, TensorSpec, describe
from streaminfer.errors import BackendError, StreamInferError
from streaminfer.request import Batch

__all__ = ["SessionWorker", "stack_example"]

Arrays = Mapping[str, npt.NDArray[Any]]
Shapes = tuple[tuple[str, tuple[int, ...], np.dtype[Any]], ...]
"""Name, shape and dtype of each input of a run."""

MAX_SHAPES = 32
"""Number of shapes to remember: the sizes of a batcher with a few length buckets."""


@attrs.define(eq=False, kw_only=True)
class SessionWorker:
    """One onnxruntime session and its settings for a batch.

    Args:
        session: the ``onnxruntime.InferenceSession``.
        name: the model's name, for messages.
        signature: the model's inputs and outputs.
        shared: the inputs that every run is fed.
        warmup: batches for :meth:`warm`.
        new_options: creates the ``onnxruntime.RunOptions`` of a run.
        bound: runs on reused memory; ``None``: plain runs.
        priority: priority of plain runs.

    Attributes:
        shapes: shapes of successful runs, the latest :data:`MAX_SHAPES` that were new.
    """

    _session: Any
    _name: str
    _signature: Signature
    _shared: dict[str, npt.NDArray[Any]]
    _warmup: Sequence[Arrays]
    _new_options: Callable[[], Any]
    _bound: BoundRuns | None
    _priority: BatchPriority
    shapes: dict[Shapes, None] = attrs.field(factory=dict)
    _is_forked: bool = attrs.field(default=False, init=False)

    def warm(self, check: Callable[[], None] = lambda: None) -> None:
        """Run the warm-up batches, so that onnxruntime plans its memory for these sizes.

        Args:
            check: raises if the session is no longer wanted; called before each batch.

        Raises:
            BackendError: the model failed on a batch, or the session was created before a fork.
        """
        if self._session is None:
            return
        self._check_process()
        for inputs in self._warmup:
            check()
            try:
                self._run(inputs, self._new_options(), record=True)
            except Exception as error:
                shapes = ", ".join(f"{name} {describe(value)}" for name, value in inputs.items())
                raise BackendError(
                    f"{self._name}: warm-up with {shapes} failed (where the model does not accept every size, "
                    f"example= gives the inputs of a request): {error}"
                ) from error
        if self._bound is not None:
            self._bound.record_again(self._new_options)

    def without_session(self) -> "SessionWorker":
        """Return a copy without the session, which a running batch keeps; the copy remembers the shapes."""
        return attrs.evolve(self, session=None, bound=None)

    def try_out(self, inputs: Arrays) -> None:
        """Run a batch and split its outputs into rows, only to see whether that works.

        Raises:
            BackendError: the run failed, or returned another number of rows.
        """
        axes = self._signature.batch_axes
        rows = next(value.shape[axes[name]] for name, value in inputs.items())
        try:
            self._cut(self._run(inputs, self._new_options(), record=True), rows)
        except BackendError:
            raise
        except Exception as error:
            raise self._failure(rows, error) from error

    def forget(self) -> None:
        """Make all later runs raise: after a fork, onnxruntime's threads and GPU belong to the parent."""
        self._is_forked = True

    def _check_process(self) -> None:
        if self._is_forked:
            raise BackendError(
                f"{self._name}: its session was made before this process was forked, and onnxruntime does not outlive "
                "a fork: make the backend in the forked process"
            )
        if self._session is None:
            raise BackendError(f"{self._name}: its session is not in memory: await load() first")

    def renew(self) -> "SessionWorker":
        """Return a worker with the same session, which several threads may run at once, and new reused memory."""
        bound = None if self._bound is None else self._bound.renew()
        return attrs.evolve(self, bound=bound, shapes=self.shapes.copy())

    def infer(self, batch: Batch, options: Any, *, record: bool = False) -> Any:
        """Assemble the inputs of a batch, run the model, and split the outputs into rows.

        Args:
            batch: the batch; its inputs are read here, once.
            options: the ``onnxruntime.RunOptions``, with which the run can be ended early.
            record: whether this is a warm-up batch or a measured batch, which CUDA graphs record.

        Returns:
            One result per row: an array, or a mapping of output name to array, all of them views. If the batch has
            ``whole_outputs``: a mapping of all outputs by name, those whole and the others split into rows.

        Raises:
            BackendError: the model failed, or returned another number of rows.
        """
        rows = len(batch.rows)
        try:
            inputs = self._signature.batch_by_name(batch.inputs, self._name)
            if self._signature.rows_per_run is not None:
                return self._infer_in_runs(inputs, rows, self._signature.rows_per_run, options, record=record)
            outputs = self._run(inputs, options, record=record, device_outputs=batch.whole_outputs)
            if batch.whole_outputs:
                return self._columns(outputs, batch.size, rows, batch.whole_outputs)
            return self._cut(outputs, batch.size)[:rows]
        except StreamInferError:
            raise
        except Exception as error:
            raise self._failure(rows, error) from error

    def _run(
        self, inputs: Arrays, options: Any, *, record: bool, device_outputs: frozenset[str] = frozenset()
    ) -> list[Any]:
        self._check_process()
        if self._bound is not None:
            outputs: list[Any] = self._bound.run(
                {**self._shared, **inputs}, options, record=record, device_outputs=device_outputs
            )
        else:
            feed = self._shared.copy()
            for name, value in inputs.items():
                feed[name] = np.ascontiguousarray(value)
            if self._signature.has_bfloat16:
                outputs = run_with_bfloat16(self._session, self._signature, feed, options)
            else:
                outputs = self._priority.call(self._session.run, self._signature.output_names, feed, options)
        self._remember(inputs)
        return outputs

    def _remember(self, inputs: Arrays) -> None:
        shapes = tuple([(name, value.shape, value.dtype) for name, value in inputs.items()])
        if shapes not in self.shapes:
            self.shapes[shapes] = None
            if len(self.shapes) > MAX_SHAPES:
                self.shapes.pop(next(iter(self.shapes)), None)

    def _cut(self, outputs: list[Any], rows: int) -> Sequence[Any]:
        specs = self._signature.outputs
        columns = [self._column(spec, value, rows) for spec, value in zip(specs, outputs, strict=True)]
        if len(columns) == 1:
            return columns[0]
        return named_rows(self._signature.output_names, columns, rows)

    def _columns(self, outputs: list[Any], size: int, rows: int, whole_outputs: frozenset[str]) -> Mapping[str, Any]:
        """Return the outputs by name: some whole, the others split into rows."""
        return {
            spec.name: value if spec.name in whole_outputs else self._column(spec, value, size)[:rows]
            for spec, value in zip(self._signature.outputs, outputs, strict=True)
        }

    def _column(self, spec: TensorSpec, value: Any, rows: int) -> Sequence[Any]:
        axis = spec.batch_axis
        if axis is None:
            return [_protected(value) for _ in range(rows)]  # several callers get the same value
        if isinstance(value, np.ndarray):
            if -value.ndim <= axis < value.ndim and value.shape[axis] == rows:
                return list(value if axis == 0 else value.transpose(_axis_first(axis % value.ndim, value.ndim)))
        elif isinstance(value, list) and axis == 0 and len(value) == rows:
            return value
        raise BackendError(
            f"{self._name}: output {spec.name!r}: expected {rows} rows on axis {axis}, got {describe(value)}; "
            "batch_axes= names the batch axis of an output, shared_outputs= an output of the whole batch"
        )

    def _infer_in_runs(self, inputs: Arrays, rows: int, rows_per_run: int, options: Any, *, record: bool) -> list[Any]:
        """Run a model of a fixed batch size as often as needed; copies of the last row fill up the last run."""
        axes = self._signature.batch_axes
        results: list[Any] = []
        for start in range(0, rows, rows_per_run):
            indexes = np.minimum(np.arange(start, start + rows_per_run), rows - 1)
            inputs_of_run = {name: np.take(value, indexes, axis=axes[name]) for name, value in inputs.items()}
            try:
                results.extend(
                    self._cut(self._run(inputs_of_run, options, record=record), rows_per_run)[: rows - start]
                )
            except Exception as error:
                if rows_per_run > 1 or options.terminate:  # the remaining rows would end the same way
                    raise
                results.append(error if isinstance(error, StreamInferError) else self._failure(1, error))
        return results

    def _failure(self, rows: int, error: Exception) -> BackendError:
        failure = BackendError(f"{self._name} failed on a batch of {rows}: {type(error).__name__}: {error}")
        failure.__cause__ = error
        return failure


def _protected(value: Any) -> Any:
    """Return an output that several callers can share: arrays become read-only, lists and mappings are copied."""
    if isinstance(value, np.ndarray):
        value.flags.writeable = False
    elif isinstance(value, list):
        return [_protected(one) for one in value]
    elif isinstance(value, dict):
        return value.copy()
    return value


@functools.cache
def _axis_first(first: int, axes: int) -> tuple[int, ...]:
    """Return the order of axes that puts one axis first; ``numpy.moveaxis`` takes ten times as long to find it."""
    return first, *(other for other in range(axes) if other != first)


def stack_example(signature: Signature, example: Any, rows: int) -> Arrays:
    """Return a batch of ``rows`` copies of the same request.

    Args:
        signature: the model's inputs and outputs.
        example: one request's inputs; ``None``: zeros and empty strings, with free sizes set to 1.
        rows: the batch size.

    Raises:
        ValueError: the example does not fit the model.
    """
    example = signature.example_by_name(example)
    dtypes = {spec.name: spec.dtype for spec in signature.inputs}
    return {
        name: np.stack([np.asarray(example[name], dtypes[name])] * rows, axis=axis)
        for name, axis in signature.batch_axes.items()
        if name in example
    }
