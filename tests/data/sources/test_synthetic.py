"""Synthetic images."""

from __future__ import annotations

import numpy as np
import pytest

from plsc.data.sources import open_records
from plsc.data.sources.synthetic import SyntheticRecords
from plsc.errors import DataError


def test_numbers_in_a_synthetic_name_are_ascii():
    for name in ("synthetic:5:²", "synthetic:5:" + "9" * 5000):
        with pytest.raises(DataError, match="expected 'synthetic:CLASSES:IMAGES'"):
            open_records(name)


def test_synthetic_images_depend_on_seed_and_index_alone():
    records = open_records("synthetic:1000:50000")
    assert (len(records), records.num_classes) == (50000, 1000)
    image, label = records[41234]
    assert (image.shape, image.dtype, label) == ((112, 112, 3), np.uint8, 234)
    assert np.array_equal(image, SyntheticRecords(1000, 50000)[41234].image)
    assert not np.array_equal(image, SyntheticRecords(1000, 50000, seed=1)[41234].image)
    assert records.labels[41234] == 234
