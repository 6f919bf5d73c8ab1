"""Checkpoints made of what other libraries' trainings have saved."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from plsc import CheckpointError
from plsc.checkpoint import Checkpoint, reader
from plsc.engine.importing import import_checkpoint
from plsc.pretrained import trainings
from plsc.utils.ranges import shard_ranges
from tests._support.checkpoints import assert_equal, contents
from tests._support.fluid import save_variable
from tests._support.ranks import launch
from tests._support.torch_zip import Raw, torch_save

CLASSES, DIM, SIDE, GLOBAL_BATCH = 10, 16, 8, 12
TORCH = os.environ.get("PLSC_TORCH_PYTHON")


class Net(nn.Layer):
    """The tensors of the network that tests/_support/workers/train_worker.py calls plain."""

    def __init__(self, emb_dim=DIM, image_shape=(3, SIDE, SIDE)):
        super().__init__()
        self.conv = nn.Conv2D(3, 8, 3, padding=1)
        self.fc = nn.Linear(8 * image_shape[1] * image_shape[2], emb_dim)

    def forward(self, images):
        return self.fc(nn.functional.relu(self.conv(images)).flatten(1))


def bring_in(source, target, **options):
    options = {"model_name": f"{__name__}:Net", "image_shape": (3, SIDE, SIDE), **options}
    return import_checkpoint(source, target, **options)


def state(rng=None):
    rng = rng or np.random.default_rng(0)
    shapes = {"conv.weight": [8, 3, 3, 3], "conv.bias": [8], "fc.weight": [DIM, 512], "fc.bias": [DIM]}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write_states(folder, network, weight, *, momentum=None, velocity=None, ranks=4, **more):
    """What arcface_torch saves of so many ranks; `momentum` by name, `velocity` of the class centers."""
    folder.mkdir(exist_ok=True)
    names = list(network)
    for rank, own in enumerate(shard_ranges(len(weight), ranks)):
        held = {index: {"momentum_buffer": momentum[name]} for index, name in enumerate(names)} if momentum else {}
        if velocity is not None:
            held[len(names)] = {"momentum_buffer": velocity[own.start : own.stop]}
        groups = [{"lr": 0.1, "params": [*range(len(names))]}, {"lr": 0.1, "params": [len(names)]}]
        content = {"epoch": 2, "global_step": 10, "state_dict_backbone": network, **more}
        content["state_dict_softmax_fc"] = {"weight": weight[own.start : own.stop]}
        content.update(state_optimizer={"state": held, "param_groups": groups}, state_lr_scheduler={"last_epoch": 10})
        torch_save(folder / f"checkpoint_gpu_{rank}.pt", content)
    return folder


def train(ranks, folder, **settings):
    folder.mkdir(exist_ok=True)
    settings = {
        **{"model": "plain", "num_workers": 0, "train_batch_size": GLOBAL_BATCH // ranks},
        **{"model_save_dir": str(folder / "output"), **settings},
    }
    _, output = launch(ranks, "train_worker.py", json.dumps(settings), log_dir=folder / "log")
    return contents(Checkpoint(folder / "output").path), output


def in_torch(saved, prefix):
    """Tensors of a checkpoint under their own names, matrices as PyTorch has them."""
    named = {name[len(prefix) :]: saved.read(name) for name in saved.names(prefix)}
    return {name: value.T if name.startswith("fc.weight") else value for name, value in named.items()}


@pytest.mark.slow
@pytest.mark.ranks
def test_four_files_of_arcface_torch_go_on_on_three_ranks_as_if_never_exported(tmp_path):
    """Ten classes of four ranks, 3-3-2-2, with all momentum: the rest of the run on three ranks gives the same numbers
    as that of our own checkpoint on one rank."""
    train(1, tmp_path / "first", train_epochs=2)
    saved = Checkpoint(tmp_path / "first" / "output")
    network = in_torch(saved, "backbone.")
    momentum = {name.removesuffix(":velocity"): value for name, value in in_torch(saved, "optimizer.").items()}
    write_states(
        tmp_path / "arcface",
        network,
        saved.read("head.weight"),
        momentum={name: momentum[name] for name in network},
        velocity=saved.read("head.weight:velocity"),
    )
    imported = bring_in(tmp_path / "arcface", tmp_path / "imported", ranks=2)
    assert_equal(contents(imported), contents(saved.path))
    expected, _ = train(1, tmp_path / "own", train_epochs=4, checkpoint_dir=str(saved.path))
    found, _ = train(3, tmp_path / "others", train_epochs=4, checkpoint_dir=str(imported))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=name)
    assert np.abs(expected["head.weight"] - saved.read("head.weight")).max() > 1e-3


@pytest.mark.slow
@pytest.mark.ranks
def test_files_of_pytorch_itself_train_on_three_ranks(tmp_path):
    if not TORCH:
        pytest.skip("PLSC_TORCH_PYTHON names no interpreter that has PyTorch")
    script = Path(__file__).parents[1] / "_support" / "workers" / "torch_files.py"
    code = f"import sys; sys.path.insert(0, {str(script.parent)!r}); import torch_files, pathlib"
    code += f"; torch_files.write_states(pathlib.Path({str(tmp_path / 'states')!r}))"
    subprocess.run([TORCH, "-c", code], check=True, timeout=300)
    imported = bring_in(tmp_path / "states", tmp_path / "imported")
    found, held = contents(imported), np.load(tmp_path / "states" / "held.npz")
    np.testing.assert_array_equal(found["head.weight"], held["weight"])
    np.testing.assert_array_equal(found["head.weight:velocity"], held["velocity"])
    for name in ("conv.weight", "conv.bias", "fc.bias"):
        np.testing.assert_array_equal(found[f"backbone.{name}"], held[name])
        np.testing.assert_array_equal(found[f"optimizer.{name}:velocity"], held[f"{name}:velocity"])
    np.testing.assert_array_equal(found["optimizer.fc.weight:velocity"], held["fc.weight:velocity"].T)
    trained, output = train(3, tmp_path / "run", train_epochs=3, checkpoint_dir=str(imported))
    assert "2 epochs done, step 10" in output
    assert trained["head.weight"].shape == (CLASSES, DIM) and np.isfinite(trained["head.weight"]).all()


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_any_shards_become_the_shards_of_any_ranks(tmp_path, monkeypatch, ranks):
    monkeypatch.setattr(reader, "BLOCK_BYTES", 128)  # two rows
    weight = np.random.default_rng(1).standard_normal([CLASSES, DIM], np.float32)
    write_states(tmp_path / "in", state(), weight, velocity=weight * 2, ranks=4)
    saved = Checkpoint(bring_in(tmp_path / "in", tmp_path / "out", ranks=ranks))
    saved.verify()
    assert [part.size for part in saved.parts("head.weight")] == [own.size for own in shard_ranges(CLASSES, ranks)]
    np.testing.assert_array_equal(saved.read("head.weight"), weight)
    np.testing.assert_array_equal(saved.read("head.weight:velocity"), weight * 2)
    assert saved.about["settings"]["num_classes"] == CLASSES and saved.about["settings"]["emb_dim"] == DIM
    assert saved.about["settings"]["pixel_std"] == [127.5] * 3
    assert (saved.about["epoch"], saved.about["step"]) == (2, 10)


def test_momentum_of_sampled_classes_begins_at_zero(tmp_path, caplog):
    caplog.set_level(logging.INFO, "plsc")
    weight = np.ones([CLASSES, DIM], np.float32)
    write_states(tmp_path / "in", state(), weight, velocity=weight[:6])  # fewer rows than classes
    saved = Checkpoint(bring_in(tmp_path / "in", tmp_path / "out"))
    assert saved.names("head.") == ["head.weight"] and not saved.names("optimizer.")
    assert "no momentum of all class centers was found" in caplog.text


def test_files_of_class_centers_and_of_their_momentum(tmp_path):
    weight = np.random.default_rng(1).standard_normal([CLASSES, DIM], np.float32)
    for rank, own in enumerate(shard_ranges(CLASSES, 3)):
        torch_save(tmp_path / f"rank_{rank}_softmax_weight.pt", weight[own.start : own.stop])
        torch_save(tmp_path / f"rank_{rank}_softmax_weight_mom.pt", -weight[own.start : own.stop])
    with pytest.raises(CheckpointError, match=r"holds class centers and no network; name its file: backbone='"):
        bring_in(tmp_path, tmp_path / "out")
    torch_save(tmp_path / "backbone.pth", state())
    found = contents(bring_in(tmp_path, tmp_path / "out"))
    np.testing.assert_array_equal(found["head.weight"], weight)
    np.testing.assert_array_equal(found["head.weight:velocity"], -weight)
    np.testing.assert_array_equal(found["backbone.fc.weight"], state()["fc.weight"].T)
    torch_save(tmp_path / "other.pth", {name: value + 1 for name, value in state().items()})
    found = contents(bring_in(tmp_path, tmp_path / "again", backbone=tmp_path / "other.pth"))
    np.testing.assert_array_equal(found["backbone.conv.bias"], state()["conv.bias"] + 1)


def test_files_of_plsc_2(tmp_path):
    network = Net()
    weight = np.random.default_rng(1).standard_normal([CLASSES, DIM], np.float32)
    paddle.save(network.state_dict(), str(tmp_path / "latest.pdparams"))
    paddle.save(network.state_dict(), str(tmp_path / "best.pdparams"))
    for rank, start in enumerate(range(0, CLASSES, 4)):  # 4, 4 and 2 classes
        shard = paddle.to_tensor(weight[start : start + 4].T)
        paddle.save({"head.weight": shard}, str(tmp_path / f"latest_rank{rank}.pdparams"))
    with pytest.raises(CheckpointError, match="holds best.pdparams, latest.pdparams; name one of them"):
        bring_in(tmp_path, tmp_path / "out")
    saved = Checkpoint(bring_in(tmp_path / "latest.pdparams", tmp_path / "out", ranks=3))
    np.testing.assert_array_equal(saved.read("head.weight"), weight)
    np.testing.assert_array_equal(saved.read("backbone.fc.weight"), network.fc.weight.numpy())
    assert not saved.names("optimizer.") and saved.names("head.") == ["head.weight"]
    own = {tensor.name: {"exp_avg": tensor + 1} for tensor in network.parameters()}
    paddle.save({"state": own, "param_groups": [{"lr": 0.1, "params": list(own)}]}, str(tmp_path / "latest.pdopt"))
    for rank, start in enumerate(range(0, CLASSES, 4)):
        shard = {"partialfc": {"exp_avg": paddle.to_tensor(-weight[start : start + 4].T)}}
        paddle.save({"state": shard, "param_groups": []}, str(tmp_path / f"latest_rank{rank}.pdopt"))
    saved = Checkpoint(bring_in(tmp_path / "latest.pdparams", tmp_path / "with momentum"))
    np.testing.assert_array_equal(saved.read("head.weight:velocity"), -weight)
    for name, value in network.named_parameters():
        np.testing.assert_array_equal(saved.read(f"optimizer.{name}:velocity"), value.numpy() + 1)
    (tmp_path / "latest_rank1.pdparams").unlink()
    with pytest.raises(CheckpointError, match="of rank 1 is missing"):
        bring_in(tmp_path / "latest.pdparams", tmp_path / "again")


def test_a_head_in_the_file_of_the_network(tmp_path, caplog):
    caplog.set_level(logging.INFO, "plsc")
    kernel = np.random.default_rng(1).standard_normal([DIM, CLASSES], np.float32)
    lightning = {f"model.{name}": value for name, value in state().items()}
    torch_save(tmp_path / "a.ckpt", {"state_dict": {**lightning, "head.kernel": kernel, "head.t": np.zeros(1)}})
    np.testing.assert_array_equal(contents(bring_in(tmp_path / "a.ckpt", tmp_path / "a"))["head.weight"], kernel.T)
    assert "not used, of other parts: head.t" in caplog.text
    paddle.save({**Net().state_dict(), "head.weight": paddle.to_tensor(kernel)}, str(tmp_path / "b.pdparams"))
    found = contents(bring_in(tmp_path / "b.pdparams", tmp_path / "b"))
    np.testing.assert_array_equal(found["head.weight"], kernel.T)


class WithHead(nn.Layer):
    """A network of its own whose last layer has the name of the class centers of PLSC 2.x."""

    def __init__(self, emb_dim=DIM, image_shape=(3, SIDE, SIDE)):
        super().__init__()
        self.conv, self.head = nn.Conv2D(3, 8, 3), nn.Linear(8, emb_dim)


def test_a_layer_that_is_called_head_is_no_class_center(tmp_path):
    network = WithHead(5)
    paddle.save(network.state_dict(), str(tmp_path / "net.pdparams"))
    saved = Checkpoint(
        bring_in(tmp_path / "net.pdparams", tmp_path / "out", model_name=f"{__name__}:WithHead", strict=True)
    )
    assert not saved.names("head.") and saved.about["settings"]["emb_dim"] == 5
    np.testing.assert_array_equal(saved.read("backbone.head.weight"), network.head.weight.numpy())


def write_plsc_0(folder, *, units=(3, 4, 14, 3), ranks=3):
    """A folder of PLSC 0.x: returns {name in our ResNet50: what it is to become}, and the class centers."""
    from plsc.models.resnet import ResNet

    folder.mkdir()
    rng, network = np.random.default_rng(2), ResNet(50, DIM, image_shape=(3, 32, 32))
    kinds = {"Conv2D": "conv2d", "BatchNorm2D": "batch_norm", "BatchNorm1D": "batch_norm", "PReLU": "prelu"}
    which = {"weight": "w_0", "bias": "b_0", "_mean": "w_1", "_variance": "w_2", "_weight": "w_0"}
    counts, expected = {}, {}
    for name, layer in network.named_sublayers():
        kind = {**kinds, "Linear": "fc"}.get(type(layer).__name__)
        if kind is None:
            continue
        number = counts.setdefault(kind, 0)
        counts[kind] += 1
        for attribute, value in layer.state_dict().items():
            given = rng.uniform(0.5, 1.5, value.shape if kind != "prelu" else [1]).astype("f4")
            save_variable(folder / f"{kind}_{number}.{which[attribute]}", given)
            widened = given + np.float32(1e-5) if attribute == "_variance" else given
            expected[f"{name}.{attribute}"] = np.broadcast_to(widened, value.shape)
    weight = rng.standard_normal([CLASSES, DIM], np.float32)
    size = -(-CLASSES // ranks)
    for rank in range(ranks):
        shard = weight[rank * size : (rank + 1) * size].T
        save_variable(folder / f"dist@arcface@rank@{rank:05d}.w_0", shard)
        save_variable(folder / f"dist@arcface@rank@{rank:05d}.w_0_velocity_0", 2 * shard)
    return expected, weight


def test_files_of_plsc_0(tmp_path):
    expected, weight = write_plsc_0(tmp_path / "in")
    target = bring_in(tmp_path / "in", tmp_path / "out", model_name="ResNet50", image_shape=(3, 32, 32), strict=True)
    saved = Checkpoint(target)
    np.testing.assert_array_equal(saved.read("head.weight"), weight)
    np.testing.assert_array_equal(saved.read("head.weight:velocity"), 2 * weight)
    assert {name[len("backbone.") :] for name in saved.names("backbone.")} == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(saved.read(f"backbone.{name}"), value, err_msg=name)
    assert saved.about["settings"]["pixel_std"] == [128.0] * 3
    (tmp_path / "in" / "dist@arcface@rank@00001.w_0").unlink()
    with pytest.raises(CheckpointError, match="weight of the class centers of rank 1 is missing"):
        trainings.open_training(tmp_path / "in")


def test_a_network_alone_takes_the_embedding_size_of_its_file(tmp_path):
    torch_save(tmp_path / "net.pt", state())
    saved = Checkpoint(bring_in(tmp_path / "net.pt", tmp_path / "out"))
    assert saved.about["settings"]["emb_dim"] == DIM and not saved.names("head.")
    np.testing.assert_array_equal(saved.read("backbone.fc.bias"), state()["fc.bias"])


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda folder: (folder / "checkpoint_gpu_1.pt").unlink(), r"checkpoint_gpu_\*.pt of rank 1 is missing"),
        (lambda folder: (folder / "checkpoint_gpu_3.pt").unlink(), "the shards have 3, 3, 3, 1 classes, which 4 ranks"),
        (
            lambda folder: torch_save(folder / "checkpoint_gpu_1.pt", {"a": np.ones(2, "f4")}),
            "has no state_dict_softmax_fc",
        ),
        (
            lambda folder: torch_save(folder / "checkpoint_gpu_1.pt", {"a": Raw(b"cos\nsystem\n)R")}),
            "asks for os.system",
        ),
    ],
)
def test_files_that_are_missing_or_others_are_refused(tmp_path, change, said):
    write_states(tmp_path / "in", state(), np.ones([CLASSES + 1, DIM], np.float32), ranks=4)  # 3, 3, 3, 2
    change(tmp_path / "in")
    if said.startswith("the shards"):
        torch_save(tmp_path / "in" / "checkpoint_gpu_3.pt", {**_rank_of(tmp_path, 1), "epoch": 1})
    with pytest.raises(CheckpointError, match=said):
        bring_in(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _rank_of(folder, classes):
    shard = {"weight": np.ones([classes, DIM], np.float32)}
    return {"state_dict_backbone": state(), "state_dict_softmax_fc": shard}


def test_class_centers_that_are_not_finite_are_refused(tmp_path):
    weight = np.ones([CLASSES, DIM], np.float32)
    weight[7, 3] = np.inf
    write_states(tmp_path / "in", state(), weight)
    with pytest.raises(CheckpointError, match="head.weight holds inf in row 7"):
        bring_in(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_class_centers_are_read_in_blocks(tmp_path, monkeypatch):
    """No more rows at a time than a block has, from whichever shards they come."""
    monkeypatch.setattr(reader, "BLOCK_BYTES", 4 * DIM * 4)
    asked = []
    real = trainings.StoredTensor.read
    monkeypatch.setattr(
        trainings.StoredTensor, "read", lambda self, *rows: asked.append((self, rows)) or real(self, *rows)
    )
    write_states(tmp_path / "in", state(), np.ones([100, DIM], np.float32))
    bring_in(tmp_path / "in", tmp_path / "out", ranks=3)
    rows = [stop - start for tensor, (start, stop) in asked if tensor.shape == [25, DIM]]
    assert max(rows) <= 4 and sum(rows) == 100
