"""Inspection: counts, damaged images and pictures."""

from __future__ import annotations

import cv2
import pytest

from plsc.data.convert.inspection import inspect, plot
from plsc.errors import DataError
from tests._support.conversion import Images


def test_an_inspection_counts_and_names_what_is_damaged():
    source = Images(broken={3: b"no image", 7: b""})
    source.num_classes = 6
    found = inspect(source)
    assert (found.images, found.classes, found.empty_classes, found.num_damaged) == (23, 6, 1, 2)
    assert found.images_per_class == (4, 5.0, 4.6, 5)
    assert found.encodings == {"png": 21}
    assert found.sizes == [(7, 6, 21)]
    assert found.damaged[1] == "image 7: the image is empty (0 bytes)"
    assert "classes           6, 1 of them without an image" in str(found)
    assert inspect(source, limit=5).looked_at == 5


def test_an_inspection_tells_labels_beyond_the_stated_classes():
    source = Images()
    source.num_classes = 4
    found = inspect(source)
    assert found.damage == "5 labels are beyond the 4 classes that the set states, the first 4 at image 4"
    assert found.empty_classes == 0


def test_plots_are_saved_and_overwrite_nothing(tmp_path):
    pytest.importorskip("matplotlib")
    paths = plot(Images(broken={3: b""}), tmp_path / "set")
    assert [cv2.imread(str(path)) is not None for path in paths] == [True, True]
    with pytest.raises(DataError, match="set-classes.png exists already"):
        plot(Images(), tmp_path / "set")
