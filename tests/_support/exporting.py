"""What the tests of exports share: settings, a network, and its embeddings by eager execution."""

from __future__ import annotations

import numpy as np
import paddle

from plsc.config import Config
from plsc.models.tiny import ResNetTiny
from tests._support.images import make_images

SHAPE = (3, 16, 16)
IMAGES = list(make_images()[0][:4])


def settings(**values):
    return Config(image_shape=SHAPE, emb_dim=16, dataset_dir="/no/such/folder", **values)


def network():
    paddle.seed(0)
    made = ResNetTiny(16, SHAPE)
    made.train()
    made(paddle.rand([32, *SHAPE]) * 2 - 1)  # gives batch normalization statistics that matter
    made.eval()
    return made


def eager(net, pixels, mean=127.5, std=128.0):
    """[N, H, W, 3] uint8 RGB -> [N, D], as the export's maths is documented."""
    batch = ((pixels.astype(np.float32) - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2)
    with paddle.no_grad():
        return net(paddle.to_tensor(batch)).numpy()


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
