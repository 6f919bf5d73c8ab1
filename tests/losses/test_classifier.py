"""The head on 1 to 4 real ranks against the per-sample float64 oracle, and its state."""

from __future__ import annotations

import functools
import logging

import numpy as np
import paddle
import pytest

from plsc.checkpoint import Checkpoint
from plsc.config import Config
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import Topology
from plsc.engine.optimizer import NamedOptimizer
from plsc.errors import CheckpointError, ConfigError
from plsc.losses.classifier import Classifier
from plsc.losses.row_optimizers import AdamW, Momentum, RowOptimizer
from plsc.utils.ranges import shard_ranges
from tests._support import fake_gpu
from tests._support.head_oracle import oracle, relative_error, worst_row_error
from tests._support.ranks import launch
from tests._support.workers.cases import HEAD_CASES, NormMargin, RunningMargin, head_problem


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def played(request, tmp_path_factory):
    """(ranks, what each rank found)."""
    folder = tmp_path_factory.mktemp(f"head{request.param}")
    launch(request.param, "head_worker.py", folder, log_dir=folder / "log")
    return request.param, [np.load(folder / f"{rank}.npz") for rank in range(request.param)]


@pytest.mark.ranks
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
    # The gradients of short vectors differ by orders of magnitude, so each row is compared by itself.
    error, tolerance = (worst_row_error, 10 * tolerance) if case.short else (relative_error, tolerance)
    assert error(np.concatenate([f[f"{key}/features"] for f in found]), d_x) < tolerance
    assert error(np.concatenate([f[f"{key}/weight"] for f in found]), d_w) < tolerance
    if case.with_bias:
        assert relative_error(np.concatenate([f[f"{key}/bias"] for f in found]), d_b) < tolerance
    sizes = [len(f[f"{key}/weight"]) for f in found]
    assert sizes == [shard.size for shard in shard_ranges(case.classes, ranks)]


@pytest.mark.ranks
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


@pytest.fixture(scope="module")
def margin_runs(tmp_path_factory):
    """{ranks: what each rank found} of heads whose margin keeps a running mean."""
    runs = {}
    for ranks in (1, 2, 3):
        folder = tmp_path_factory.mktemp(f"margin{ranks}")
        launch(ranks, "margin_worker.py", folder, log_dir=folder / "log")
        runs[ranks] = [np.load(folder / f"{rank}.npz") for rank in range(ranks)]
    return runs


@pytest.mark.ranks
@pytest.mark.parametrize("loss_type", ["dist_arcface", "arcface"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_margins_state_is_that_of_one_rank_on_every_rank(margin_runs, ranks, loss_type):
    (expected,) = margin_runs[1]
    for found in margin_runs[ranks]:
        name = f"{loss_type}/margin:mean"
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)
        np.testing.assert_array_equal(found[name], margin_runs[ranks][0][name])


@pytest.mark.ranks
@pytest.mark.parametrize("loss_type", ["dist_arcface", "arcface"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_margin_with_state_trains_as_on_one_rank(margin_runs, ranks, loss_type):
    (expected,), found = margin_runs[1], margin_runs[ranks]
    for step in range(4):
        losses = [f[f"{loss_type}/loss {step}"] for f in found]
        np.testing.assert_allclose(losses, expected[f"dist_arcface/loss {step}"], rtol=1e-5)
        gradient = np.concatenate([f[f"{loss_type}/features {step}"] for f in found])
        assert relative_error(gradient, expected[f"dist_arcface/features {step}"]) < 1e-5
    weights = [f[f"{loss_type}/weight"] for f in found]
    weight = np.concatenate(weights) if loss_type == "dist_arcface" else weights[-1]
    assert relative_error(weight, expected["dist_arcface/weight"]) < 1e-5


# State, settings and errors, on one rank


class Lion(RowOptimizer):
    """Sign of the momentum (Chen et al., 2023), without weight decay."""

    state_names = ("average",)

    def apply(self, rows, gradient, *, state, prepared):
        (average,) = state
        update = (0.9 * average + 0.1 * gradient).sign()
        paddle.assign(0.99 * average + 0.01 * gradient, average)
        paddle.assign(rows - prepared * update, rows)


def make_head(topology=None, **settings):
    config = Config(**{"num_classes": 30, "emb_dim": 8, "scale": 16.0, **settings})
    head = Classifier(
        config, Collectives(topology or Topology()), make_optimizer=lambda named: NamedOptimizer(config, named)
    )
    head.load({name: np.asarray(value) * 20 for name, value in head.state().items() if name in head.parameters})
    return head


def train(head, steps, first=0):
    losses = []
    for step in range(first, first + steps):
        rng = np.random.default_rng(step)
        features = paddle.to_tensor(rng.standard_normal((6, 8)).astype("float32"))
        losses.append(head.forward(features, paddle.to_tensor(rng.integers(0, 30, 6)), step=step).item())
        head.backward()
        head.update(0.05)
    return losses


def saved(head):
    return {name: value.numpy().copy() for name, value in head.state().items()}


def unfused_adam(learning_rate, parameters):
    return paddle.optimizer.Adam(learning_rate, parameters=parameters)


SETTINGS = {
    "momentum": {},
    "adamw": {"optimizer": paddle.optimizer.AdamW},
    "unfused": {"optimizer": unfused_adam},
    "sampled": {"sample_ratio": 0.4},
    "sampled softmax": {"loss_type": "dist_softmax", "sample_ratio": 0.4},
    "lion": {"head_optimizer": Lion()},
    "lion, sampled softmax": {"head_optimizer": Lion(), "sample_ratio": 0.4, "loss_type": "dist_softmax"},
    "margin with state": {"margin_function": RunningMargin},
    "adaface": {"loss_type": "dist_adaface", "loss_options": {"average": 0.3}},
    "adaface, sampled, rising": {"loss_type": "dist_adaface", "sample_ratio": 0.4, "margin_warmup": 4},
    "elasticface, unfused": {"loss_type": "dist_elasticface_arc_plus", "optimizer": unfused_adam},
    "curricularface": {"loss_type": "dist_curricularface", "loss_options": {"average": 0.3}},
    "sphereface2, sampled": {"loss_type": "dist_sphereface2", "sample_ratio": 0.4},
    "uniface, unfused": {"loss_type": "dist_uniface", "optimizer": unfused_adam},
    "sub-centers": {"subcenters": 3, "interclass_filter": 0.3},
    "sub-centers, sampled": {"subcenters": 3, "sample_ratio": 0.4, "optimizer": paddle.optimizer.AdamW},
    "sub-centers, unfused": {"subcenters": 2, "optimizer": unfused_adam},
    "sub-centers, sampled, lion": {"subcenters": 2, "sample_ratio": 0.4, "head_optimizer": Lion()},
    "weighted and smoothed": {"class_weights": [0.1] * 15 + [1.0] * 15, "label_smoothing": 0.1, "sample_ratio": 0.4},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_head_that_was_saved_and_loaded_continues_bit_for_bit(name):
    unbroken, first, second = fresh_head(name), fresh_head(name), fresh_head(name)
    expected = train(unbroken, 6)
    assert train(first, 3) == expected[:3]
    state = saved(first)
    assert {name for name in state if not second.has_row_per_class(name)} == {
        name for name, value in state.items() if value.shape[:1] != (30,)
    }
    second.load(state)
    # On a GPU the norm of a row is part of a product, whose last digit depends on the rows beside it, and those of a
    # sampled step are others than those of a load.
    tolerance = 1e-5 if fake_gpu.is_asked_for() and "sampled" in name else 0.0
    np.testing.assert_allclose(train(second, 3, first=3), expected[3:], rtol=tolerance)
    for part, value in saved(unbroken).items():
        np.testing.assert_allclose(saved(second)[part], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("sample_ratio", [1.0, 0.4])
def test_loading_between_steps_counts_in_the_next_step(sample_ratio):
    """The norms of the rows before must not be used."""
    one, other = make_head(sample_ratio=sample_ratio), make_head(sample_ratio=sample_ratio)
    train(one, 2)
    state = {name: value * np.linspace(1.0, 9.0, 30, dtype="float32")[:, None] for name, value in saved(one).items()}
    for head in (one, other):
        head.load(state)
    assert train(one, 1, first=2) == train(other, 1, first=2)


def test_the_step_count_of_1_0_checkpoints_is_read():
    head, other = make_head(optimizer=paddle.optimizer.AdamW), make_head(optimizer=paddle.optimizer.AdamW)
    train(head, 3)
    state = saved(head)
    state["updates:pow_acc"] = state.pop("optimizer:step")
    assert state["updates:pow_acc"].tolist() == [3] and not other.has_row_per_class("updates:pow_acc")
    other.load(state)
    assert train(other, 2, first=3) == train(head, 2, first=3)


def plain_sgd(learning_rate, parameters):
    return paddle.optimizer.SGD(learning_rate, parameters)


def clipped_sgd(learning_rate, parameters):
    return paddle.optimizer.SGD(learning_rate, parameters, grad_clip=paddle.nn.ClipGradByValue(1e9))


@pytest.mark.parametrize("loss_type", ["dist_arcface", "arcface", "dist_softmax"])
@pytest.mark.parametrize(
    "settings", [{"optimizer": plain_sgd}, {"optimizer": clipped_sgd}, {"optimizer": plain_sgd, "sample_ratio": 0.5}]
)
def test_one_class_is_warned_of_and_moves_nothing(loss_type, settings, caplog):
    with caplog.at_level(logging.WARNING):
        head = make_head(num_classes=1, loss_type=loss_type, **settings)
    assert caplog.text.count("num_classes is 1: the softmax over one class has a loss of 0 and no gradient") == 1
    before = saved(head)
    for labels in ([0, 0, 0], [0]):
        loss = head.forward(-paddle.ones([len(labels), 8]), paddle.to_tensor(labels))
        assert loss.item() == 0.0 and not head.backward().any()
        head.update(0.1)
    for name, value in saved(head).items():
        np.testing.assert_array_equal(value, before[name])


PADDLE_OPTIMIZERS = ["Adam", "Adamax", "NAdam", "RAdam", "Lamb", "RMSProp", "Adagrad", "Adadelta", "Rprop"]


@pytest.mark.parametrize("name", PADDLE_OPTIMIZERS)
def test_which_state_of_paddles_optimizers_has_a_row_per_class(name):
    """Whether a tensor has a row per class is asked before a checkpoint is loaded, when only its name is known."""
    options = {"learning_rate_range": (1e-5, 1.0)} if name == "Rprop" else {}
    options = {"learning_rate": 0.1} if name in ("RMSProp", "Adagrad") else options

    def optimizer(learning_rate, parameters):
        return getattr(paddle.optimizer, name)(**{"learning_rate": learning_rate, **options}, parameters=parameters)

    head = make_head(optimizer=optimizer)
    train(head, 1)
    for key, value in saved(head).items():
        assert head.has_row_per_class(key) == (value.shape[:1] == (30,)), key


def test_a_margins_state_that_does_not_fit_starts_anew(caplog):
    head = make_head(margin_function=RunningMargin())
    state = saved(make_head())
    with caplog.at_level(logging.WARNING):
        head.load(state)
    assert "RunningMargin keeps ['mean'], the checkpoint holds none: the state of the margin starts anew" in caplog.text


def test_missing_optimizer_state_is_named():
    state = saved(make_head())
    with pytest.raises(CheckpointError, match=r"holds no head.weight:average, which Lion needs"):
        make_head(head_optimizer=Lion()).load(state)


def test_a_row_optimizer_of_the_library_is_that_of_its_name():
    assert make_head(head_optimizer=AdamW()).optimizer_kind == "FusedAdamW"
    assert make_head(head_optimizer=Momentum()).optimizer_kind == make_head().optimizer_kind == "Momentum"
    assert train(make_head(head_optimizer=Momentum()), 3) == train(make_head(), 3)


def with_names(names):
    optimizer = Lion()
    optimizer.state_names = names
    return optimizer


def with_decay(l2):
    optimizer = Lion()
    optimizer.l2 = l2
    return optimizer


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"head_optimizer": 3}, "head_optimizer: got 3, expected an object with l2"),
        ({"head_optimizer": Lion}, "head_optimizer: got <class .*Lion'>, expected an object with l2"),
        ({"head_optimizer": with_names("average")}, "Lion: state_names is 'average', expected a tuple of different"),
        ({"head_optimizer": with_names(("a", "a"))}, r"state_names is \('a', 'a'\), expected a tuple of different"),
        ({"head_optimizer": with_names(("a:b",))}, r"state_names is \('a:b',\), expected a tuple of different"),
        ({"head_optimizer": with_names(None)}, "state_names is None, expected a tuple of different names"),
        ({"head_optimizer": with_decay("5e-4")}, "Lion: l2 is '5e-4', expected a finite number"),
        (
            {"num_classes": 2**32},
            r"num_classes: the class centers of this rank, \[2147483648, .*, cannot be made: .*int32",
        ),
        ({"head_optimizer": with_decay(float("nan"))}, "Lion: l2 is nan, expected a finite number"),
        ({"head_optimizer": Momentum(state_dtype="half")}, "Momentum: state_dtype is 'half', expected None, 'float32'"),
        ({"head_optimizer": Lion(), "loss_type": "arcface"}, "head_optimizer needs sharded centers"),
        ({"head_optimizer": Lion(), "momentum_storage": "none"}, "none.* is for momentum, .* this run has Lion"),
        ({"momentum_storage": "int8", "loss_type": "arcface"}, "needs centers that one rank holds alone"),
        ({"center_storage": "bfloat16", "emb_dim": 33}, "an even embedding size; this run has .* and 33"),
        ({"sample_ratio": 0.5, "loss_type": "arcface"}, "holds all classes on each rank; use 'dist_arcface'"),
        ({"sample_ratio": 0.5, "optimizer": unfused_adam}, "the state of Adam as it was set cannot be sampled"),
        ({"head_group_size": 3}, r"set_head_group_size\(3\): 2 ranks cannot be .* into groups of 3; give one of 1, 2"),
        (
            {"head_group_size": 1, "loss_type": "arcface"},
            "each rank holds all classes .*; use 'dist_arcface', or leave",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_head(Topology(0, 2), **settings)


@pytest.mark.parametrize(
    "returned, message",
    [
        (lambda cosine: cosine, "returned Tensor"),
        (lambda cosine: (cosine,), r"returned \(\[6\] float32\)"),
        (lambda cosine: (cosine, cosine.sum()), r"returned \(\[6\] float32, \[\] float32\)"),
        (lambda cosine: (cosine, 1.0), r"returned \(\[6\] float32, float\)"),
        (lambda cosine: (cosine, cosine.numpy()), r"returned \(\[6\] float32, ndarray\)"),
        (lambda cosine: (cosine.astype("float64"), cosine), r"returned \(\[6\] float64, \[6\] float32\)"),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"optimizer": unfused_adam}])
def test_what_a_margin_must_return_is_said(returned, message, settings):
    head = make_head(margin_function=lambda cosine, norms, labels: returned(cosine), **settings)
    with pytest.raises(ConfigError, match=message + r"; expected \(value, derivative by the cosine\)"):
        train(head, 1)


def take_forward(head, step=0):
    rng = np.random.default_rng(step)
    features = paddle.to_tensor(rng.standard_normal((6, 8)).astype("float32"))
    head.forward(features, paddle.to_tensor(rng.integers(0, 30, 6)), step=step)


def fresh_head(name):
    return make_head(**{key: RunningMargin() if key == "margin_function" else v for key, v in SETTINGS[name].items()})


@pytest.mark.parametrize("name", SETTINGS)
def test_forward_and_backward_move_nothing_that_discard_does_not_set_back(name):
    head, other = fresh_head(name), fresh_head(name)
    expected = train(other, 3)
    assert train(head, 2) == expected[:2]
    before = saved(head)
    take_forward(head, step=9)
    head.backward()
    moved = {key for key, value in saved(head).items() if (value != before[key]).any()}
    expected_to_move = {"adaface": {"margin:mean", "margin:std"}, "margin with state": {"margin:mean"}}
    expected_to_move["curricularface"] = {"margin:t"}
    assert moved == expected_to_move.get(name.split(",")[0], set())
    head.discard()
    for key, value in saved(head).items():
        np.testing.assert_array_equal(value, before[key])
    assert train(head, 1, first=2) == expected[2:]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_sum_of_squares_is_that_of_the_weight_or_unknown(name):
    head = fresh_head(name)
    train(head, 2)
    found = head.sum_of_squares()
    if "unfused" in name or "sampled softmax" in name:
        assert found is None
    else:
        assert found.item() == pytest.approx((saved(head)["weight"] ** 2).sum(), rel=1e-5)


def test_accuracy_backward_and_update_need_a_forward():
    head = make_head()
    for call in (head.backward, lambda: head.update(0.1)):
        with pytest.raises(RuntimeError, match="no forward"):
            call()
    for leave in (head.discard, lambda: head.update(0.1)):
        take_forward(head)
        leave()
        with pytest.raises(RuntimeError, match="no forward"):
            head.update(0.1)
    head.forward(paddle.ones([1, 8]), paddle.to_tensor([0]))
    with pytest.raises(RuntimeError, match="count_above"):
        head.accuracy()


def test_a_margin_by_norm_trains_alike_with_either_head():
    losses = [train(make_head(margin_function=NormMargin(), **settings), 4) for settings in ({}, CLIPPED)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def clipped(learning_rate, parameters):
    clip = paddle.nn.ClipGradByValue(1e9)
    return paddle.optimizer.Momentum(learning_rate, 0.9, parameters, weight_decay=5e-4, grad_clip=clip)


CLIPPED = {"optimizer": clipped}


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


class Alone(Collectives):
    """One of several ranks, which has nobody to communicate with."""

    _is_single = True


class Seeded(NormMargin):
    def begin_step(self, step, *, seed):
        self.told = step, seed


def test_a_margin_is_told_the_step_and_a_seed_that_depends_on_no_rank():
    told = []
    for rank, ranks in ((0, 1), (0, 3), (2, 3)):
        margin = Seeded()
        config = Config(num_classes=7, emb_dim=8, margin_function=margin, seed=5)
        head = Classifier(
            config, Alone(Topology(rank, ranks)), make_optimizer=functools.partial(NamedOptimizer, config)
        )
        head.forward(paddle.ones([2, 8]), paddle.zeros([2], "int64"), step=4)
        told.append(margin.told)
        assert margin.told[0] == 4 and 0 < margin.told[1] < 2**31
        head.discard()
        head.forward(paddle.ones([2, 8]), paddle.zeros([2], "int64"), step=5)
        assert margin.told[1] != told[0][1]
    assert len(set(told)) == 1
