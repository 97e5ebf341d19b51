"""A chain of filters that runs inside PyAV."""

from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from streaminfer.loadtest.devices.filters import FilterStep

__all__ = ["FilterGraph", "filter_frames"]


class FilterGraph:
    """A chain of filters, made for the format of the first frame; one thread at a time.

    Args:
        av: PyAV.
        steps: the filters, in order.
        first: the first frame that will be pushed.
    """

    def __init__(self, av: ModuleType, steps: Iterable[FilterStep], first: Any) -> None:
        self._again, self._end = av.error.BlockingIOError, av.error.EOFError
        graph = self._graph = av.filter.Graph()
        if isinstance(first, av.VideoFrame):
            last = graph.add_buffer(
                width=first.width, height=first.height, format=first.format, time_base=first.time_base
            )
            sink = "buffersink"
        else:
            last = graph.add_abuffer(
                sample_rate=first.sample_rate, format=first.format, layout=first.layout, time_base=first.time_base
            )
            sink = "abuffersink"
        for step in steps:
            node = graph.add(step.name, **step.options)
            last.link_to(node, 0, 0)
            if step.source is not None:
                graph.add(step.source.name, **step.source.options).link_to(node, 0, 1)
            last = node
        last.link_to(graph.add(sink))
        graph.configure()

    def push(self, frame: Any) -> Iterator[Any]:
        """Yield the frames that a frame completes; ``None``: it was the last."""
        self._graph.push(frame)
        while True:
            try:
                yield self._graph.pull()
            except (self._again, self._end):
                return


def filter_frames(av: ModuleType, steps: Iterable[FilterStep], frames: Iterable[Any]) -> Iterator[Any]:
    """Yield frames behind a chain of filters."""
    graph: FilterGraph | None = None
    for frame in frames:
        if graph is None:
            graph = FilterGraph(av, steps, frame)
        yield from graph.push(frame)
    if graph is not None:
        yield from graph.push(None)
