"""A chain of filters that runs inside PyAV."""

from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from streaminfer.errors import InvalidInput
from streaminfer.loadtest.devices.filters import FilterStep

__all__ = ["FilterGraph", "filter_frames"]


class FilterGraph:
    """A chain of filters for frames in the format of the first one; not thread-safe.

    Args:
        av: PyAV.
        steps: the filters, in order.
        first: the first frame that will be pushed.
    """

    def __init__(self, av: ModuleType, steps: Iterable[FilterStep], first: Any) -> None:
        self._would_block, self._end = av.error.BlockingIOError, av.error.EOFError
        self._is_sound = not isinstance(first, av.VideoFrame)
        self._format = _format_of(first, is_sound=self._is_sound)
        graph = self._graph = av.filter.Graph()
        names = ("sample_rate", "format", "layout") if self._is_sound else ("width", "height", "format")
        settings = {name: getattr(first, name) for name in (*names, "time_base")}
        last = graph.add_abuffer(**settings) if self._is_sound else graph.add_buffer(**settings)
        for step in steps:
            node = graph.add(step.name, **step.options)
            last.link_to(node, 0, 0)
            if step.source is not None:
                graph.add(step.source.name, **step.source.options).link_to(node, 0, 1)
            last = node
        last.link_to(graph.add("abuffersink" if self._is_sound else "buffersink"))
        graph.configure()

    def is_for(self, frame: Any) -> bool:
        """Return whether the chain accepts the format of a frame."""
        return _format_of(frame, is_sound=self._is_sound) == self._format

    def push(self, frame: Any) -> Iterator[Any]:
        """Push a frame and yield the filtered frames that are ready; ``None`` flushes the chain.

        Raises:
            InvalidInput: the frame is sound in another format than the first one.
        """
        if self._is_sound and frame is not None and not self.is_for(frame):
            format_found = _format_of(frame, is_sound=True)
            raise InvalidInput(f"source: expected sound of one kind, got {format_found} behind {self._format}")
        self._graph.push(frame)
        while True:
            try:
                yield self._graph.pull()
            except (self._would_block, self._end):
                return


def _format_of(frame: Any, *, is_sound: bool) -> tuple[Any, ...]:
    """Return the format of a frame, as far as filters depend on it."""
    if is_sound:
        return frame.sample_rate, frame.format.name, frame.layout.name
    return frame.width, frame.height, frame.format.name


def filter_frames(av: ModuleType, steps: Iterable[FilterStep], frames: Iterable[Any]) -> Iterator[Any]:
    """Yield the frames that leave a chain of filters."""
    graph: FilterGraph | None = None
    for frame in frames:
        if graph is None:
            graph = FilterGraph(av, steps, frame)
        yield from graph.push(frame)
    if graph is not None:
        yield from graph.push(None)
