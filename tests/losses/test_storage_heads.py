"""Heads whose centers and states are kept in few bytes: every loss, and the memory that is never taken."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc import ConfigError
from plsc.checkpoint import Checkpoint, reader, save_checkpoint
from plsc.config import Config
from plsc.distributed.collectives import Collectives
from plsc.engine.optimizer import NamedOptimizer
from plsc.engine.soundness import find_center
from plsc.engine.state import head_parts
from plsc.engine.tensor_rows import CheckpointState
from plsc.loss_types import LOSS_KINDS
from plsc.losses.centers import top_classes
from plsc.losses.classifier import Classifier
from plsc.losses.row_optimizers import Momentum
from plsc.utils.ranges import Range
from tests._support.memory import Taken

LEAN = {"center_storage": "bfloat16", "momentum_storage": "int8"}


def make_head(**settings):
    config = Config(**{"num_classes": 60, "emb_dim": 8, "lr": 0.1, **settings})
    return Classifier(
        config,
        Collectives(),
        make_optimizer=lambda own: NamedOptimizer(config, own, of_centers=True),
        class_counts=lambda: np.arange(1, config.num_classes + 1),
    )


def step(head, number=0, rate=0.1):
    random = np.random.default_rng(number)
    width = head.parameters["weight"].shape[-1]
    features = paddle.to_tensor(random.standard_normal((6, width)).astype(np.float32))
    labels = paddle.to_tensor(random.integers(0, head.classes.size, 6))
    loss = head.forward(features, labels, step=number)
    gradient = head.backward()
    head.update(rate)
    return loss.item(), gradient.numpy()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.parametrize("loss_type", sorted(LOSS_KINDS))
def test_every_loss_computes_what_it_does_of_the_same_centers_in_float32(loss_type, ratio):
    """Loss and gradient are those of float32 to the bit; a center then moves to a neighbor of where it would."""
    settings = {"loss_type": f"dist_{loss_type}", "sample_ratio": ratio}
    if loss_type == "combined":
        settings.update(margin1=1.0, margin2=0.3, margin3=0.1)
    lean, full = make_head(**settings, **LEAN), make_head(**settings)
    weight = lean.parameters["weight"].astype("float32").numpy()
    full.load({"weight": weight, **{name: value.numpy() for name, value in full.state().items() if name == "bias"}})
    for number in range(2):
        found, expected = step(lean, number), step(full, number)
        assert found[0] == expected[0]
        np.testing.assert_array_equal(found[1], expected[1])
        exact = full.parameters["weight"].numpy()
        kept = lean.parameters["weight"].astype("float32").numpy()
        assert not np.array_equal(exact, weight)
        assert (np.abs(kept - exact) <= np.abs(exact) / 128 + 1e-30).all()
        if "bias" in full.parameters:
            np.testing.assert_array_equal(lean.parameters["bias"], full.parameters["bias"])
        # The next step begins with the same numbers.
        full.load({**{name: value.numpy() for name, value in lean.state().items()}})
        weight = kept


CLASSES, WIDTH = 40_000, 64


@pytest.mark.cpu("counts the memory of a CPU")
def test_no_float32_copy_of_a_shard_is_ever_made(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "BLOCK_BYTES", 1 << 18)
    monkeypatch.setattr("plsc.engine.soundness._PIECE", 1 << 16)
    monkeypatch.setattr("plsc.losses.creation._INIT_BLOCK", 1024)
    settings = {"num_classes": CLASSES, "emb_dim": WIDTH, "loss_type": "dist_arcface", "logits": "recompute", **LEAN}
    kept, full = CLASSES * (2 * WIDTH + WIDTH + 4), 4 * CLASSES * WIDTH
    taken = {}
    with Taken() as taken["init"]:
        head = make_head(**settings)
    taken["init"].bytes -= kept
    step(head)  # what the first step takes it keeps
    with Taken() as taken["step"]:
        step(head, 1)
    with Taken() as taken["judgment"]:
        assert find_center(head) is None
    with Taken() as taken["write"]:
        about = {"settings": {"num_classes": CLASSES, "loss_type": "dist_arcface"}}
        parts = head_parts(head, True, num_classes=CLASSES)
        save_checkpoint(tmp_path, "0", parts=parts, about=about, collectives=Collectives())
    saved, other = Checkpoint(tmp_path / "0"), make_head(**settings)
    names = [name.removeprefix("head.") for name in saved.names("head.")]
    rows = {name: Range(0, CLASSES) if head.has_row_per_class(name) else None for name in names}
    with Taken() as taken["read"]:
        other.load(CheckpointState(saved, "head.", names, rows_of=rows.get))
    for name, value in head.state().items():
        np.testing.assert_array_equal(other.state()[name].numpy(), value.numpy())
    del other
    features = np.random.default_rng(0).standard_normal((4, WIDTH)).astype(np.float32)
    with Taken() as taken["search"]:
        top_classes(features, head.centers(), count=5, num_classes=CLASSES, collectives=Collectives())
    found = {name: context.bytes for name, context in taken.items()}
    assert all(size < full / 2 for size in found.values()), (found, full)


@pytest.mark.parametrize("optimizer", [Momentum(), "sgd"])
def test_without_momentum_it_is_plain_sgd(optimizer):
    settings = {"optimizer": optimizer} if optimizer == "sgd" else {"head_optimizer": optimizer}
    none = make_head(loss_type="dist_arcface", momentum_storage="none", weight_decay=0.0, **settings)
    assert none.optimizer_kind == "SGD" and not none._head.state()


@pytest.mark.parametrize("name", ["lars", "lion", "adamw"])
def test_other_optimizers_have_no_state_to_leave_out(name):
    with pytest.raises(ConfigError, match="is for momentum, which becomes plain SGD without it"):
        make_head(loss_type="dist_arcface", optimizer=name, momentum_storage="none")
    assert make_head(loss_type="dist_arcface", optimizer=name, momentum_storage="int8")._head.state()
