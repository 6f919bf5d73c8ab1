"""An export is computed on the CPU, in full float32, and leaves the training process as it was. The GPU is faked."""

from __future__ import annotations

import contextlib

import numpy as np
import paddle
import pytest
from paddle import nn

from plsc import ExportError
from plsc.distributed.topology import Topology
from plsc.export import device, export
from plsc.export.checking import TOLERANCE, relative_difference, run_eager
from plsc.export.export import export_backbone
from plsc.inference.predictor import Predictor
from tests._support.exporting import IMAGES, SHAPE, Flat, network, settings


@pytest.fixture
def current(monkeypatch):
    """Paddle computes on GPU 1 of this process, as it says; returns the devices that it is set to."""
    devices = ["gpu:1"]
    monkeypatch.setattr(paddle, "get_device", lambda: devices[-1])
    monkeypatch.setattr(paddle, "set_device", devices.append)
    return devices


class Watched(Flat):
    """Notes the device at each forward."""

    def __init__(self, current):
        super().__init__()
        self.current, self.seen = current, set()

    def forward(self, input):
        self.seen.add(self.current[-1])
        return super().forward(input)


def test_every_part_of_an_export_runs_on_the_cpu_and_the_device_is_set_back(tmp_path, current, monkeypatch):
    gpus, real = [], Predictor._load
    monkeypatch.setattr(
        Predictor,
        "_load",
        lambda self, *files, **options: gpus.append(self._gpu) or real(self, *files, **options),
    )
    net = Watched(current)
    export_backbone(net, settings(), directory=tmp_path / "m", formats=("legacy", "serving"), images=IMAGES)
    assert net.seen == {"cpu"}
    assert len(gpus) == 5 and set(gpus) == {None}
    assert current == ["gpu:1", "cpu", "gpu:1"]


def test_the_device_is_set_back_after_an_error(tmp_path, current, monkeypatch):
    def fail(self, batch):
        raise RuntimeError("no more memory")

    monkeypatch.setattr(Predictor, "run", fail)
    with pytest.raises(ExportError, match="no more memory"):
        export_backbone(Flat(), settings(), directory=tmp_path / "m", images=IMAGES)
    assert current == ["gpu:1", "cpu", "gpu:1"]


def test_the_network_of_a_checkpoint_is_made_on_the_cpu(entry, tmp_path, request, monkeypatch):
    entry.train()
    devices, seen, real = request.getfixturevalue("current"), [], export.open_backbone
    monkeypatch.setattr(export, "open_backbone", lambda config: seen.append(devices[-1]) or real(config))
    export.export_checkpoint(entry.config, Topology(), directory=tmp_path / "m")
    assert seen == ["cpu"] and devices[-1] == "gpu:1"


class OnGPU:
    """The place of a parameter on a GPU."""

    def is_cpu_place(self):
        return False


class Moved(Flat):
    """Notes where it is moved, and stays on the CPU."""

    def __init__(self):
        super().__init__()
        self.moves = []

    def to(self, device=None, dtype=None, blocking=None):
        self.moves.append(device)
        return super().to(device=paddle.CPUPlace())


@pytest.mark.parametrize("error", [None, ValueError])
def test_a_network_on_a_gpu_is_moved_and_moved_back(monkeypatch, current, error):
    place, net = OnGPU(), Moved()
    parameters = list(map(id, net.parameters()))
    types = [layer._dtype for layer in net.sublayers(include_self=True)]
    assert "float32" in map(str, types)
    monkeypatch.setattr(device, "_place_of", lambda network: place)
    with pytest.raises(error) if error else contextlib.nullcontext(), device.on_cpu(net):
        (there,) = net.moves
        assert there.is_cpu_place()
        if error:
            raise error
    assert net.moves[1:] == [place]
    assert list(map(id, net.parameters())) == parameters
    assert [layer._dtype for layer in net.sublayers(include_self=True)] == types


def test_the_device_is_set_back_where_a_network_cannot_be_moved_back(monkeypatch, current):
    net = Moved()
    monkeypatch.setattr(device, "_place_of", lambda network: OnGPU())

    def move(network, place):
        if isinstance(place, OnGPU):
            raise RuntimeError("out of memory")

    monkeypatch.setattr(device, "_move", move)
    with pytest.raises(RuntimeError, match="out of memory"), device.on_cpu(net):
        pass
    assert current == ["gpu:1", "cpu", "gpu:1"]


def test_a_network_on_the_cpu_is_not_moved(current):
    net = Moved()
    with device.on_cpu(net):
        pass
    assert not net.moves


def rounded_to_tf32(tensor):
    """The nearest number of 10 bits after the point, of float32's 23."""
    bits = tensor.numpy().view(np.int32)
    return paddle.to_tensor(((bits + 0x1000) & ~0x1FFF).view(np.float32))


def test_the_outputs_that_an_export_is_compared_with_are_in_full_float32(current, monkeypatch):
    """Convolutions on GPUs are in TF32 by default, further from float32 than an export may be."""
    real, net = nn.Conv2D.forward, network()
    inputs = {"random images": paddle.rand([3, *SHAPE]).numpy()}
    expected = run_eager(net, inputs)["random images"]

    def forward(layer, images):
        return real(layer, images if current[-1] == "cpu" else rounded_to_tf32(images))

    monkeypatch.setattr(nn.Conv2D, "forward", forward)
    assert relative_difference(run_eager(net, inputs)["random images"], expected) > TOLERANCE
    with device.on_cpu(net):
        assert np.array_equal(run_eager(net, inputs)["random images"], expected)
