import importlib

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture
def faces(_examples_can_be_imported):
    return importlib.import_module("demo.faces")


@pytest.fixture
def video(_examples_can_be_imported):
    return importlib.import_module("demo.video")


def test_anchors_are_cell_centers_in_row_order(faces):
    anchors = faces.FULL.anchors()
    assert anchors.shape == (48 * 48, 2)
    assert anchors[0].tolist() == [2, 2]
    assert anchors[1].tolist() == [6, 2]
    assert anchors[48].tolist() == [2, 6]
    assert anchors[-1].tolist() == [190, 190]


def test_grids_with_several_anchors_a_cell(faces):
    anchors = faces.Detector("blaze_front.onnx", 128, ((16, 2), (8, 6))).anchors()
    assert anchors.shape == (896, 2)
    assert anchors[:3].tolist() == [[4, 4], [4, 4], [12, 4]]
    assert anchors[512:519].tolist() == [[8, 8]] * 6 + [[24, 8]]


def answer(boxes, logits):
    raw = np.zeros((len(boxes), 16), np.float32)
    raw[:, :4] = boxes
    return raw, np.array(logits, np.float32)[:, None]


def test_a_box_is_relative_to_its_anchor(faces):
    boxes, logits = answer([[3, -2, 20, 10], [0, 0, 50, 50]], [2.0, -2.0])
    (face,) = faces.find_faces(boxes, logits, np.array([[100, 60], [10, 10]], np.float32))
    assert face[:4] == (93, 53, 113, 63)
    assert face.score == pytest.approx(1 / (1 + np.exp(-2.0)))


def test_boxes_of_one_face_are_averaged_by_score(faces):
    """Overlapping boxes of one face are averaged, weighted by their scores."""
    boxes, logits = answer([[0, 0, 20, 20], [2, 0, 20, 20], [80, 0, 20, 20]], [np.log(3.0), 0.0, 5.0])
    first, second = faces.find_faces(boxes, logits, np.full((3, 2), 50, np.float32))
    assert (first.left, first.score) == (120, pytest.approx(1 / (1 + np.exp(-5.0))))
    assert second.left == pytest.approx((40 * 0.75 + 42 * 0.5) / 1.25)
    assert second.score == pytest.approx(0.75)


def test_search_ends_with_degenerate_boxes(faces):
    boxes, logits = answer([[0, 0, 0, 0], [0, 0, -5, 3]], [1.0, 2.0])
    assert len(faces.find_faces(boxes, logits, np.zeros((2, 2), np.float32))) == 2


def test_picture_without_a_face_has_no_result(faces):
    boxes, logits = answer([[0, 0, 10, 10]], [-0.1])
    assert faces.find_faces(boxes, logits, np.zeros((1, 2), np.float32)) == []


coordinates = st.floats(-50, 50, width=32)
candidates = st.lists(st.tuples(coordinates, coordinates, st.floats(1, 60, width=32), st.floats(1, 60, width=32)))


@given(candidates, st.data())
def test_faces_are_sorted_by_score_within_candidates(found, data):
    """Faces come with the highest score first and lie within the extent of their candidates."""
    faces = importlib.import_module("demo.faces")
    logits = data.draw(st.lists(st.floats(-3, 3, width=32), min_size=len(found), max_size=len(found)))
    raw = np.zeros((len(found), 16), np.float32)
    raw[:, :4] = np.array(found, np.float32).reshape(-1, 4)
    scores = np.array(logits, np.float32).reshape(-1, 1)
    result = faces.find_faces(raw, scores, np.zeros((len(found), 2), np.float32))
    sure = scores[:, 0] >= 0
    assert bool(result) == bool(sure.any())
    assert len(result) <= sure.sum()
    assert [face.score for face in result] == sorted((face.score for face in result), reverse=True)
    if result:
        lefts = (raw[sure, 0] - raw[sure, 2] / 2).min()
        rights = (raw[sure, 0] + raw[sure, 2] / 2).max()
        assert all(lefts - 1e-3 <= face.left < face.right <= rights + 1e-3 for face in result)


def test_the_real_detector_finds_the_astronaut(faces, video, examples):
    frames = video.load_frames(examples / "assets" / "astronaut_pan.mp4", 192)
    assert (len(frames), frames.pixels.shape[1:], frames.rate) == (240, (192, 192, 3), 24.0)
    assert not frames.pixels[:, :24].any()  # the bars of a letterboxed 4:3 picture
    assert frames.pixels[:, 24:168].any(axis=(2, 3)).all()
    values = faces.normalize(frames.pixels[120])
    assert values.dtype == np.float32
    assert (values.min(), values.max()) == (-1.0, pytest.approx(1.0))
    session = ort.InferenceSession(examples / "assets" / faces.FULL.file)
    boxes, logits = session.run(None, {"input": values[None]})
    (face,) = faces.find_faces(boxes[0], logits[0], faces.FULL.anchors())
    assert face.score > 0.85
    assert face[:4] == pytest.approx((120, 83, 166, 129), abs=4)


def test_file_without_pictures_is_rejected(video, examples):
    with pytest.raises(ValueError, match=r"librivox_0870\.wav: expected a video"):
        video.load_frames(examples / "assets" / "librivox_0870.wav", 192)
