"""Content negotiation of a scrape: the format and the compression that the headers prefer (RFC 9110, section 12)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from streaminfer.telemetry.exporters.collection import Sample
from streaminfer.telemetry.exporters.metric import Metric
from streaminfer.telemetry.exporters.prometheus.protobuf_format import write_protobuf
from streaminfer.telemetry.exporters.prometheus.text_formats import write_openmetrics, write_text

__all__ = ["FORMATS", "Format", "accepts_gzip", "choose_format"]


class Format(NamedTuple):
    """A format of Prometheus.

    Attributes:
        media_type: media type without parameters.
        parameters: parameters of the media type; a client may select by them.
        write: yields the text or the bytes of one family after another.
        is_compressed: whether to compress if the client accepts it. Compression makes text 20 times smaller. Protobuf
            becomes only 2.4 times smaller, and a scrape takes a quarter longer.
    """

    media_type: str
    parameters: Mapping[str, str]
    write: Callable[[Mapping[Metric, Sequence[Sample]]], Iterator[str] | Iterator[bytes]]
    is_compressed: bool = True

    @property
    def content_type(self) -> str:
        """Value of the ``Content-Type`` header."""
        return "; ".join([self.media_type, *(f"{name}={value}" for name, value in self.parameters.items())])


FORMATS = (
    Format("text/plain", {"version": "0.0.4", "charset": "utf-8"}, write_text),
    Format("application/openmetrics-text", {"version": "1.0.0", "charset": "utf-8"}, write_openmetrics),
    Format(
        "application/vnd.google.protobuf",
        {"proto": "io.prometheus.client.MetricFamily", "encoding": "delimited"},
        write_protobuf,
        is_compressed=False,
    ),
)
"""Formats in the order of our preference, for clients without a preference: the first is readable in a browser."""

_IGNORED = {"q", "escaping"}  # "escaping" is for names with non-ASCII letters, and ours have none


def choose_format(accept: str) -> Format | None:
    """Return the format that an ``Accept`` header prefers; ``None`` if it accepts none. An empty header accepts any."""
    accepted = list(_elements(accept or "*/*"))
    best = max(FORMATS, key=lambda offer: _quality(offer, accepted))
    return best if _quality(best, accepted) > 0.0 else None


def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether an ``Accept-Encoding`` header allows gzip."""
    qualities = {name: quality for name, _, quality in _elements(accept_encoding)}
    return qualities.get("gzip", qualities.get("*", 0.0)) > 0.0


def _quality(offer: Format, accepted: list[tuple[str, dict[str, str], float]]) -> float:
    """Return the quality of the most specific media range that matches a format; 0 if none does."""
    best = (-1, 0.0)
    kind = offer.media_type.partition("/")[0]
    for media_range, parameters, quality in accepted:
        if media_range == offer.media_type:
            if any(offer.parameters.get(name, value) != value for name, value in parameters.items()):
                continue
            best = max(best, (2 + len(parameters), quality))
        elif media_range == f"{kind}/*":
            best = max(best, (1, quality))
        elif media_range == "*/*":
            best = max(best, (0, quality))
    return best[1]


def _elements(header: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield the lower-case names of a header with their parameters and qualities; an invalid quality counts as 0."""
    for element in header.split(","):
        name, *rest = (part.strip() for part in element.split(";"))
        if not name:
            continue
        split = (part.partition("=") for part in rest)
        pairs = {key.strip().lower(): value.strip().strip('"') for key, _, value in split}
        try:
            quality = float(pairs.get("q", "1"))
        except ValueError:
            quality = 0.0
        yield name.lower(), {key: value for key, value in pairs.items() if key not in _IGNORED}, quality
