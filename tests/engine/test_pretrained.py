"""A new run begins with weights from elsewhere; one that resumes does not."""

from __future__ import annotations

import json
import logging
import uuid

import numpy as np
import paddle
import pytest

import plsc
from plsc import CheckpointError
from plsc.checkpoint import Checkpoint
from plsc.config import Config
from plsc.distributed.topology import Topology
from plsc.engine.places import places_of_training
from plsc.engine.pretrained import load_pretrained
from plsc.engine.trainer import Trainer
from plsc.export.export import export_backbone
from plsc.models.tiny import ResNetTiny
from tests._support.ranks import launch
from tests._support.s3 import fill
from tests._support.torch_zip import torch_save

SHAPE, DIM = (3, 16, 16), 8


class Noise:
    """Twelve images of four classes."""

    num_classes = 4

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return np.random.default_rng(index).integers(0, 255, (16, 16, 3), np.uint8), index % 4


def stirred(seed=0):
    """A network whose every tensor is random."""
    network, rng = ResNetTiny(DIM, SHAPE), np.random.default_rng(seed)
    for tensor in network.state_dict().values():
        tensor.set_value((rng.uniform(0.5, 1.5, tensor.shape) / 4 ** (len(tensor.shape) > 1)).astype("f4"))
    network.eval()
    return network


def settings(folder, **changes):
    return Config(
        **{
            **{"model_name": "ResNetTiny", "image_shape": SHAPE, "emb_dim": DIM, "train_dataset": Noise()},
            **{"train_batch_size": 4, "train_epochs": 1, "num_workers": 0, "with_test": False},
            **{"model_save_dir": str(folder / "output"), **changes},
        }
    )


def assert_same(network, expected):
    own = network.state_dict()
    assert own.keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        np.testing.assert_array_equal(own[name].numpy(), value.numpy(), err_msg=name)


def test_a_run_begins_with_the_weights_and_trains_them(tmp_path, caplog):
    caplog.set_level(logging.INFO, "plsc")
    source = stirred()
    paddle.save(source.state_dict(), str(tmp_path / "net.pdparams"))
    trainer = Trainer(settings(tmp_path, pretrained=str(tmp_path / "net.pdparams"), pretrained_strict=True))
    assert_same(trainer.backbone, source)
    lines = [record.message for record in caplog.records]
    at = lines.index(f"{tmp_path}/net.pdparams: Paddle's file, the network's own names -> ResNetTiny")
    assert lines[at + 1].split()[:2] == ["part", "loaded"]
    trainer.train()
    moved = Checkpoint(tmp_path / "output").read("backbone.body.0.weight")
    assert np.abs(moved - source.body[0].weight.numpy()).max() > 0
    assert Checkpoint(tmp_path / "output").about["settings"]["pretrained"] == str(tmp_path / "net.pdparams")


def test_a_run_that_resumes_ignores_them_and_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO, "plsc")
    Trainer(settings(tmp_path)).train()
    saved = Checkpoint(tmp_path / "output").read("backbone.body.0.weight")
    for resume in ({"auto_resume": True}, {"checkpoint_dir": str(tmp_path / "output")}):
        caplog.clear()
        # The file is not even opened: a run goes on after it was removed.
        gone = str(tmp_path / "gone.pt")
        trainer = Trainer(settings(tmp_path, pretrained=gone, train_epochs=2, **resume))
        np.testing.assert_array_equal(trainer.backbone.body[0].weight.numpy(), saved)
        assert f"{gone} is not loaded: the run goes on from {tmp_path}/output/0" in caplog.text
        trainer._lock.release()


def test_a_checkpoint_of_another_run_gives_its_network_only(tmp_path):
    Trainer(settings(tmp_path / "first")).train()
    given = settings(tmp_path / "second", pretrained=str(tmp_path / "first" / "output"))
    trainer = Trainer(given)
    saved = Checkpoint(tmp_path / "first" / "output")
    np.testing.assert_array_equal(trainer.backbone.body[0].weight.numpy(), saved.read("backbone.body.0.weight"))
    assert (trainer.epoch, trainer.step) == (0, 0)
    assert not np.array_equal(trainer.head.state()["weight"].numpy(), saved.read("head.weight"))


@pytest.mark.parametrize("bake", [(), ("preprocess", "normalize")])
def test_an_export_gives_the_network_that_was_exported(tmp_path, caplog, bake):
    source = stirred()
    config = Config(image_shape=SHAPE, emb_dim=DIM)
    export_backbone(
        source, config, directory=tmp_path / "inference_model", bake=bake, images=[np.zeros([16, 16, 3], "u1")]
    )
    for folder in (tmp_path, tmp_path / "inference_model"):
        network = ResNetTiny(DIM, SHAPE)
        given = Config(pretrained=str(folder), pretrained_strict=True)
        assert load_pretrained(given, network, resumed=None, topology=Topology())
        assert_same(network, source)
    assert "digest" not in caplog.text


def test_an_export_of_another_network_is_refused(tmp_path):
    export_backbone(stirred(), Config(image_shape=SHAPE, emb_dim=DIM), directory=tmp_path / "model")
    given = Config(pretrained=str(tmp_path / "model"), pretrained_strict=True)
    with pytest.raises(CheckpointError, match="other shape: head.1.weight"):
        load_pretrained(given, ResNetTiny(DIM + 1, SHAPE), resumed=None, topology=Topology())


def test_what_does_not_fit_is_a_warning_or_with_strict_an_error(tmp_path, caplog):
    state = {"body.0.weight": np.ones([16, 3, 3, 3], "f4")}
    path = str(torch_save(tmp_path / "part.pt", state))
    network = ResNetTiny(DIM, SHAPE)
    load_pretrained(Config(pretrained=path), network, resumed=None, topology=Topology())
    assert set(network.body[0].weight.numpy().ravel()) == {1.0}
    assert "not all of ResNetTiny is as in the file; to stop there: entry.pretrained_strict = True" in caplog.text
    entry = plsc.Entry()
    entry.set_pretrained(path, strict=True)
    assert (entry.pretrained, entry.pretrained_strict, entry.pretrained_bgr) == (path, True, False)
    with pytest.raises(CheckpointError, match="does not fit ResNetTiny whole: no value: body.1.weight, "):
        load_pretrained(entry.config, network, resumed=None, topology=Topology())


def test_files_behind_urls_are_copied_first(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, url = torch_save(tmp_path / "net.pt", {"a": np.ones(2, "f4")}), f"memory://{uuid.uuid4().hex}/weights"
    fill(url, {"net.pt": path.read_bytes(), "other.pt": b"x"})
    placed, _ = places_of_training(settings(tmp_path, pretrained=f"{url}/net.pt"))
    with open(placed.pretrained, "rb") as file:
        assert file.read() == path.read_bytes()
    with pytest.raises(CheckpointError, match="set_pretrained names a file of weights or a checkpoint"):
        places_of_training(settings(tmp_path, pretrained=f"{url}/none.pt"))


@pytest.mark.slow
@pytest.mark.ranks
def test_ranks_begin_with_the_same_weights_or_not_at_all(tmp_path):
    """Two ranks equal one; a file that differs between ranks is found before the first step."""
    rng = np.random.default_rng(0)
    shapes = {"conv.weight": [8, 3, 3, 3], "conv.bias": [8], "fc.weight": [16, 512], "fc.bias": [16]}
    state = {name: rng.uniform(-0.05, 0.05, shape).astype("f4") for name, shape in shapes.items()}
    torch_save(tmp_path / "net.pt", state)
    found = {}
    for ranks in (1, 2):
        given = {"model": "plain", "num_workers": 0, "train_epochs": 1, "train_batch_size": 12 // ranks}
        given.update(model_save_dir=str(tmp_path / str(ranks)), pretrained=str(tmp_path / "net.pt"))
        given.update(pretrained_strict=True)
        launch(ranks, "train_worker.py", json.dumps(given), log_dir=tmp_path / "log")
        told = [path.read_text() for path in sorted((tmp_path / "log").glob("workerlog.*"))]
        assert ["PyTorch's file, the network's own names -> Plain" in text for text in told] == [True, False][:ranks]
        saved = Checkpoint(tmp_path / str(ranks))
        found[ranks] = {name: saved.read(name) for name in saved.names("backbone.")}
    for name, value in found[1].items():
        np.testing.assert_allclose(found[2][name], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=name)
    script = tmp_path / "train.py"
    script.write_text(_OTHER_FILES.format(folder=str(tmp_path)))
    torch_save(tmp_path / "rank0.pt", state)
    torch_save(tmp_path / "rank1.pt", {**state, "fc.bias": state["fc.bias"] + 1})
    status, output = launch(2, script, log_dir=tmp_path / "log", check=False)
    assert status and "the ranks do not agree: pretrained weights is " in output


_OTHER_FILES = """
import os, sys, json
sys.argv[1:] = [json.dumps({{"model": "plain", "num_workers": 0, "train_epochs": 1, "model_save_dir": "{folder}/differ",
    "pretrained": "{folder}/rank" + os.environ["PADDLE_TRAINER_ID"] + ".pt"}})]
import runpy, tests._support.ranks as ranks
runpy.run_path(str(ranks.WORKERS / "train_worker.py"), run_name="__main__")
"""
