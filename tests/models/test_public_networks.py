"""The networks whose weights are published have the same tensors here, and compute the same numbers.

The expected numbers were computed in PyTorch 2.14 from the definitions of arcface_torch (iresnet, mobilefacenet, vit)
and of timm 1.0.31 (edgenext, with the low-rank layers of EdgeFace), with the weights and images of
`tests._support.public_weights`.
"""

from __future__ import annotations

import json
import zlib

import paddle
import pytest

from plsc import create_backbone
from plsc.models.graph import graph_mode
from tests._support.public_weights import fill, images, public_tensors

# Number of tensors, CRC-32 of their sorted names and shapes, first numbers of the first embedding, and the product of
# both embeddings.
EXPECTED = {
    "IResNet18": (156, 2533464532, [-0.31387, 0.37773, 0.32369, -0.02361], 50.54),
    "IResNet34": (276, 2946247411, [-0.37906, 0.48295, 0.28308, -0.00191], 62.041),
    "IResNet50": (396, 3412335649, [-0.36355, 0.55558, 0.20008, 0.06188], 78.352),
    "IResNet100": (771, 2888250745, [-0.34217, 0.37836, 0.03682, 0.2255], 113.07),
    "IResNet200": (1506, 1830194260, [-0.43138, -0.19715, -1.1593, 0.50581], 241.55),
    "MobileFaceNet": (283, 3610046656, [0.2377, 0.23919, 0.26655, -0.28476], 36.148),
    "ViT-T": (148, 1967911494, [0.10173, 0.29316, -0.02954, -0.19224], 48.73),
    "ViT-S": (148, 1075061207, [-0.01385, 0.11874, 0.10304, 0.15986], 49.517),
    "ViT-B": (280, 594891282, [0.10518, 0.05547, 0.21207, 0.01188], 51.489),
    "ViT-L": (280, 3292292209, [0.22665, 0.14678, 0.00974, 0.3268], 52.773),
    "EdgeFace-XXS": (160, 4213712394, [0.10249, 0.69948, 0.46531, -1.47655], 175.21),
    "EdgeFace-XS": (257, 1520090603, [0.17196, 1.17606, 1.19923, -0.43342], 241.43),
    "EdgeFace-S": (257, 3713434171, [-1.27358, -0.54606, -0.28578, -0.62431], 184.47),
    "EdgeFace-Base": (214, 3900288950, [0.18515, -0.14071, 0.37583, 0.69992], 171.39),
}


# Those left out differ from another one in the number of equal units.
@pytest.mark.parametrize("name", sorted(set(EXPECTED) - {"IResNet100", "IResNet200", "ViT-B"}))
def test_the_tensors_have_the_public_names_and_shapes(name):
    with graph_mode():
        found = public_tensors(create_backbone(name))
    count, digest, _, _ = EXPECTED[name]
    assert len(found) == count
    assert zlib.crc32(json.dumps(sorted((key, list(shape)) for key, shape in found.items())).encode()) == digest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["IResNet18", "MobileFaceNet", "ViT-T", "EdgeFace-XXS", "EdgeFace-S"])
def test_the_same_weights_give_the_same_embeddings(name):
    network = create_backbone(name)
    fill(network)
    network.eval()
    with paddle.no_grad():
        made = network(paddle.to_tensor(images()))
    _, _, first, product = EXPECTED[name]
    assert made[0, : len(first)].tolist() == pytest.approx(first, abs=2e-5)
    assert (made[0] * made[1]).sum().item() == pytest.approx(product, rel=5e-5)
