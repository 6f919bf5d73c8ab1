"""Alignment: the transform is the nearest similarity, and landmarks land on the template."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plsc.data.alignment import TEMPLATE, align, read_landmarks, similarity_transform
from plsc.errors import DataError


def matrix_of(angle: float, scale: float, shift) -> np.ndarray:
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])


@given(st.floats(-3, 3), st.floats(0.1, 10), st.tuples(st.floats(-200, 200), st.floats(-200, 200)))
def test_a_similarity_is_recovered_exactly(angle, scale, shift):
    matrix = matrix_of(angle, scale, shift)
    target = TEMPLATE @ matrix[:, :2].T + matrix[:, 2]
    assert np.allclose(similarity_transform(TEMPLATE, target), matrix, atol=1e-6)


def test_among_similarities_none_is_nearer_even_where_a_mirror_would_be():
    rng = np.random.default_rng(0)
    for source in (TEMPLATE + rng.normal(0, 5, (5, 2)), TEMPLATE * [-1, 1]):
        matrix = similarity_transform(source, TEMPLATE)
        assert np.linalg.det(matrix[:, :2]) > 0
        error = ((source @ matrix[:, :2].T + matrix[:, 2] - TEMPLATE) ** 2).sum()
        # Umeyama's minimum is global: the plain linear least squares over (a, b, tx, ty) must agree.
        x, y, one, zero = source[:, 0], source[:, 1], np.ones(5), np.zeros(5)
        system = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
        solution = np.linalg.lstsq(system, TEMPLATE.T.reshape(-1), rcond=None)
        assert error == pytest.approx(solution[1][0], rel=1e-9)


@pytest.mark.parametrize("size", [112, 224])
def test_marks_painted_at_the_landmarks_appear_at_the_template(size):
    matrix = matrix_of(0.4, 2.5, (60, 20))
    landmarks = TEMPLATE @ matrix[:, :2].T + matrix[:, 2]
    image = np.zeros((400, 400, 3), np.uint8)
    for x, y in landmarks:
        cv2.circle(image, (round(x), round(y)), 7, (255, 255, 255), -1)
    aligned = align(image, landmarks, image_size=size)
    assert aligned.shape == (size, size, 3)
    _, _, _, centers = cv2.connectedComponentsWithStats((aligned[..., 0] > 127).astype(np.uint8))
    found = centers[1:][np.argsort(centers[1:, 1] * 1000 + centers[1:, 0])]
    expected = (TEMPLATE + 0.5) * size / 112 - 0.5
    distances = np.linalg.norm(expected[:, None] - found[None], axis=2).min(1)
    assert len(found) == 5
    assert distances.max() < 0.6


@pytest.mark.parametrize(
    "landmarks, message",
    [
        (np.zeros((5, 2)), "lie on one point"),
        (np.full((5, 2), np.nan), "are not all finite"),
        (np.zeros((4, 2)), r"got \[4, 2\], expected \[5, 2\]"),
    ],
)
def test_landmarks_without_a_transform_are_named(landmarks, message):
    with pytest.raises(DataError, match=message):
        align(np.zeros((8, 8, 3), np.uint8), landmarks)


def test_landmark_files(tmp_path):
    points = np.stack([TEMPLATE, TEMPLATE + 1])
    np.save(tmp_path / "marks.npy", points)
    lines = [" ".join(map(str, face.reshape(-1))) for face in points]
    (tmp_path / "marks.txt").write_text(f"a name 7.jpg {lines[0]}\n\n{lines[1].replace(' ', ', ')}\n")
    for name in ("marks.npy", "marks.txt"):
        assert np.allclose(read_landmarks(tmp_path / name, 2), points, atol=1e-4)
    with pytest.raises(DataError, match=r"expected \[3, 5, 2\], five points"):
        read_landmarks(tmp_path / "marks.txt", 3)
    (tmp_path / "marks.txt").write_text(f"{lines[0]}\n1 2 3\n")
    with pytest.raises(DataError, match="marks.txt, line 2: got '1 2 3', expected ten numbers"):
        read_landmarks(tmp_path / "marks.txt", 2)
    with pytest.raises(DataError, match="none.txt: the landmarks cannot be read: No such file"):
        read_landmarks(tmp_path / "none.txt", 2)


@pytest.mark.parametrize("odd", ["\x0c", "\x85", "\u2028"])
def test_only_line_ends_end_a_line_of_landmarks(tmp_path, odd):
    marks = " ".join(map(str, TEMPLATE.reshape(-1)))
    (tmp_path / "marks.txt").write_bytes(f"\ufeffa{odd}b.jpg {marks}\r\n\r\n1 2\r\n".encode())
    with pytest.raises(DataError, match="marks.txt, line 3: got '1 2'"):
        read_landmarks(tmp_path / "marks.txt", 1)


@pytest.mark.parametrize("shape", [(2, 2, 5), (5, 2, 2), (2, 10), (1, 5, 2)])
def test_landmarks_of_another_shape_are_refused(tmp_path, shape):
    np.save(tmp_path / "marks.npy", np.zeros(shape, np.float32))
    with pytest.raises(DataError, match=r"expected \[2, 5, 2\]"):
        read_landmarks(tmp_path / "marks.npy", 2)


@pytest.mark.parametrize(
    "text", ["{marks} 0.998", "{marks} 3", "7 {marks}", "a.jpg {marks} 1", "1 2 3", "a b c d e f g h i j"]
)
def test_a_line_of_landmarks_with_other_numbers_is_refused(tmp_path, text):
    marks = " ".join(map(str, TEMPLATE.reshape(-1)))
    (tmp_path / "marks.txt").write_text(text.format(marks=marks) + "\n")
    with pytest.raises(DataError, match="line 1.*expected ten numbers"):
        read_landmarks(tmp_path / "marks.txt", 1)


def test_landmarks_of_no_face_are_warned_of_and_several_arrays_refused(tmp_path, caplog):
    np.save(tmp_path / "faces.npy", np.stack([TEMPLATE, TEMPLATE]))
    read_landmarks(tmp_path / "faces.npy", 2)
    assert not caplog.records
    (tmp_path / "marks.txt").write_text(" ".join(map(str, TEMPLATE.T.reshape(-1))) + "\n")  # x1 ... x5 y1 ... y5
    read_landmarks(tmp_path / "marks.txt", 1)
    assert "in 1 of 1 image checked the points are those of no face" in caplog.text
    np.savez(tmp_path / "marks.npz", TEMPLATE)
    (tmp_path / "marks.npz").rename(tmp_path / "marks.npy")
    with pytest.raises(DataError, match="found several arrays"):
        read_landmarks(tmp_path / "marks.npy", 1)
