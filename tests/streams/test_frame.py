import attrs
import pytest

from streaminfer.streams import Frame


def test_frame_is_immutable_and_needs_an_instant():
    frame = Frame("x", captured_ns=5)
    assert (frame.inputs, frame.captured_ns, frame.position_s, frame.discontinuity) == ("x", 5, None, False)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        frame.captured_ns = 6
    with pytest.raises(TypeError, match="captured_ns"):
        Frame("x")
