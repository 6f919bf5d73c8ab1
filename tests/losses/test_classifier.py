"""The sharded head on 1 to 4 real ranks against the per-sample float64 oracle."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc.engine.checkpoint import Checkpoint
from plsc.utils.ranges import shard_ranges
from tests._support.head_oracle import oracle, relative_error
from tests._support.ranks import launch
from tests._support.workers.cases import HEAD_CASES, head_problem

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def played(request, tmp_path_factory):
    """(ranks, what each rank found)."""
    folder = tmp_path_factory.mktemp(f"head{request.param}")
    launch(request.param, "head_worker.py", folder, log_dir=folder / "log")
    return request.param, [np.load(folder / f"{rank}.npz") for rank in range(request.param)]


@pytest.mark.parametrize("head", ["reference", "fused"])
@pytest.mark.parametrize("name", HEAD_CASES)
def test_loss_and_gradients_match_the_oracle(played, name, head):
    ranks, found = played
    case = HEAD_CASES[name]
    tolerance = 1e-5 if case.dtype == "float32" else 1e-10
    loss, d_x, d_w, d_b = oracle(*head_problem(case, ranks), **case.of_oracle)
    key = f"{name}/{head}"
    for rank in range(ranks):
        assert relative_error(found[rank][f"{key}/loss"], loss) < tolerance
    assert relative_error(np.concatenate([f[f"{key}/features"] for f in found]), d_x) < tolerance
    assert relative_error(np.concatenate([f[f"{key}/weight"] for f in found]), d_w) < tolerance
    if case.with_bias:
        assert relative_error(np.concatenate([f[f"{key}/bias"] for f in found]), d_b) < tolerance
    sizes = [len(f[f"{key}/weight"]) for f in found]
    assert sizes == [shard.size for shard in shard_ranges(case.classes, ranks)]


@pytest.mark.parametrize("head", ["reference", "fused"])
@pytest.mark.parametrize("name", ["six", "three", "softmax with bias", "float32", "margin by norm"])
def test_greater_logits_are_counted_over_all_shards(played, name, head):
    ranks, found = played
    features, labels, weight, bias = head_problem(HEAD_CASES[name], ranks)
    if HEAD_CASES[name].margin is not None:
        weight = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    logits = features @ weight.T + (0 if bias is None else bias)
    expected = [int((row > row[label]).sum()) for row, label in zip(logits, labels)]
    assert found[0][f"{name}/{head}/num_greater"].tolist() == expected


def test_distfc_attributes_set_weight_and_bias(entry):
    entry.set_loss_type("dist_softmax")
    constant = paddle.nn.initializer.Constant
    entry.set_distfc_attr(paddle.ParamAttr(initializer=constant(0.5)), paddle.ParamAttr(initializer=constant(2.0)))
    entry.set_optimizer(lambda learning_rate, parameters: paddle.optimizer.SGD(0.0, parameters))
    entry.set_lr(lambda step: 0.0)
    entry.train()
    saved = Checkpoint(entry.model_save_dir)
    assert np.unique(saved.read("head.weight")) == 0.5
    assert np.unique(saved.read("head.bias")) == 2.0
