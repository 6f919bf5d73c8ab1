"""What is sound, which tensor is named, and what a forward pass may move."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from plsc.distributed.collectives import Collectives
from plsc.engine.soundness import BackboneState, Evidence, Stage
from plsc.engine.transfer import CPUTransfers
from plsc.losses import Head
from plsc.utils.ranges import Range

NAN = float("nan")


class Centers(Head):
    def __init__(self, weight):
        self.classes, self.parameters = Range(10, 10 + len(weight)), {"weight": weight}


SOUND_HEAD = Centers(paddle.ones([4, 2]))


def find(stages, head=SOUND_HEAD, is_updated=False):
    evidence = Evidence(Collectives(), CPUTransfers())
    for stage, tensors in stages:
        evidence.add(stage, tensors)
    assert not evidence.is_sound()
    return evidence.find(lambda row: f"sample {row}", head, is_updated=is_updated).text


def test_numbers_that_can_be_squared_are_sound():
    evidence = Evidence(Collectives(), CPUTransfers())
    evidence.add(Stage.INPUT, {"input": paddle.full([3, 2], 1e18)})
    evidence.add(Stage.GRADIENT, {})
    evidence.add(Stage.PARAMETER, {"half": paddle.ones([2], "bfloat16"), "none": paddle.zeros([0, 3])})
    assert evidence.is_sound()


def bad(shape, index, value=NAN):
    tensor = paddle.zeros(shape)
    tensor[index] = value
    return tensor


@pytest.mark.parametrize(
    "stages, text",
    [
        ([(Stage.INPUT, {"x": bad([4, 3, 2], (2, 1, 0))})], "the input, sample 2, holds nan"),
        (
            [
                (Stage.FEATURES, {"f": bad([4, 3], (1, 0))}),
                (Stage.STATISTIC, {"a": paddle.ones([2]), "b": bad([2], 1)}),
            ],
            "the running statistic 'b' holds nan",
        ),
        (
            [(Stage.FEATURES, {"f": bad([4, 3], (3, 0), -1e25)})],
            "the feature vector of sample 3 holds -1e+25, whose square is beyond float32",
        ),
        # No element alone: the largest is named.
        (
            [(Stage.GRADIENT, {"w": paddle.to_tensor([1.5e19, 1.6e19, 1.5e19])})],
            "'w' holds numbers up to 1.6e+19, and the sum of their squares is beyond float32",
        ),
        ([(Stage.LOSS, {"loss": paddle.full([], NAN)})], "the loss is nan"),
        (
            [(Stage.FEATURE_GRADIENT, {"g": bad([2, 3], (1, 1))})],
            "the gradient of the loss by the features of sample 1",
        ),
        ([(Stage.PARAMETER, {"w": bad([2, 3], (1, 1), float("inf"))})], "after the update the parameter 'w' holds inf"),
    ],
)
def test_the_first_in_the_order_of_a_step_is_named(stages, text):
    assert text in find([(Stage.CENTERS, {"late": bad([1], 0)}), *stages], is_updated=True)


def test_centers_explain_a_loss_unless_the_step_has_moved_them():
    head = Centers(bad([4, 2], (3, 0)))
    loss = [(Stage.LOSS, {"loss": paddle.full([], NAN)})]
    assert find(loss, head) == "weight of the head, class 13, holds nan"
    assert find(loss, head, is_updated=True) == "the loss is nan"
    features = [(Stage.FEATURES, {"f": bad([2, 3], (0, 1))}), *loss]
    assert find(features, head).startswith("the feature vector of sample 0")


class Net(nn.Layer):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1D(3)
        self.shared = self.norm
        self.frozen = nn.Linear(3, 3)
        self.frozen.weight.stop_gradient = True
        self.register_buffer("mask", paddle.to_tensor([-float("inf")]))
        self.register_buffer("count", paddle.to_tensor([1], "int32"))
        self.register_buffer("later", None)


def test_what_a_forward_may_move_is_copied_and_restored():
    net = Net()
    state = BackboneState(net)
    assert set(state.parameters) == {"norm.weight", "norm.bias", "frozen.bias"}
    assert set(state.statistics()) == {"norm._mean", "norm._variance", "frozen.weight"}
    assert state.constants == {"mask"} and state.gradients() == {}
    before = {name: tensor.numpy().copy() for name, tensor in net.state_dict().items()}
    variance, copy = net.norm._variance, state.copy()
    net.norm._mean.set_value(paddle.full([3], 5.0))
    net.count = net.count + 1
    net.mask.add_(paddle.ones([1]))
    net.later = paddle.ones([2])
    state.restore(copy)
    assert net.later is None and net.norm._variance is variance
    for name, tensor in net.state_dict().items():
        np.testing.assert_array_equal(tensor, before[name])
