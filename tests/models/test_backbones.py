"""The contract of every built-in backbone: shapes, published figures, gradients, recompute, export, resume."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import paddle
import pytest

import plsc
from plsc import ConfigError, create_backbone, list_backbones
from plsc.config import Config
from plsc.export.export import export_backbone
from plsc.models.complexity import count_multiply_adds, count_parameters
from plsc.models.graph import graph_images, graph_mode
from plsc.models.recompute import BlockRecompute
from tests._support import backbones
from tests._support.backbones import EMB_DIM, FAMILIES
from tests._support.checkpoints import assert_equal, contents
from tests._support.memory import kept_bytes

# Million parameters and milliard multiply-adds at 112 x 112, as published:
# IResNet and ViT: Partial FC (CVPR 2022), table of backbones, and the README of arcface_torch; MobileFaceNet: the same
# README, and the count of its published weights; EdgeFace: the README of its weights, whose "MFLOPs" are two for each
# multiply-add. Nobody has published those of ResNetTiny: these are the counts of its first version.
PUBLISHED = {
    "IResNet18": (24.0, 2.6),
    "IResNet34": (34.1, 4.5),
    "IResNet50": (43.6, 6.3),
    "IResNet100": (65.2, 12.1),
    "IResNet200": (118.8, 23.4),
    "MobileFaceNet": (2.06, 0.45),
    "ViT-T": (19, 1.5),
    "ViT-S": (76, 5.7),
    "ViT-B": (114, 11.4),
    "ViT-L": (256, 25.3),
    "EdgeFace-XXS": (1.24, 0.09472 / 2),
    "EdgeFace-XS": (1.77, 0.154 / 2),
    "EdgeFace-S": (3.65, 0.30612 / 2),
    "EdgeFace-Base": (18.23, 1.39883 / 2),
    "ResNet50": (43.6, 6.3),  # the units of IResNet50
    "ResNetTiny": (13.15, 0.211),
}


def trace(name, image_shape, emb_dim=512):
    """Shape of the embeddings, parameters and multiply-adds."""
    with graph_mode() as graph:
        network = create_backbone(name, emb_dim=emb_dim, image_shape=image_shape)
        network.eval()
        features = network(graph_images(image_shape))
        return list(features.shape), count_parameters(network), count_multiply_adds(graph)


def test_every_backbone_has_published_figures():
    assert set(PUBLISHED) == set(list_backbones()) - {"ResNet101", "ResNet152"}  # those of PLSC 0.1 alone


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_backbone_has_the_parameters_and_multiply_adds_that_are_published(name):
    shape, parameters, multiply_adds = trace(name, (3, 112, 112))
    assert shape == [1, 512]
    published = PUBLISHED[name]
    assert parameters / 1e6 == pytest.approx(published[0], rel=0.01)
    assert multiply_adds / 1e9 == pytest.approx(published[1], rel=0.03)


@pytest.mark.parametrize("name", ["IResNet18", "MobileFaceNet", "ViT-T", "EdgeFace-XXS", "EdgeFace-XS", "ResNetTiny"])
def test_a_backbone_takes_images_of_another_size(name):
    shape, _, multiply_adds = trace(name, (3, 80, 96), emb_dim=24)
    assert shape == [1, 24]
    assert multiply_adds < 0.8e9 * PUBLISHED[name][1]


@pytest.mark.parametrize(
    "name, image_shape, words",
    [
        ("ViT-T", (3, 8, 112), r"image_shape: got \(3, 8, 112\); a ViT takes images of at least 9 x 9 pixels"),
        ("EdgeFace-XXS", (3, 112, 31), "an EdgeFace takes images of at least 32 x 32 pixels"),
        (
            "paddle.vision.models:inception_v3",
            (3, 48, 48),
            "of which paddle.vision.models:inception_v3 makes maps without a pixel",
        ),
        ("paddle.vision.models:LeNet", (3, 28, 28), "did you mean .*; accepted: alexnet|accepted: alexnet"),
        ("paddle.vision.models:resnet19", (3, 32, 32), "did you mean 'resnet1.*accepted: alexnet"),
        ("paddle.vision.models:ResNet", (3, 32, 32), "accepted: alexnet, densenet121"),
    ],
)
def test_what_a_backbone_cannot_take_is_said(name, image_shape, words):
    with pytest.raises(ConfigError, match=words):
        create_backbone(name, emb_dim=16, image_shape=image_shape)


@pytest.mark.parametrize(
    "near, meant",
    [
        ("iresnet50", "IResNet50"),
        ("r100", "IResNet100"),
        ("ir_101", "IResNet100"),
        ("mbf", "MobileFaceNet"),
        ("vit_t", "ViT-T"),
        ("edgeface_xs_gamma_06", "EdgeFace-XS"),
        ("EdgeFaceBase", "EdgeFace-Base"),
    ],
)
def test_names_of_other_libraries_lead_to_ours(near, meant):
    with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
        create_backbone(near)


def step(network, image_shape, *, recompute, steps=2):
    """Train some steps; the embeddings of each."""
    blocks = BlockRecompute(network) if recompute else None
    optimizer = paddle.optimizer.Momentum(0.01, 0.9, parameters=network.parameters())
    made = []
    for number in range(steps):
        paddle.seed(number)
        images = paddle.rand([4, *image_shape]) * 2 - 1
        with blocks.forward() if blocks else contextlib.nullcontext():
            features = network(images)
        features.backward(paddle.rand(features.shape) - 0.5)
        made.append(features.numpy())
        without = [name for name, item in network.named_parameters() if not item.stop_gradient and item.grad is None]
        assert not without
        optimizer.step()
        optimizer.clear_grad()
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_a_gradient_and_recompute_changes_no_bit(family):
    made, tensors = [], []
    for recompute in (False, True):
        paddle.seed(0)
        network, image_shape = backbones.make(family)
        network.train()
        made.append(step(network, image_shape, recompute=recompute))
        tensors.append({name: tensor.numpy() for name, tensor in network.state_dict().items()})
    np.testing.assert_array_equal(*made)
    assert_equal(*tensors)
    assert all(np.isfinite(value).all() for value in tensors[0].values())


@pytest.mark.parametrize("family", ["IResNet", "ViT", "EdgeFace"])
def test_recompute_keeps_less(family):
    network, image_shape = backbones.make(family)
    network.train()
    images = paddle.rand([8, *image_shape])
    whole, recomputed = (kept_bytes(network, images, context) for context in (None, BlockRecompute(network).forward()))
    assert 0 < recomputed < 0.6 * whole


def test_recompute_of_a_network_that_names_no_blocks_is_refused(entry):
    entry.set_recompute(True)
    entry.set_model(paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(3 * 16 * 16, 16)))
    with pytest.raises(ConfigError, match=r"Sequential names no blocks; give it a method recomputable\(\)"):
        entry.train()


def trained(family):
    """A network in evaluation mode whose running statistics are those of a batch, and its settings."""
    paddle.seed(0)
    network, image_shape = backbones.make(family)
    network.train()
    network(paddle.rand([16, *image_shape]) * 2 - 1)
    network.eval()
    return network, Config(image_shape=image_shape, emb_dim=EMB_DIM, dataset_dir="/no/such/folder")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["IResNet", "MobileFaceNet", "ViT", "EdgeFace of low rank"])
def test_a_backbone_embeds_equally_after_the_export_to_every_format(family, tmp_path, onnxruntime):
    """`export_backbone` compares each format with the network, to 1e-5."""
    network, config = trained(family)
    export_backbone(network, config, directory=tmp_path / "m", formats=("paddle", "legacy", "serving", "onnx"))
    assert {"onnx", "legacy", "serving"} <= {path.name for path in (tmp_path / "m").iterdir()}
    model = plsc.load_inference_model(tmp_path / "m")
    pixels = np.random.default_rng(0).integers(0, 256, [2, *config.image_shape[1:], 3], np.uint8)
    with paddle.no_grad():
        batch = (pixels.astype(np.float32) - 127.5) / 128
        rows = network(paddle.to_tensor(batch.transpose(0, 3, 1, 2)))
        mirrored = network(paddle.to_tensor(batch[:, :, ::-1].copy().transpose(0, 3, 1, 2)))
    expected = (rows + mirrored).numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(model.embed(list(pixels)), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["IResNet", "MobileFaceNet", "ViT", "EdgeFace"])
def test_resume_equals_never_having_stopped(family, entry, tmp_path):
    """Dropout, drop path and masks are drawn anew in each step, from the seed and the step; recompute is no matter."""
    entry.set_with_test(False)
    entry.set_image_shape(backbones.make(family)[1])

    def train(folder, steps, **settings):
        paddle.seed(1)
        entry.config.assign(model_save_dir=str(tmp_path / folder), **settings)
        entry.set_model(backbones.make(family)[0])
        entry.set_train_steps(steps)
        entry.train()
        return contents(tmp_path / folder)

    whole = train("whole", 4)
    train("broken", 2)
    broken = train("broken", 4, checkpoint_dir=str(tmp_path / "broken"), recompute=True)
    assert_equal(broken, whole)


def test_a_network_of_paddle_trains_by_its_name(entry):
    entry.set_model_name("paddle.vision.models:shufflenet_v2_x0_25")
    entry.set_image_shape((3, 32, 32))
    entry.set_train_steps(2)
    results = entry.train()
    assert math.isfinite(results["loss"]) and entry.test()["lfw/pairs"] == 20
