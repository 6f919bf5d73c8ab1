"""The embedder of the evaluator: batches, mirror images, the backbone's mode, mistakes."""

from __future__ import annotations

import numpy as np
import pytest

from plsc import DataError
from plsc.engine.evaluator import Embedder
from plsc.inference.embedding import EmbeddingPath
from tests._support.exporting import EMB_DIM, IMAGES, SHAPE, eager, network

PATH = EmbeddingPath(image_shape=SHAPE, flip=True, pixel_mean=127.5, pixel_std=128.0)


def embedder(backbone, batch_size):
    return Embedder(backbone, PATH, emb_dim=EMB_DIM, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 3, 120])
def test_images_and_their_mirror_images_are_summed_in_passes_of_the_batch_size(batch_size):
    net, pixels, sizes = network(), np.stack(IMAGES), []
    expected = eager(net, pixels) + eager(net, pixels[:, :, ::-1])
    net.register_forward_pre_hook(lambda layer, inputs: sizes.append(len(inputs[0])))
    assert np.abs(embedder(net, batch_size)(iter(IMAGES)) - expected).max() < 1e-4
    assert max(sizes) == min(batch_size, len(IMAGES)) and sum(sizes) == 2 * len(IMAGES)


def test_finished_images_and_pixels_in_one_batch():
    net = network()
    finished = PATH.normalize(PATH.prepare(IMAGES[0]))
    found = embedder(net, 4)([IMAGES[0], finished, IMAGES[1]])
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


def test_the_backbone_keeps_its_mode():
    net = network()
    for mode in (net.train, net.eval):
        mode()
        was = net.training
        found = embedder(net, 2)(IMAGES)
        assert net.training == was
    assert np.array_equal(found, embedder(net, 2)(IMAGES))


def test_no_images_and_unreadable_ones():
    net = network()
    assert embedder(net, 2)([]).shape == (0, EMB_DIM)
    with pytest.raises(DataError, match="image 3: 5 bytes that are no image"):
        embedder(net, 2)([*IMAGES[:3], b"hello"])
