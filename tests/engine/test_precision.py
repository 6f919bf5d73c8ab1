"""Mixed precision, TF32 and deterministic algorithms. No GPU: a topology says that there is one."""

from __future__ import annotations

import contextlib

import numpy as np
import paddle
import pytest

from plsc import Config, ConfigError, Entry
from plsc.distributed.topology import Topology
from plsc.engine import parts
from plsc.engine.loss_scale import LossScale
from plsc.engine.precision import Precision
from plsc.engine.soundness import Stage
from plsc.engine.trainer import Trainer
from plsc.losses import precision as half_products

GPU = Topology(device="gpu:0")


@pytest.mark.cpu("mixed precision has no effect there")
def test_mixed_precision_says_that_it_has_no_effect_on_cpu(entry, caplog):
    entry.set_mixed_precision(use_fp16=True, init_loss_scaling=128.0)
    entry.train()
    assert "set_mixed_precision has no effect on CPU" in caplog.text


# The loss scale


def test_the_first_loss_scale():
    assert Precision(Config(use_fp16=True), GPU).scale.value == 2.0**15
    old = Entry()
    old.set_mixed_precision(True)
    assert Precision(old.config, GPU).scale.value == 1.0  # as in PLSC 0.x
    new = Entry()
    new.use_fp16 = True
    assert Precision(new.config, GPU).scale.value == 2.0**15


@pytest.mark.parametrize(
    "settings, topology",
    [({}, GPU), ({"use_fp16": True, "amp_dtype": "bfloat16"}, GPU), ({"use_fp16": True}, Topology())],
)
def test_the_loss_is_scaled_in_float16_on_a_gpu_only(settings, topology):
    precision = Precision(Config(**settings), topology)
    gradient = paddle.ones([2])
    assert not precision.scales_loss and precision.scaled(gradient) is gradient
    assert precision.unscale_([gradient]) is None and precision.state() == {}
    precision.load(LossScale(Config()).state())  # of a run in float16
    precision.update(overflowed=True)
    assert not any(precision.may_have_overflowed(stage) for stage in Stage)


def test_what_float16_explains():
    precision = Precision(Config(use_fp16=True), GPU)
    forward = {Stage.STATISTIC, Stage.FEATURES, Stage.LOSS, Stage.FEATURE_GRADIENT}
    assert {stage for stage in Stage if precision.may_have_overflowed(stage)} == {*forward, Stage.SCALED_GRADIENT}
    precision.scale.value = 1.0
    assert {stage for stage in Stage if precision.may_have_overflowed(stage)} == {Stage.SCALED_GRADIENT}


def test_a_resumed_run_keeps_its_loss_scale(entry, tmp_path, monkeypatch):
    """Also one that began at 1, as every run did before the default was 2^15; it goes on as if never stopped."""
    monkeypatch.setattr(parts, "Precision", ScaledOnCPU)

    def train(folder, epochs, scale):
        entry.set_model_save_dir(tmp_path / folder)
        entry.set_train_epochs(epochs)
        entry.config.assign(init_loss_scaling=scale, incr_every_n_steps=4)
        trainer = Trainer(entry.config)
        trainer.train()
        return trainer

    whole = train("whole", 3, 1.0)
    train("parts", 1, 1.0)
    entry.set_auto_resume(True)
    resumed = train("parts", 3, 2.0**15)
    assert resumed.precision.state() == whole.precision.state()
    assert resumed.precision.scale.value == 2.0 ** (9 // 4)
    for name, value in whole.backbone.state_dict().items():
        np.testing.assert_array_equal(resumed.backbone.state_dict()[name].numpy(), value.numpy(), err_msg=name)


class ScaledOnCPU(Precision):
    def __init__(self, config, topology):
        super().__init__(config, topology)
        self.scale = LossScale(config)


# Cards that cannot


@pytest.fixture
def card(monkeypatch):
    def install(major, minor):
        monkeypatch.setattr(half_products, "_capability", lambda: (major, minor))
        monkeypatch.setattr(paddle.device.cuda, "get_device_name", lambda *_: "Tesla V100")

    return install


@pytest.mark.parametrize(
    "dtype, version, message",
    [
        ("bfloat16", (7, 5), r"needs a GPU of compute capability 8\.0 or more.*Tesla V100, has 7\.5; .*'float16', or"),
        ("bfloat16", (6, 1), r"8\.0 or more.*has 6\.1; train in float32: set_mixed_precision\(False\)$"),
        ("float16", (6, 1), r"7\.0 or more.*has 6\.1; train in float32: set_mixed_precision\(False\)$"),
    ],
)
def test_a_card_that_cannot_is_refused_at_start(card, dtype, version, message):
    card(*version)
    with pytest.raises(ConfigError, match=message):
        Precision(Config(use_fp16=True, amp_dtype=dtype), GPU)
    Precision(Config(amp_dtype=dtype), GPU)
    Precision(Config(use_fp16=True, amp_dtype=dtype), Topology())


@pytest.mark.parametrize("dtype, version", [("bfloat16", (8, 0)), ("bfloat16", (10, 0)), ("float16", (7, 0))])
def test_a_card_that_can_is_taken(card, dtype, version):
    card(*version)
    Precision(Config(use_fp16=True, amp_dtype=dtype), GPU)


def test_the_trainer_checks_the_card_before_it_makes_the_head(entry, card, monkeypatch):
    card(7, 0)
    monkeypatch.setattr(parts, "Precision", lambda config, topology: Precision(config, GPU))
    monkeypatch.setattr(parts, "Classifier", None)
    entry.set_mixed_precision(True, amp_dtype="bfloat16")
    with pytest.raises(ConfigError, match="bfloat16.*compute capability"):
        Trainer(entry.config)


# Operators in half precision


@pytest.fixture
def autocast(monkeypatch):
    """The arguments of each `paddle.amp.auto_cast`."""
    calls = []

    def record(**arguments):
        calls.append(arguments)
        return contextlib.nullcontext()

    monkeypatch.setattr(paddle.amp, "auto_cast", record)
    return calls


@pytest.mark.parametrize(
    "lists, white, black",
    [
        (None, {"prelu"}, set()),
        ({"custom_white_list": ["exp"]}, {"exp", "prelu"}, set()),
        ({"custom_black_list": ("conv2d",)}, {"prelu"}, {"conv2d"}),
        ({"custom_black_list": {"prelu"}, "custom_white_list": {"exp"}}, {"exp"}, {"prelu"}),
    ],
)
def test_prelu_runs_in_half_precision_unless_the_user_says_otherwise(autocast, lists, white, black):
    with Precision(Config(use_fp16=True, amp_lists=lists), GPU).forward():
        pass
    assert autocast == [{"dtype": "float16", "custom_white_list": white, "custom_black_list": black}]
    found_white, found_black = _lists_of_paddle(white, black)
    assert white <= found_white and black <= found_black and not white & found_black


def _lists_of_paddle(white, black):
    """The lists that Paddle makes of those of the user."""
    from paddle.amp.auto_cast import _update_list

    return _update_list(white, black, "O1", "float16")


def test_paddle_alone_does_not_know_prelu():
    white, black = _lists_of_paddle(set(), set())
    assert "conv2d" in white and "prelu" not in white | black


# TF32 and deterministic algorithms


class Watched(paddle.nn.Layer):
    """A network that notes the switches of TF32 in its forward and its backward pass."""

    def __init__(self, tf32, seen):
        super().__init__()
        self.line = paddle.nn.Linear(3 * 16 * 16, 16)
        self._tf32, self._seen = tf32, seen

    def forward(self, images):
        self._note("forward" if self.training else "verification")
        features = self.line(images.flatten(1))
        if self.training:
            features.register_hook(lambda gradient: self._note("backward"))
        return features

    def _note(self, where):
        self._seen.add((where, self._tf32()))


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_used_in_the_training_of_the_backbone_only(entry, tf32, gpu_flags, allowed, monkeypatch):
    seen, head = set(), []
    entry.set_tf32(allowed)
    entry.set_model(Watched(tf32, seen))
    monkeypatch.setattr(parts, "Precision", lambda config, topology: Precision(config, GPU))
    trainer = Trainer(entry.config)
    for name in ("forward", "backward", "update"):
        method = getattr(trainer.head, name)
        monkeypatch.setattr(trainer.head, name, lambda *a, m=method, **k: (head.append(tf32()), m(*a, **k))[1])
    trainer.train()
    on, off = (allowed, allowed), (False, False)
    assert seen == {("forward", on), ("backward", on), ("verification", off)}
    assert set(head) == {off}


def test_a_gpu_logs_how_it_computes(tf32, gpu_flags, caplog):
    Precision(Config(use_fp16=True, deterministic=True), GPU)
    assert "mixed precision: float16, first loss scale 32768; TF32 in float32 products nowhere (set_tf32); " in (
        caplog.text
    )
    assert "deterministic algorithms" in caplog.text
    assert gpu_flags["FLAGS_cudnn_deterministic"] is True


def test_the_flags_are_left_alone_where_nothing_asks_for_them(tf32, gpu_flags):
    Precision(Config(deterministic=True, tf32=True), Topology())
    assert gpu_flags == {}
    Precision(Config(), GPU)
    assert gpu_flags == {"FLAGS_cudnn_allow_tf32": False}
    Precision(Config(tf32=True), GPU)
    assert gpu_flags == {"FLAGS_cudnn_allow_tf32": False, "FLAGS_cublas_allow_tf32": True}


@pytest.mark.parametrize("run, module", [("test", "tester"), ("predict", "evaluator")])
def test_verification_and_prediction_are_full_float32(entry, tf32, monkeypatch, run, module):
    entry.train()
    monkeypatch.setattr("plsc.distributed.topology.init_topology", lambda *_: GPU)
    monkeypatch.setattr(f"plsc.engine.{module}.{run}", lambda *_, **__: None)
    paddle.base.core.set_cudnn_switch(True)
    paddle.base.core.set_cublas_switch(True)
    getattr(entry, run)()
    assert tf32() == (False, False)
