"""Rewrites a model so that its short convolutions run once per batch instead of once per row.

Idea: ONNX Runtime computes a convolution row by row, each as a matrix product with one column per output position. A
row with few positions fills a fraction of the 16 columns that the processor computes at once, and a batch of 32 takes
32 times as long as one row: batching gains nothing. Here the rows of a batch are laid end to end on the axis of
positions, with the zeros of the padding between them, and one convolution computes them all. Outputs that cross the
border of two rows are cut off:

    (rows, channels, length) -> (1, channels, rows * block) -> convolution -> (rows, filters, positions)

Invariants: :mod:`~streaminfer.backends.onnx.fold_layout` decides where the rows lie, and when that pays. Each output is
the same sum as before, of the same terms in the same order of taps and channels. The processor may group the terms
differently, so outputs are equal up to rounding. A row of another length than the example's would be read as another
number of rows. The inputs of the folded model therefore have fixed lengths, and a `Reshape` that changes nothing fails
if such a row arises inside the model.

Related: Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing" (2006),
also apply the weights in one matrix product; theirs covers the windows of one image, this one every row.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from streaminfer._internal.files.whole_file import write_whole
from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import check_path, expected
from streaminfer.backends.onnx.fold_layout import Convolution, Layout, lay_out
from streaminfer.backends.onnx.model import CPU, find_source, load, make_options, read_specs
from streaminfer.backends.onnx.session import stack_example
from streaminfer.backends.signature import Signature, check_value

__all__ = ["FoldedModel", "fold_batch"]

LOWEST_OPSET = 11
"""Since this opset, `Pad` and `Slice` read their pads and limits as inputs."""
SKIPPED = 2
"""Limit of stride minus span: above it, with automatic padding, onnxruntime begins after a row's first position."""
TOLERANCE = {"float16": 1e-2, "float32": 1e-3, "float64": 1e-6}
"""Largest allowed difference, divided by the largest output, by dtype. Outputs of other dtypes must be equal."""

Arrays = dict[str, npt.NDArray[Any]]


@attrs.frozen
class FoldedModel:
    """Result of :func:`fold_batch`.

    Attributes:
        path: path of the folded model.
        folded: names of the convolutions that run once per batch.
        unchanged: number of convolutions that still run once per row.
        largest_difference: largest difference between the outputs of both models, divided by the largest output.
    """

    path: Path
    folded: tuple[str, ...]
    unchanged: int
    largest_difference: float


def fold_batch(
    path_or_bytes: str | os.PathLike[str] | bytes,
    target: str | os.PathLike[str],
    *,
    example: Any,
    batch_axes: Mapping[str, int] | None = None,
    shared_inputs: Mapping[str, npt.NDArray[Any]] | None = None,
) -> FoldedModel:
    """Write a model whose convolutions over few positions run once per batch; needs the extra ``fold``.

    Batches become cheaper, but not a single row. Measure both. A model without such convolutions gains nothing and is
    rejected. Before the file is written, the outputs of both models are compared on random rows; they must be equal up
    to rounding.

    The folded model takes only rows of the example's lengths. It is an ordinary ONNX model with the same inputs and
    outputs, for :class:`~streaminfer.backends.OnnxBackend`, Triton or onnxruntime. Weights in external files become
    part of it. Fold a model once, when its container image is built.

    Thread-safety: can be called from any thread.

    Args:
        path_or_bytes: the model's file, or its bytes. Its convolutions over one axis are folded; others stay.
        target: the file to write.
        example: one request's inputs, with the lengths that rows will have.
        batch_axes: as for :class:`~streaminfer.backends.OnnxBackend`.
        shared_inputs: as for :class:`~streaminfer.backends.OnnxBackend`.

    Raises:
        MissingExtra: onnx or onnxruntime is not installed.
        FileNotFoundError: there is no such model.
        TypeError: an argument is of the wrong type.
        ValueError: an argument does not fit the model, the model has no convolution for which this pays, or a folded
            convolution changes an output by more than rounding. Nothing is written then.
    """
    onnx = require("onnx", extra="fold", purpose="fold_batch")
    runtime = require("onnxruntime", extra="onnx", purpose="fold_batch")
    target = check_path("target", target)
    name, source = find_source(path_or_bytes)
    trial = _Trial(runtime, source, name, dict(batch_axes or {}), dict(shared_inputs or {}), example)
    model = onnx.load_model_from_string(source) if isinstance(source, bytes) else onnx.load(source)
    opset = max((one.version for one in model.opset_import if one.domain in {"", "ai.onnx"}), default=0)
    if opset < LOWEST_OPSET:
        raise ValueError(
            f"path_or_bytes: expected a model of opset {LOWEST_OPSET} or later, got {name} of opset {opset}"
        )
    candidates = _find_convolutions(onnx, model.graph)
    lengths = trial.measure_lengths(onnx, model, candidates)
    layouts = {
        output: layout
        for output, length in lengths.items()
        if (layout := lay_out(candidates[output], length)) is not None and layout.is_faster(candidates[output])
    }
    if not layouts:
        raise ValueError(
            "path_or_bytes: expected a model with convolutions over one axis of few positions, for which folding pays, "
            f"got {name}, where it pays for none of {_count(model.graph)}"
        )
    _rewrite(onnx, model, candidates, layouts)
    _fix_lengths(model.graph, trial.make_rows(1), trial.signature.batch_axes)
    folded = model.SerializeToString()
    difference = trial.compare(folded)
    write_whole(target, folded)
    return FoldedModel(
        path=target,
        folded=tuple(candidates[output].node.name or output for output in layouts),
        unchanged=_count(model.graph) - len(layouts),
        largest_difference=difference,
    )


class _Trial:
    """Runs models on random rows like the example.

    Args:
        runtime: the module ``onnxruntime``.
        source: the original model.
        name: the model's name, for messages.
        batch_axes: batch axes by name, where they differ from those that the model declares.
        shared: inputs of the whole batch, by name.
        example: one request's inputs.
    """

    def __init__(
        self,
        runtime: ModuleType,
        source: str | bytes,
        name: str,
        batch_axes: dict[str, int],
        shared: dict[str, Any],
        example: Any,
    ) -> None:
        self._runtime = runtime
        self._name = name
        self._session = self._load(source)
        inputs, outputs = read_specs(self._session, batch_axes, shared)
        self.signature = Signature(inputs, outputs)
        if (rows := self.signature.rows_per_run) is not None:
            raise ValueError(
                f"path_or_bytes: expected a model with a free batch axis, got {name}, fixed at {rows} rows"
            )
        if example is None:
            raise TypeError(expected("example", "one request's inputs", example))
        self._example = example
        self._shared = {spec.name: check_value(spec, shared[spec.name]) for spec in inputs if spec.name in shared}

    def make_rows(self, rows: int) -> Arrays:
        """Return the inputs of a batch, without the shared ones: the example's, with noise added to floats."""
        noise = np.random.default_rng(rows)
        return {
            name: value + (0.1 * noise.standard_normal(value.shape)).astype(value.dtype)
            if np.issubdtype(value.dtype, np.floating)
            else value
            for name, value in stack_example(self.signature, self._example, rows).items()
        }

    def measure_lengths(self, onnx: ModuleType, model: Any, candidates: dict[str, Convolution]) -> dict[str, int]:
        """Return, by the name of its output, the length of the rows that each convolution reads.

        A convolution is left out if its input is not the rows of the batch for every batch size.
        """
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        declared = {one.name for one in (*model.graph.input, *model.graph.output)}
        reads = sorted({one.node.input[0] for one in candidates.values()} - declared)
        probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in reads)
        session = self._load(probe.SerializeToString())
        shapes: list[dict[str, tuple[int, ...]]] = []
        for rows in (2, 3):
            values = self.make_rows(rows)
            names = [one.name for one in session.get_outputs()]
            values.update(zip(names, session.run(names, {**values, **self._shared}), strict=True))
            shapes.append({name: np.shape(value) for name, value in values.items()})
        lengths = {}
        for output, one in candidates.items():
            # not known for a shared input
            two_rows, three_rows = (shape.get(one.node.input[0], (0,)) for shape in shapes)
            if (two_rows[0], three_rows[0]) == (2, 3) and two_rows[1:] == three_rows[1:]:
                lengths[output] = two_rows[2]
        return lengths

    def compare(self, folded: bytes) -> float:
        """Return the largest difference between the outputs of both models, over the largest output.

        Raises:
            ValueError: the difference is more than rounding.
        """
        session, largest = self._load(folded), 0.0
        for rows in (1, 2, 5):
            inputs = {**self.make_rows(rows), **self._shared}
            original_outputs, folded_outputs = self._session.run(None, inputs), session.run(None, inputs)
            for spec, old, new in zip(self._session.get_outputs(), original_outputs, folded_outputs, strict=True):
                difference = _difference(np.asarray(old), np.asarray(new))
                largest = max(largest, difference)
                if difference > TOLERANCE.get(str(np.asarray(old).dtype), 0.0):
                    raise ValueError(
                        f"path_or_bytes: expected a model that can be folded, got {self._name}: folding changes its "
                        f"output {spec.name!r} by {difference:.2g} of the largest value ({rows} rows)"
                    )
        return largest

    def _load(self, source: str | bytes) -> Any:
        options = make_options(self._runtime, None, None)
        return load(self._runtime, source, self._name, options, CPU)


def _difference(old: npt.NDArray[Any], new: npt.NDArray[Any]) -> float:
    """Return the largest difference over the largest value of the first array; infinite if shapes or texts differ."""
    if old.shape != new.shape:
        return np.inf
    if not np.issubdtype(old.dtype, np.floating):
        return 0.0 if np.array_equal(old, new) else np.inf
    finite = np.isfinite(old)
    if not np.array_equal(finite, np.isfinite(new)):
        return np.inf
    scale = float(np.max(np.abs(old), where=finite, initial=0.0))
    difference = float(np.max(np.abs(np.where(finite, old, 0) - np.where(finite, new, 0)), initial=0.0))
    return difference / scale if scale else difference


def _count(graph: Any) -> int:
    return sum(node.op_type == "Conv" for node in graph.node)


def _find_convolutions(onnx: ModuleType, graph: Any) -> dict[str, Convolution]:
    """Return the convolutions over one axis with known weights, by the name of their output."""
    constants = {one.name: one for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    constants = {name: value for name, value in constants.items() if name not in {one.name for one in graph.input}}
    convolutions = {}
    for node in graph.node:
        if node.op_type != "Conv" or node.domain not in {"", "ai.onnx"} or node.input[1] not in constants:
            continue
        weights = onnx.numpy_helper.to_array(constants[node.input[1]])
        if weights.ndim != 3:
            continue
        attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        kind = attributes.get("auto_pad", b"NOTSET").decode()
        before, after = attributes.get("pads", (0, 0))
        one = Convolution(
            node=node,
            weights=weights,
            group=attributes.get("group", 1),
            dilation=attributes.get("dilations", (1,))[0],
            stride=attributes.get("strides", (1,))[0],
            padding=(before, after) if kind == "NOTSET" else kind,
        )
        if not kind.startswith("SAME") or one.stride <= one.span + SKIPPED:
            convolutions[node.output[0]] = one
    return convolutions


def _rewrite(onnx: ModuleType, model: Any, candidates: dict[str, Convolution], layouts: dict[str, Layout]) -> None:
    """Replace each convolution by the same convolution over all rows end to end."""
    graph, nodes = model.graph, []
    for node in graph.node:
        layout = layouts.get(node.output[0]) if node.output else None
        if layout is None:
            nodes.append(node)
        else:
            nodes += _fold(onnx, graph, candidates[node.output[0]], layout)
    del graph.node[:]
    graph.node.extend(nodes)
    replaced = {candidates[output].node.input[1] for output in layouts} - _read_by(nodes)
    retained = [one for one in graph.initializer if one.name not in replaced]
    del graph.initializer[:]
    graph.initializer.extend(retained)


def _read_by(nodes: Sequence[Any]) -> set[str]:
    """Return all names that the nodes read, also in their branches and loops."""
    inner = [one for node in nodes for attribute in node.attribute for one in (attribute.g, *attribute.graphs)]
    return {name for node in nodes for name in node.input}.union(*(_read_by(graph.node) for graph in inner))


def _fold(onnx: ModuleType, graph: Any, convolution: Convolution, layout: Layout) -> list[Any]:
    """Return the nodes that replace a convolution, and add the constants that they read to the graph."""
    node, make, output = convolution.node, onnx.helper.make_node, convolution.node.output[0]
    filters, channels = layout.weights.shape[0], layout.weights.shape[1] * convolution.group

    def constant(name: str, value: Any) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), f"{output}/fold/{name}"))
        return f"{output}/fold/{name}"

    def step(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(make(kind, inputs, [name], name=f"{name}/{kind}", **attributes))
        return name

    nodes: list[Any] = []
    after = layout.block - layout.before - layout.length
    weights = node.input[1] if layout.weights is convolution.weights else constant("weights", layout.weights)
    span = (layout.weights.shape[2] - 1) * convolution.dilation + 1
    value = step("Transpose", [node.input[0]], f"{output}/fold/channels_first", perm=[1, 0, 2])
    # after the Transpose, so that onnxruntime can cancel it against the Transpose that ends the previous convolution
    value = step("Reshape", [value, constant("row", [channels, 0, layout.length])], f"{output}/fold/checked")
    if layout.before or after:
        pads = constant("pads", [0, 0, layout.before, 0, 0, after])
        value = step("Pad", [value, pads], f"{output}/fold/padded")
    value = step("Reshape", [value, constant("one_row", [1, channels, -1])], f"{output}/fold/end_to_end")
    value = step(
        "Conv",
        [value, weights, *node.input[2:]],
        f"{output}/fold/convolved",
        kernel_shape=[layout.weights.shape[2]],
        dilations=[convolution.dilation],
        strides=[layout.stride],
        group=convolution.group,
        pads=[0, max(0, span - layout.stride)],
    )
    value = step("Reshape", [value, constant("rows", [filters, -1, layout.computed])], f"{output}/fold/apart")
    if layout.computed > layout.windows:
        bounds = [constant("from", [0]), constant("to", [layout.windows]), constant("axis", [2])]
        value = step("Slice", [value, *bounds], f"{output}/fold/cut")
    step("Transpose", [value], output, perm=[1, 0, 2])
    return nodes


def _fix_lengths(graph: Any, row: Arrays, batch_axes: Mapping[str, int]) -> None:
    """Restrict the inputs of a graph to rows of these lengths."""
    for one in graph.input:
        if one.name in row:
            sizes = zip(one.type.tensor_type.shape.dim, row[one.name].shape, strict=True)
            for axis, (size, number) in enumerate(sizes):
                if axis != batch_axes[one.name]:
                    size.dim_value = number
