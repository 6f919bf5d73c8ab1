"""Weights put into a network, and the table of what fitted."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from plsc import CheckpointError, create_backbone
from plsc.models.resnet import ResNet
from plsc.pretrained.matching import load, match, table
from plsc.pretrained.opening import open_weights
from plsc.pretrained.tensors import StoredTensor
from tests._support.torch_zip import torch_save

TORCH = os.environ.get("PLSC_TORCH_PYTHON")
SHAPE, DIM = (3, 32, 32), 24


class Net(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.PReLU(4)
        self.fc = nn.Linear(4, 4)  # square, so that only the library tells rows from columns

    def forward(self, x):
        return self.fc(self.act(self.bn(self.conv(x))).mean([2, 3]))


def torch_state(seed=0, **changes):
    """`Net` as PyTorch saves it."""
    rng = np.random.default_rng(seed)
    shapes = {"conv.weight": [4, 3, 3, 3], "conv.bias": [4], "bn.weight": [4], "bn.bias": [4], "bn.running_mean": [4]}
    shapes.update({"bn.running_var": [4], "act.weight": [4], "fc.weight": [4, 4], "fc.bias": [4]})
    state = {name: rng.uniform(0.5, 1.5, shape).astype("f4") for name, shape in shapes.items()}
    state["bn.num_batches_tracked"] = np.array(7)
    return {name: value for name, value in {**state, **changes}.items() if value is not None}


@pytest.fixture
def put(tmp_path):
    def put(state, network=None, **how):
        """(what `match` returned, the network) after loading a file of a state."""
        network = network or Net()
        found = match(open_weights(torch_save(tmp_path / "net.pt", state)), network)
        load(found, network, **how)
        return found, network

    return put


def test_each_tensor_is_where_it_belongs(put):
    state = torch_state()
    found, network = put(state, strict=True)
    own = {name: value.numpy() for name, value in network.state_dict().items()}
    expected = {"conv.weight": "conv.weight", "bn._mean": "bn.running_mean", "bn._variance": "bn.running_var"}
    for name, source in {**expected, "act._weight": "act.weight", "fc.bias": "fc.bias"}.items():
        np.testing.assert_array_equal(own[name], state[source])
    np.testing.assert_array_equal(own["fc.weight"], state["fc.weight"].T)
    assert found.is_whole and not found.foreign


def test_paddles_matrices_are_not_transposed(tmp_path):
    source, network = Net(), Net()
    paddle.save(source.state_dict(), str(tmp_path / "net.pdparams"))
    load(match(open_weights(tmp_path / "net.pdparams"), network), network, strict=True)
    for name, value in source.state_dict().items():
        np.testing.assert_array_equal(network.state_dict()[name].numpy(), value.numpy())


def test_bfloat16_of_paddle_is_read_by_the_type_of_the_network(tmp_path):
    network, state = Net(), {name: value.numpy() for name, value in Net().state_dict().items()}
    paddle.save({**state, "fc.bias": np.array([0x3F80, 0xC000, 0, 0], np.uint16)}, str(tmp_path / "net.pdparams"))
    load(match(open_weights(tmp_path / "net.pdparams"), network), network, strict=True)
    np.testing.assert_array_equal(network.fc.bias.numpy(), [1, -2, 0, 0])


def test_what_does_not_fit_is_listed_and_stays(put):
    state = torch_state(**{"fc.weight": np.ones([5, 4], "f4"), "bn.bias": None, "conv.extra": np.ones(3, "f4")})
    state["head.kernel"] = np.ones([4, 9], "f4")
    before = Net()
    kept = before.fc.weight.numpy()
    found, network = put(state, before)
    np.testing.assert_array_equal(network.fc.weight.numpy(), kept)
    np.testing.assert_array_equal(network.conv.weight.numpy(), state["conv.weight"])
    assert found.misfits == {"fc.weight": ([4, 4], [4, 5])} and found.missing == ["bn.bias"]
    assert found.unused == ["conv.extra"] and found.foreign == ["head.kernel"]
    lines = table(found, network)
    assert lines[1].split() == ["part", "loaded", "implied", "other", "shape", "no", "value"]
    assert [line.split() for line in lines[2:7]] == [
        *(["conv", "2", "-", "-", "-"], ["bn", "3", "-", "-", "1"], ["act", "1", "-", "-", "-"]),
        *(["fc", "1", "-", "1", "-"], ["all", "7", "-", "1", "1"]),
    ]
    assert [line.strip() for line in lines[7:]] == [
        "other shape: fc.weight is [4, 5], expected [4, 4]",
        "no value: bn.bias",
        "not used: conv.extra",
        "not used, of other parts: head.kernel",
    ]
    assert len({len(line) for line in lines[1:7]}) == 1


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"fc.weight": np.ones([5, 4], "f4")}, r"other shape: fc.weight is \[4, 5\], expected \[4, 4\]"),
        ({"bn.bias": None}, "no value: bn.bias"),
        ({"conv.extra": np.ones(3, "f4")}, "not used: conv.extra"),
    ],
)
def test_strict_refuses_what_does_not_fit(put, changes, said):
    network = Net()
    kept = network.conv.weight.numpy()
    with pytest.raises(CheckpointError, match=said):
        put(torch_state(**changes), network, strict=True)
    np.testing.assert_array_equal(network.conv.weight.numpy(), kept)


def test_strict_takes_a_file_with_a_head(put):
    put({**torch_state(), "head.kernel": np.ones([4, 9], "f4")}, strict=True)


def test_nothing_that_fits_is_an_error(put):
    with pytest.raises(
        CheckpointError, match=r"no tensor fits Net, whose tensors are conv.weight, .*; the file has a, "
    ):
        put({"a": np.ones(3, "f4")})


def test_numbers_that_are_not_finite_are_refused(put):
    with pytest.raises(CheckpointError, match="fc.bias holds nan, expected finite numbers"):
        put(torch_state(**{"fc.bias": np.array([0, np.nan, 0, 0], "f4")}))


def test_one_slope_stands_for_all_channels(put):
    _, network = put(torch_state(**{"act.weight": np.array([0.3], "f4")}), strict=True)
    np.testing.assert_array_equal(network.act._weight.numpy(), np.float32([0.3] * 4))


def test_bgr_reverses_the_input_channels_of_the_first_convolution_only(put):
    state = torch_state()
    _, network = put(state, bgr=True)
    np.testing.assert_array_equal(network.conv.weight.numpy(), state["conv.weight"][:, ::-1])
    images = paddle.rand([2, 3, 8, 8])
    _, straight = put(state)
    network.eval(), straight.eval()
    np.testing.assert_allclose(network(images).numpy(), straight(images.flip(1)).numpy(), rtol=1e-5)


def test_an_onnx_model_whose_names_are_lost_is_refused(tmp_path):
    onnx = pytest.importorskip("onnx")
    state = torch_state(**{"bn.weight": None, "bn.running_mean": None})
    values = [onnx.numpy_helper.from_array(value, name) for name, value in state.items()]
    graph = onnx.helper.make_graph([], "net", [], [], values)
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "net.onnx"))
    with pytest.raises(CheckpointError, match="has no tensors of the names bn.weight, bn._mean, which Net needs"):
        load(match(open_weights(tmp_path / "net.onnx"), Net()), Net())


def test_adaface_names_fit_resnet_with_what_they_leave_out(tmp_path):
    """The shortcut of the first unit, and the last normalization, of which AdaFace has no weights."""
    network = ResNet(50, DIM, image_shape=SHAPE)
    words = {"stem": "input_layer", "stages": "body", "head": "output_layer"}
    inner = {"body": "res_layer", "shortcut": "shortcut_layer"}
    last = {"_mean": "running_mean", "_variance": "running_var", "_weight": "weight"}
    tensors, rng = {}, np.random.default_rng(0)
    for name, value in network.state_dict().items():
        parts = name.split(".")
        parts = [words[parts[0]], *(inner.get(part, last.get(part, part)) for part in parts[1:])]
        own = rng.uniform(0.5, 1.5, value.shape).astype("f4")
        tensors[".".join(parts)] = StoredTensor(own.T if name == "head.3.weight" else own)
    for name in [name for name in tensors if name.startswith("body.0.shortcut_layer") or name in _AFFINE]:
        del tensors[name]
    found = match(open_weights(torch_save(tmp_path / "a.pt", {n: t.numpy() for n, t in tensors.items()})), network)
    load(found, network, strict=True)
    shortcut = network.stages[0].shortcut
    shortcut.eval()
    x = paddle.rand([2, 64, 6, 6])
    np.testing.assert_allclose(shortcut(x).numpy(), x.numpy()[:, :, ::2, ::2], rtol=1e-6)
    assert set(network.head[4].weight.numpy()) == {1.0} and set(network.head[4].bias.numpy()) == {0.0}
    assert len(found.implied) == 7


_AFFINE = ("output_layer.4.weight", "output_layer.4.bias")


def test_paddleclas_names_fit_a_network_of_paddle(tmp_path):
    """ResNet50 of PaddleClas and of paddle.vision are one network; the classifier stays behind."""
    network = create_backbone("paddle.vision.models:resnet50", emb_dim=4, image_shape=SHAPE)
    own = {name.removeprefix("body."): value.numpy() + 1 for name, value in network.state_dict().items()}
    units = [f"layer{stage}.{unit}" for stage, count in enumerate((3, 4, 6, 3), start=1) for unit in range(count)]
    words = {f"conv{index}": f"conv{index - 1}.conv" for index in (1, 2, 3)}
    words.update({f"bn{index}": f"conv{index - 1}.bn" for index in (1, 2, 3)})
    words.update({"downsample.0": "short.conv", "downsample.1": "short.bn"})
    clas = {"fc.weight": np.ones([2048, 1000], "f4")}
    for name, value in own.items():
        stage, _, inner = name.rpartition(".")
        unit = next((unit for unit in units if stage.startswith(f"{unit}.")), None)
        if unit is not None:
            stage = f"blocks.{units.index(unit)}.{words[stage[len(unit) + 1 :]]}"
        if not name.startswith("embedding"):
            clas[f"{ {'conv1': 'stem.0.conv', 'bn1': 'stem.0.bn'}.get(stage, stage) }.{inner}"] = value
    paddle.save(clas, str(tmp_path / "net.pdparams"))
    found = match(open_weights(tmp_path / "net.pdparams"), network)
    load(found, network)
    assert found.scheme.name == "PaddleClas" and found.foreign == ["fc.weight"] and not found.unused
    assert {name.split(".")[0] for name in found.missing} == {"embedding"}
    for name, value in network.state_dict().items():
        if name.startswith("body."):
            np.testing.assert_array_equal(value.numpy(), own[name.removeprefix("body.")], err_msg=name)


@pytest.fixture(scope="module")
def torch_files(tmp_path_factory):
    """Files that PyTorch has written, with what its networks compute."""
    if not TORCH:
        pytest.skip("PLSC_TORCH_PYTHON names no interpreter that has PyTorch")
    folder = tmp_path_factory.mktemp("torch")
    script = Path(__file__).parents[1] / "_support" / "workers" / "torch_files.py"
    subprocess.run([TORCH, script, folder], check=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "case, network",
    [
        *(("iresnet18.pt", "IResNet18"), ("wrapped.pth", "IResNet18"), ("double.pt", "IResNet18")),
        *(("bfloat16.pt", "IResNet18"), ("adaface.ckpt", "IResNet18"), ("adaface50.pt", "ResNet50")),
        *(("adaface50.pt", "IResNet50"), ("mobilefacenet.pt", "MobileFaceNet"), ("vit.pt", "ViT-T")),
        *(("cvlface.pt", "ViT-T"), ("safetensors.safetensors", "ViT-T"), ("iresnet18.onnx", "IResNet18")),
    ],
)
def test_networks_agree_with_pytorch(torch_files, case, network):
    if not (torch_files / case).is_file():
        pytest.skip(f"PyTorch has not written {case}: its package onnx is missing")
    backbone = create_backbone(network, emb_dim=DIM, image_shape=SHAPE)
    load(match(open_weights(torch_files / case), backbone), backbone, strict=True)
    backbone.eval()
    held = np.load(torch_files / f"{Path(case).stem}.npz")
    found = backbone(paddle.to_tensor(held["images"])).numpy()
    np.testing.assert_allclose(found, held["outputs"], rtol=0, atol=1e-5)
    assert np.abs(held["outputs"]).max() > 0.1


@pytest.mark.slow
def test_an_onnx_model_of_pytorch_whose_layers_are_folded_is_refused(torch_files):
    if not (torch_files / "folded.onnx").is_file():
        pytest.skip("PyTorch has not written folded.onnx: its package onnx is missing")
    network = create_backbone("IResNet18", emb_dim=DIM, image_shape=SHAPE)
    with pytest.raises(CheckpointError, match=r"has no tensors of the names conv1.weight, bn1.*folded layers together"):
        load(match(open_weights(torch_files / "folded.onnx"), network), network)
