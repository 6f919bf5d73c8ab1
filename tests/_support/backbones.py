"""Small networks of each family of backbones, with all of its kinds of layers and regularization."""

from __future__ import annotations

from plsc.models.edgeface import EdgeFace
from plsc.models.iresnet import IResNet
from plsc.models.mobilefacenet import MobileFaceNet
from plsc.models.tiny import ResNetTiny
from plsc.models.vit import ViT
from plsc.models.zoo import VisionBackbone

EMB_DIM = 16


def _edgeface(shape, **settings):
    return EdgeFace(
        (8, 16, 24, 32), EMB_DIM, image_shape=shape, depths=(1, 2, 1, 1), heads=4, drop_path=0.2, **settings
    )


# Family -> (side of its images, how to make it).
FAMILIES = {
    "IResNet": (16, lambda shape: IResNet((1, 2, 1, 1), EMB_DIM, image_shape=shape, dropout=0.4)),
    "MobileFaceNet": (16, lambda shape: MobileFaceNet(EMB_DIM, shape, units=(1, 2, 1))),
    "ViT": (36, lambda shape: ViT(32, 3, emb_dim=EMB_DIM, image_shape=shape, drop_path=0.3, mask_ratio=0.2)),
    "EdgeFace": (40, _edgeface),
    "EdgeFace of low rank": (40, lambda shape: _edgeface(shape, rank=0.5)),
    "ResNetTiny": (16, lambda shape: ResNetTiny(EMB_DIM, shape)),
    "paddle.vision.models": (32, lambda shape: VisionBackbone("mobilenet_v3_small", EMB_DIM, shape)),
}


def make(family, image_shape=None):
    """A network of a family, and the shape of its images."""
    side, network = FAMILIES[family]
    image_shape = image_shape or (3, side, side)
    return network(image_shape), image_shape
