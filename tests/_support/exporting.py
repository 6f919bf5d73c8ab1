"""What the tests of exports share: settings, small networks, and their embeddings by eager execution."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import nn

from plsc.config import Config
from plsc.models.base_model import BaseModel
from plsc.models.tiny import ResNetTiny
from tests._support.images import make_images

SHAPE, EMB_DIM = (3, 16, 16), 16
IMAGES = list(make_images()[0][:4])


def settings(**values):
    return Config(image_shape=SHAPE, **{"emb_dim": EMB_DIM, "dataset_dir": "/no/such/folder", **values})


def network(emb_dim=EMB_DIM, seed=0):
    """A small untrained network in evaluation mode; one training step gives its batch normalization statistics."""
    paddle.seed(seed)
    made = ResNetTiny(emb_dim, SHAPE)
    made.train()
    made(paddle.rand([32, *SHAPE]) * 2 - 1)
    made.eval()
    return made


class Flat(BaseModel):
    """A base for networks of one linear layer, `body`."""

    def __init__(self):
        super().__init__(EMB_DIM)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, EMB_DIM))

    def build_network(self, input, label, is_train=True):
        return self.body(input)


class Attention(BaseModel):
    """Paddle 3.3 multiplies the output of a convolution wrongly under oneDNN."""

    def __init__(self):
        super().__init__(EMB_DIM)
        self.stem, self.head = nn.Conv2D(3, 8, 3, 2), nn.Linear(8, EMB_DIM)

    def build_network(self, input, label, is_train=True):
        x = self.stem(input)
        return self.head((x @ x.transpose([0, 1, 3, 2])).mean([2, 3]))


def eager(net, pixels, mean=127.5, std=128.0):
    """[N, H, W, 3] uint8 RGB to outputs [N, D], by the documented normalization (pixel - mean) / std."""
    batch = ((pixels.astype(np.float32) - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2)
    with paddle.no_grad():
        return net(paddle.to_tensor(batch)).numpy()


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
