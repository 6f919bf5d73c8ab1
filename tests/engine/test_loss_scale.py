"""The loss scale: compared with Paddle's, and why it does not begin at 1."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle.amp import grad_scaler

from plsc import Config
from plsc.engine.loss_scale import LossScale
from plsc.models.tiny import ResNetTiny


@pytest.fixture
def paddles_scaler(monkeypatch):
    """A `paddle.amp.GradScaler` of the same settings that takes this machine for a GPU."""
    gpu = SimpleNamespace(is_gpu_place=lambda: True, is_xpu_place=lambda: False, is_custom_place=lambda: False)
    monkeypatch.setattr(grad_scaler, "_dygraph_tracer", lambda: SimpleNamespace(_expected_place=gpu))
    names = ("init_loss_scaling", "incr_ratio", "decr_ratio", "incr_every_n_steps", "decr_every_n_nan_or_inf")

    def make(config):
        return paddle.amp.GradScaler(
            **{name: getattr(config, name) for name in names}, use_dynamic_loss_scaling=config.use_dynamic_loss_scaling
        )

    return make


def comparable(state):
    return {name: np.asarray(value).reshape(-1).tolist() for name, value in state.items()}


@pytest.mark.parametrize("every", [1, 2, 3])
def test_it_grows_and_shrinks_as_that_of_paddle(paddles_scaler, every):
    config = Config(init_loss_scaling=8.0, incr_every_n_steps=4, decr_every_n_nan_or_inf=every)
    own, other = LossScale(config), paddles_scaler(config)
    for overflowed in np.random.default_rng(every).random(300) < 0.3:
        own.update(overflowed=bool(overflowed))
        other._cache_found_inf = bool(overflowed)
        other._scale = other._scale.reshape([])  # else its message raises TypeError with NumPy 2.4
        other._update()
        assert comparable(own.state()) == comparable(other.state_dict())
    assert own.value != 8.0


def test_it_unscales_and_finds_overflows_as_that_of_paddle(paddles_scaler):
    config = Config(init_loss_scaling=8.0)
    for bad in (None, float("inf"), float("nan")):
        layer = paddle.nn.Linear(3, 2)
        optimizer = paddle.optimizer.SGD(0.1, parameters=layer.parameters())
        layer(paddle.randn([4, 3])).sum().backward()
        if bad is not None:
            layer.bias.grad.detach()[1] = bad
        own = [parameter.grad.clone() for parameter in layer.parameters()]
        found = LossScale(config).unscale_(own)
        other = paddles_scaler(config)
        other.unscale_(optimizer)
        assert found.item() == other._found_inf.item() == (bad is not None)
        if bad is None:
            for mine, parameter in zip(own, layer.parameters()):
                np.testing.assert_array_equal(mine.numpy(), parameter.grad.numpy())


def test_no_gradients_do_not_overflow():
    assert not LossScale(Config()).unscale_([]).item()


def test_gradients_of_several_types_are_unscaled_together():
    gradients = [paddle.full([2], 6.0), paddle.full([3], 6.0, "float64")]
    assert not LossScale(Config(init_loss_scaling=2.0)).unscale_(gradients).item()
    assert [gradient.numpy().tolist() for gradient in gradients] == [[3.0] * 2, [3.0] * 3]


def test_it_shrinks_at_the_second_overflow_in_a_row():
    scale = LossScale(Config(use_fp16=True))
    assert scale.value == 2.0**15
    for overflowed in (True, False, True):
        scale.update(overflowed=overflowed)
    assert scale.value == 2.0**15
    scale.update(overflowed=True)
    assert scale.value == 2.0**14
    gradient = paddle.full([1], 2.0**14)
    scale.unscale_([gradient])
    assert gradient.item() == 1.0


def test_a_constant_scale_stays():
    scale = LossScale(Config(init_loss_scaling=4.0, use_dynamic_loss_scaling=False, incr_every_n_steps=1))
    for overflowed in (True, True, False, False):
        scale.update(overflowed=overflowed)
    assert scale.value == 4.0


@pytest.mark.parametrize("overflowed", [False, True])
def test_it_stays_within_the_range_of_float32(overflowed):
    scale = LossScale(Config(incr_every_n_steps=1, decr_every_n_nan_or_inf=1))
    for _ in range(400):
        scale.update(overflowed=overflowed)
    with np.errstate(all="raise"):
        assert np.isfinite(np.float32(scale.value)) and np.isfinite(1 / np.float32(scale.value))


def test_its_state_is_that_of_the_run_before_and_its_settings_are_those_of_this_run(paddles_scaler):
    before = paddles_scaler(Config(init_loss_scaling=1.0, incr_every_n_steps=2000))
    before._incr_count, before._decr_count = 17, 1
    scale = LossScale(Config(incr_every_n_steps=18))
    scale.load({name: np.asarray(value).tolist() for name, value in before.state_dict().items()})
    assert scale.value == 1.0  # not the default of this run
    scale.update(overflowed=False)
    assert scale.value == 2.0  # at the 18th step
    again = LossScale(Config())
    again.load(scale.state())
    assert (again.value, again.state()["incr_count"]) == (2.0, 0)
    again.load({**scale.state(), "scale": 4.0})  # a number, as later versions of Paddle may write it
    assert again.value == 4.0


def test_a_run_that_resumes_with_smaller_numbers_of_steps_still_grows_and_shrinks():
    """The counters of the run before may be beyond them."""
    before = {**LossScale(Config()).state(), "scale": [8.0]}
    scale = LossScale(Config(incr_every_n_steps=1000))
    scale.load({**before, "incr_count": 1500})
    scale.update(overflowed=False)
    assert (scale.value, scale.state()["incr_count"]) == (16.0, 0)
    scale = LossScale(Config(decr_every_n_nan_or_inf=1))
    scale.load({**before, "decr_count": 1})
    scale.update(overflowed=True)
    assert (scale.value, scale.state()["decr_count"]) == (4.0, 0)


@pytest.mark.parametrize("scale", [[0.0], [float("nan")], [-1.0], [1.0, 2.0], []])
def test_a_damaged_state_is_refused(scale):
    with pytest.raises(ValueError):
        LossScale(Config()).load({**LossScale(Config()).state(), "scale": scale})


class Half(paddle.autograd.PyLayer):
    """The identity, rounded to float16 in both directions, that counts the gradients that become zero."""

    @staticmethod
    def forward(context, x, counts):
        context.counts = counts
        return x.astype("float16").astype("float32")

    @staticmethod
    def backward(context, gradient):
        rounded = gradient.astype("float16").astype("float32")
        context.counts[0] += ((rounded == 0) & (gradient != 0)).sum().item()
        context.counts[1] += (gradient != 0).sum().item()
        return rounded


def share_that_vanishes(scale):
    """The share of gradients of activations that float16 makes zero, late in training: with a loss near 0.001."""
    paddle.seed(1)
    network, counts = ResNetTiny(16), [0, 0]
    for layer in network.sublayers():
        if isinstance(layer, paddle.nn.Conv2D):
            layer.register_forward_post_hook(lambda layer, inputs, output: Half.apply(output, counts))
    features = network(paddle.randn([32, 3, 32, 32]))
    gradient = paddle.randn(features.shape) * 1e-3 / len(features)
    features.backward(gradient * scale)
    return counts[0] / counts[1]


def test_gradients_vanish_at_a_scale_of_1_and_not_at_the_default():
    at_one, at_default = share_that_vanishes(1.0), share_that_vanishes(Config().init_loss_scaling)
    print(f"{at_one:.2%} vanish at 1, {at_default:.4%} at 2**15")
    assert at_one > 0.05
    assert at_default < 1e-3
