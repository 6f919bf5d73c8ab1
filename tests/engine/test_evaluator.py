"""Embeddings of a trained network."""

from __future__ import annotations

import numpy as np
import pytest

import plsc
from plsc import ConfigError, DataError
from tests._support.images import make_images


def test_embeddings_of_network_and_export_agree(entry, data_dir, tmp_path):
    entry.train()
    files = [data_dir / f"images/{index:08d}.png" for index in range(7)]
    predicted = entry.predict(files, save_to=tmp_path / "e.npy")
    exported = plsc.load_inference_model(entry.convert_for_prediction()).embed(files, batch_size=3)
    assert exported.shape == (7, 16)
    assert np.abs(exported - predicted).max() < 1e-5
    assert np.linalg.norm(predicted, axis=1) == pytest.approx(np.ones(7), abs=1e-5)
    assert np.array_equal(np.load(tmp_path / "e.npy"), predicted)
    # Encoded bytes and pixels say the same; the folder above is found too.
    again = plsc.load_inference_model(entry.model_save_dir).embed(files[0].read_bytes())
    assert np.abs(again - exported[:1]).max() < 1e-5


def test_predict_reader_in_its_forms(entry):
    entry.train()
    images, _ = make_images()
    expected = entry.predict(list(images[:4]))
    for reader in (
        lambda: iter(images[:4]),
        lambda: ((image,) for image in images[:4]),
        lambda: iter([[(image, 0) for image in images[:4]]]),
    ):
        entry.predict_reader = reader
        assert np.array_equal(entry.predict(), expected)


def test_predict_says_what_is_missing_and_overwrites_nothing(entry, tmp_path, data_dir):
    entry.train()
    with pytest.raises(ConfigError, match="nothing to embed"):
        entry.predict()
    (tmp_path / "there.npy").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        entry.predict([data_dir / "images/00000000.png"], save_to=tmp_path / "there.npy")
    with pytest.raises(DataError, match="image cannot be read: No such file"):
        entry.predict(["/no/such.png"])
