"""An exported model embeds images of every kind in order, and says which image it cannot read."""

from __future__ import annotations

import numpy as np
import pytest

from plsc import DataError, ServingError, load_inference_model
from plsc.data.images import decode
from plsc.inference.model import InferenceModel
from tests._support.images import damaged_jpeg
from tests._support.servers import EMB_DIM, SIDE, make_image

IMAGES = [make_image(seed) for seed in range(7)]


@pytest.fixture(scope="module")
def loaded(model):
    return load_inference_model(model)


def test_images_of_every_kind_and_batches_of_every_size(loaded, tmp_path):
    (tmp_path / "one.png").write_bytes(IMAGES[1])
    mixed = [IMAGES[0], str(tmp_path / "one.png"), tmp_path / "one.png", decode(IMAGES[2]), *IMAGES[3:]]
    expected = np.concatenate([loaded.embed(image) for image in (IMAGES[0], IMAGES[1], *IMAGES[1:])])
    assert expected.shape == (8, EMB_DIM) and expected.dtype == np.float32
    assert np.linalg.norm(expected, axis=1) == pytest.approx(np.ones(8), abs=1e-5)
    for batch_size in (1, 3, 32):
        assert np.abs(loaded.embed(mixed, batch_size) - expected).max() < 1e-5
    assert loaded.embed(iter([])).shape == (0, EMB_DIM)


def test_pixels_of_the_models_size(loaded):
    pixels = np.stack([decode(image).transpose(2, 0, 1) for image in IMAGES])
    assert np.abs(loaded.embed_pixels(pixels) - loaded.embed(IMAGES)).max() < 1e-5


def test_the_network_alone_gives_embeddings_of_any_length(loaded):
    assert loaded.card.flip
    rows = loaded.card.to_input(np.stack([loaded.card.prepare(image) for image in IMAGES]))
    outputs = loaded.run(rows)
    assert outputs.shape == (14, EMB_DIM)
    summed = outputs[:7] + outputs[7:]
    found = summed / np.linalg.norm(summed, axis=1, keepdims=True)
    assert np.abs(found - loaded.embed(IMAGES)).max() < 1e-5


def test_the_model_says_what_it_is(model):
    loaded = InferenceModel(model, threads=1)
    assert loaded.image_shape == (3, SIDE, SIDE) and loaded.emb_dim == EMB_DIM
    assert all(isinstance(name, str) and name for name in loaded.warm_up())


def test_images_that_cannot_be_read(loaded):
    with pytest.raises(DataError, match=r"image 5: 5 bytes that are no image"):
        loaded.embed([*IMAGES[:5], b"hello"], 2)
    with pytest.raises(DataError, match="/no/such.png: the image cannot be read: No such file"):
        loaded.embed("/no/such.png")
    with pytest.raises(DataError, match=r"image 0: got an array \[2, 2, 3\] of float64"):
        loaded.embed(np.zeros([2, 2, 3]))
    for batch_size in (0, -3):
        with pytest.raises(ServingError, match=f"got batch_size {batch_size}, expected 1 or more"):
            loaded.embed(IMAGES, batch_size)


def test_a_damaged_image_is_embedded_with_a_warning_that_names_it(loaded, tmp_path, caplog):
    (tmp_path / "one.jpg").write_bytes(damaged_jpeg())
    loaded.embed([IMAGES[0], tmp_path / "one.jpg", damaged_jpeg()])
    assert [line.split(": damaged")[0] for line in caplog.messages] == [str(tmp_path / "one.jpg"), "image 2"]


def test_no_exported_model(tmp_path):
    with pytest.raises(ServingError, match=r"plsc_model\.json is missing.*convert_for_prediction"):
        load_inference_model(tmp_path)
