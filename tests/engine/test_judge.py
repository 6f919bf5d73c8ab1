"""Steps that are not sound: what is found, what is named, and what is left as it was."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from plsc import TrainingError
from plsc.checkpoint import list_checkpoints
from plsc.data.loader import Batch
from plsc.engine.loss_scale import LossScale
from plsc.engine.trainer import Trainer
from plsc.losses.row_optimizers import RowOptimizer
from plsc.models.base_model import BaseModel
from tests._support.images import CLASSES, SIDE
from tests._support.ranks import launch

NAN, INF = float("nan"), float("inf")


class Finished:
    """Finished float32 images, of which one pixel of one image is another number."""

    num_classes = CLASSES

    def __init__(self, bad=None, count=20, at=7):
        rng = np.random.default_rng(2)
        self.labels = np.arange(count) % CLASSES
        patterns = rng.standard_normal((CLASSES, 3, SIDE, SIDE))
        self.images = (patterns[self.labels] + 0.3 * rng.standard_normal((count, 3, SIDE, SIDE))).astype(np.float32)
        if bad is not None:
            self.images[at, 1, 2, 3] = bad

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


def prepare(entry, bad=None, **settings):
    """An entry that trains on `Finished`, ResNetTiny unless a model is given, four steps of five images."""
    values = {
        "train_dataset": Finished(bad),
        "with_test": False,
        "train_batch_size": 5,
        "lr_schedule": lambda step: 0.01,
        **settings,
    }
    for name, value in values.items():
        setattr(entry, name, value)
    return entry


def everything(trainer):
    """All that a step may move, copied: network, optimizer, head with its margin, loss scale."""
    backbone = {name: value.numpy().copy() for name, value in trainer.backbone.state_dict().items()}
    optimizer = {f"optimizer {name}": value.numpy().copy() for name, value in trainer.optimizer.state().items()}
    head = {f"head {name}": value.numpy().copy() for name, value in trainer.head.state().items()}
    return {**backbone, **optimizer, **head, "loss scale": np.asarray(json.dumps(trainer.precision.state()))}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def batches(trainer, epoch=0):
    return list(trainer.loader.epoch(epoch))


def poisoned(batch, value=NAN):
    images = batch.images.copy()
    images[3, 0, 0, 0] = value
    return Batch(images, batch.labels)


# In mode 'stop'


@pytest.mark.parametrize(
    "settings", [{}, {"loss_type": "arcface"}, {"loss_type": "dist_softmax"}, {"sample_ratio": 0.5}]
)
@pytest.mark.parametrize("bad, said", [(NAN, "nan"), (INF, "inf"), (-INF, "-inf"), (1e30, r"1e\+30, whose square is")])
def test_an_image_with_one_bad_pixel_stops_training_and_is_named(entry, bad, said, settings):
    prepare(entry, bad, **settings)
    with pytest.raises(
        TrainingError, match=rf"epoch 0, step \d: the input, item 7 of Finished, holds {said}"
    ) as caught:
        entry.train()
    assert "no checkpoint was saved. Correct or leave out that image" in str(caught.value)
    assert not list_checkpoints(entry.model_save_dir)


def test_a_sample_of_a_reader_is_named(entry):
    data = Finished(NAN)
    samples = [(data.images[i], int(data.labels[i])) for i in range(20)]
    prepare(entry, train_dataset=None)
    entry.train_reader = lambda: iter([samples[start : start + 5] for start in range(0, 20, 5)])
    with pytest.raises(TrainingError, match=r"step 2: the input, sample 2 of batch 1 of train_reader, holds nan"):
        entry.train()


class FewMembers:
    """A loader without `describe`."""

    num_images, skipped = 20, 0

    def epoch(self, epoch, first_step=0):
        data = Finished(NAN)
        yield Batch(data.images[5:10], data.labels[5:10])

    def close(self):
        pass


def test_a_sample_of_a_loader_that_describes_none_is_named_by_its_row(entry):
    prepare(entry)
    with pytest.raises(TrainingError, match=r"the input, image 2 of the batch, holds nan"):
        Trainer(entry.config, loader=FewMembers()).train()


class Network(BaseModel):
    """A linear layer between two functions that a test chooses, and ReLU, which turns NaN into 0 on CPUs."""

    def __init__(self):
        super().__init__(16)
        self.norm = nn.BatchNorm2D(3)
        self.first = nn.Linear(3 * SIDE * SIDE, 16)
        self.last = nn.Linear(16, 16)
        self.register_buffer("mask", paddle.to_tensor([0.0, -INF]))
        self.register_buffer("count", paddle.zeros([1], "int64"))
        self.register_buffer("mean", paddle.zeros([16]), persistable=False)
        self.harm = lambda network, x: x
        self.calls = 0

    def forward(self, images):
        x = self.norm(images)
        if self.training:
            self.calls += 1
            self.count.add_(paddle.ones([1], "int64"))  # in place
        x = self.first(x.flatten(1))
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(axis=0)  # replaces the tensor
            x = self.harm(self, x)
        return self.last(nn.functional.relu(x))


def in_step(number, harm):
    return lambda network, x: harm(network, x) if network.calls == number else x


class Backward(paddle.autograd.PyLayer):
    """The identity, whose gradient is NaN."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * NAN


def harm_statistic(network, x):
    network.norm._variance.set_value(paddle.full([3], INF))
    return x


def harm_buffer(network, x):
    network.mean = network.mean * NAN
    return x


def harm_parameter(network, x):
    network.first.bias.set_value(paddle.full([16], 1e25))
    return x


def hide(network, x):
    """NaN in one feature of one sample, which ReLU hides."""
    hole = paddle.zeros_like(x)
    hole[2, 3] = NAN
    return x + hole


HARMS = {
    "statistic": (harm_statistic, r"the running statistic 'norm\._variance' holds inf"),
    "buffer": (harm_buffer, r"the running statistic 'mean' holds nan"),
    "gradient": (lambda network, x: Backward.apply(x), r"the gradient of the parameter '[a-z.]+' holds nan"),
    "features": (
        lambda network, x: x * 1e30,
        r"the feature vector of item \d+ of Finished holds -?\d.*e\+\d\d, whose square is",
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_the_loss_does_not_show_is_found_and_named(entry, harm):
    model = Network()
    model.harm = in_step(2, HARMS[harm][0])
    prepare(entry, model=model)
    with pytest.raises(TrainingError, match=r"epoch 0, step 2: " + HARMS[harm][1]):
        entry.train()
    assert not list_checkpoints(entry.model_save_dir)


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_a_parameter_that_an_update_breaks_stops_training_in_either_mode(entry, action):
    prepare(entry, on_nonfinite=action, lr_schedule=lambda step: 1e30 if step == 2 else 0.01)
    with pytest.raises(TrainingError, match=r"epoch 0, step 3: after the update the parameter '.*' holds .*1e\+30"):
        entry.train()


class Breaking(RowOptimizer):
    """Writes NaN into a row in its second step."""

    def prepare(self, learning_rate, *, step, dtype):
        return step

    def apply(self, rows, gradient, *, state, prepared):
        if prepared == 2:
            rows[1] = NAN


@pytest.mark.parametrize("action", ["stop", "skip"])
@pytest.mark.parametrize(
    "loss_type, said",
    [
        ("dist_arcface", "epoch 0, step 2: after the update weight of the head, class 1, holds nan"),
        # No norms of the rows are known: the next step meets it.
        ("dist_softmax", "epoch 0, step 3: (weight of the head, class 1, holds nan|the loss is nan)"),
    ],
)
def test_a_class_center_that_an_update_breaks_stops_training(entry, loss_type, said, action):
    prepare(entry, loss_type=loss_type, head_optimizer=Breaking(), on_nonfinite=action)
    with pytest.raises(TrainingError, match=said):
        entry.train()
    assert not list_checkpoints(entry.model_save_dir)


def test_a_parameter_that_is_not_finite_from_the_start_is_named(entry):
    model = Network()
    model.last.weight.set_value(paddle.full([16, 16], NAN))
    with pytest.raises(TrainingError, match=r"before the first step the parameter 'last\.weight' holds nan; correct"):
        prepare(entry, model=model).train()


def test_a_class_center_that_is_not_finite_from_the_start_is_named(entry):
    bad = paddle.ParamAttr(initializer=nn.initializer.Constant(INF))
    with pytest.raises(TrainingError, match=r"before the first step weight of the head, class 0, holds inf"):
        prepare(entry, param_attr=bad).train()


def test_a_constant_that_is_not_finite_is_no_fault(entry, caplog):
    """A mask of -infinity, as in attention."""
    prepare(entry, model=Network()).train()
    assert "'mask' of the network is not finite from the start: it is taken for a constant" in caplog.text
    assert [path.name for path in list_checkpoints(entry.model_save_dir)] == ["0"]
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_epochs(2)
    entry.set_model(Network())
    entry.train()
    assert [path.name for path in list_checkpoints(entry.model_save_dir)] == ["0", "1"]


def test_the_newest_checkpoint_is_named_where_there_is_one(entry):
    prepare(entry, train_epochs=2, lr_schedule=lambda step: 1e30 if step == 5 else 0.01)
    with pytest.raises(TrainingError, match=r"the newest checkpoint is .*output/0\. Lower the learning rate"):
        entry.train()


def test_a_resumed_run_names_where_it_began(entry, tmp_path):
    prepare(entry).train()
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_model_save_dir(tmp_path / "other")
    prepare(entry, NAN, train_epochs=2)
    with pytest.raises(TrainingError, match=r"no checkpoint was saved since the run was resumed from .*output/0\."):
        entry.train()


def test_a_bad_step_is_found_before_a_verification_within_the_epoch(entry, data_dir):
    prepare(entry, NAN, with_test=True, test_period=1)
    with pytest.raises(TrainingError, match=r"the input, item 7 of Finished"):
        entry.train()


# In mode 'skip'


@pytest.mark.parametrize("bad", [NAN, INF, 1e30])
def test_an_image_with_one_bad_pixel_is_left_out(entry, caplog, bad):
    prepare(entry, bad, on_nonfinite="skip", train_epochs=2)
    results = entry.train()
    assert caplog.text.count("skipped: the input, item 7 of Finished, holds") == 2
    assert results["skipped_steps"] == 2
    assert "saved" in caplog.text and "; 2 steps skipped so far" in caplog.text
    *_, last = Path(entry.model_save_dir, "metrics.jsonl").read_text().splitlines()
    assert json.loads(last)["skipped_steps"] == 2


class RunningMean:
    """A margin with a state that every step moves, in place."""

    def __init__(self):
        self.mean = paddle.ones([1])

    def __call__(self, cosine, norms, labels):
        self.mean.set_value(0.9 * self.mean + 0.1 * norms.mean())
        return cosine - 0.1 * self.mean / (1 + self.mean), paddle.ones_like(cosine)

    def state(self):
        return {"mean": self.mean}

    def load(self, state):
        self.mean.set_value(state["mean"])


def clipped(learning_rate, parameters):
    clip = nn.ClipGradByGlobalNorm(1.0)
    return paddle.optimizer.Momentum(learning_rate, 0.9, parameters=parameters, grad_clip=clip)


HEADS = {
    "sharded": {},
    "replicated": {"loss_type": "arcface"},
    "softmax": {"loss_type": "softmax"},
    "sampled": {"sample_ratio": 0.5},
    "unfused": {"optimizer": clipped},
    "adamw": {"optimizer": paddle.optimizer.AdamW},
    "bfloat16": {"momentum_storage": "bfloat16"},
    "margin with state": {"margin_function": RunningMean},
    "recompute": {"logits": "recompute"},
}


@pytest.mark.parametrize("head", HEADS)
def test_a_skipped_step_leaves_everything_as_it_was(entry, head):
    settings = {name: value() if name == "margin_function" else value for name, value in HEADS[head].items()}
    trainer = Trainer(prepare(entry, on_nonfinite="skip", **settings).config)
    first, second, *_ = batches(trainer)
    trainer.train_step(first)
    before = everything(trainer)
    values = trainer.train_step(poisoned(second))
    assert values["skipped_steps"] == 1 and trainer.step == 2
    assert_equal(everything(trainer), before)
    # The next step is sound, and the same as without the skipped one between.
    trainer.train_step(second)
    moved = everything(trainer)
    assert any((moved[name] != value).any() for name, value in before.items())
    assert all(np.isfinite(value).all() for value in moved.values() if value.dtype.kind == "f")


@pytest.mark.parametrize("harm", HARMS)
def test_a_skipped_step_restores_what_a_forward_moves(entry, harm):
    """Statistics and buffers, replaced or written in place, saved or not."""
    model = Network()
    model.harm = in_step(2, HARMS[harm][0])
    trainer = Trainer(prepare(entry, model=model, on_nonfinite="skip").config)
    first, second, *_ = batches(trainer)
    trainer.train_step(first)
    before = {**everything(trainer), "mean": model.mean.numpy().copy()}
    assert trainer.train_step(second)["skipped_steps"] == 1
    assert_equal({**everything(trainer), "mean": model.mean.numpy()}, before)
    assert model.count.item() == 1
    assert all(parameter.grad is None for parameter in model.parameters())
    trainer.train_step(second)
    assert model.count.item() == 2


def test_so_many_skipped_steps_in_a_row_stop_training(entry, caplog):
    model = Network()
    model.harm = lambda network, x: x * NAN if network.calls > 2 and network.calls != 5 else x
    prepare(entry, model=model, on_nonfinite="skip", max_skipped_steps=3, train_epochs=3)
    with pytest.raises(TrainingError, match=r"step 8: skipped 3 steps in a row \(set_max_skipped_steps.*the newest"):
        entry.train()
    assert caplog.text.count("skipped: the") == 5


def test_no_checkpoint_is_deleted_for_one_after_a_skipped_step(entry, caplog):
    model = Network()
    # The last step of epoch 1 and all of epoch 2 are skipped; epoch 3 is sound.
    model.harm = lambda network, x: x * NAN if 8 <= network.calls <= 12 else x
    prepare(entry, model=model, on_nonfinite="skip", train_epochs=3, max_last_checkpoint_num=1)
    entry.train()
    assert [path.name for path in list_checkpoints(entry.model_save_dir)] == ["0", "1", "2"]
    assert "skipped the last 5 steps: earlier checkpoints are kept until a step is sound" in caplog.text
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_epochs(4)
    entry.train()
    assert [path.name for path in list_checkpoints(entry.model_save_dir)] == ["3"]


def test_a_run_that_breaks_keeps_its_sound_checkpoints(entry):
    prepare(
        entry,
        train_epochs=9,
        on_nonfinite="skip",
        max_last_checkpoint_num=3,
        lr_schedule=lambda step: 1e30 if step == 12 else 0.01,
    )
    with pytest.raises(
        TrainingError, match=r"step 13: after the update the parameter .*the newest checkpoint is .*/2\."
    ):
        entry.train()
    assert [path.name for path in list_checkpoints(entry.model_save_dir)] == ["0", "1", "2"]


# Float16. Paddle computes in it on GPUs only: here float32 is, with the loss scale and the judgment of float16


def in_float16(trainer):
    trainer.precision.scale = LossScale(trainer.config)
    return trainer


class BeyondHalf(paddle.autograd.PyLayer):
    """The identity, whose gradient is what float16 makes of numbers beyond its range."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return (gradient * 1e9).astype("float16").astype("float32")


def overflow_backward(network, x):
    return BeyondHalf.apply(x)


def overflow_forward(network, x):
    """One activation beyond float16's range; what a forward pass moves is destroyed with it."""
    hole = paddle.zeros_like(x)
    hole[1, 2] = INF
    harm_statistic(network, x)
    network.mean = network.mean * NAN
    return x + hole


OVERFLOWS = {
    "backward": (overflow_backward, "a gradient, times the loss scale, is beyond float16"),
    "forward": (overflow_forward, "the running statistic 'mean' holds nan"),
    "features": (lambda network, x: x * INF, "the feature vector of item .* holds"),
}


def without_scale(found):
    return {name: value for name, value in found.items() if name != "loss scale"}


@pytest.mark.parametrize("action", ["stop", "skip"])
@pytest.mark.parametrize("overflow", OVERFLOWS)
@pytest.mark.parametrize("head", HEADS)
def test_a_step_that_overflows_leaves_everything_but_the_loss_scale_as_it_was(entry, caplog, head, overflow, action):
    settings = {name: value() if name == "margin_function" else value for name, value in HEADS[head].items()}
    model = Network()
    model.harm = in_step(2, OVERFLOWS[overflow][0])
    prepare(entry, model=model, on_nonfinite=action, decr_every_n_nan_or_inf=1, **settings)
    trainer = in_float16(Trainer(entry.config))
    first, second, *_ = batches(trainer)
    trainer.train_step(first)
    before = everything(trainer)
    assert trainer.train_step(second)["skipped_steps"] == 1 and trainer.step == 2
    assert_equal(without_scale(everything(trainer)), without_scale(before))
    assert model.count.item() == 1
    assert trainer.precision.scale.value == 2.0**14
    assert re.search(f"step 2 skipped: {OVERFLOWS[overflow][1]}.*; the loss scale is now 16384", caplog.text)
    trainer.train_step(second)
    moved = everything(trainer)
    assert (moved["head weight"] != before["head weight"]).any()
    assert all(np.isfinite(value).all() for name, value in moved.items() if value.dtype.kind == "f" and name != "mask")


@pytest.mark.parametrize("overflow", OVERFLOWS)
def test_training_goes_on_after_overflows_in_a_row_and_the_scale_shrinks(entry, overflow):
    """With Paddle 3.3.1 and NumPy 2.4 the second one in a row ended the run with a TypeError."""
    model = Network()
    model.harm = lambda network, x: OVERFLOWS[overflow][0](network, x) if 2 <= network.calls <= 5 else x
    trainer = in_float16(Trainer(prepare(entry, model=model, train_epochs=3).config))
    results = trainer.train()
    assert results["skipped_steps"] == 4
    assert trainer.precision.scale.value == 2.0**13  # every second overflow halves it
    manifest = json.loads((Path(entry.model_save_dir) / "2" / "manifest.json").read_text())
    assert manifest["about"]["loss_scaling"]["scale"] == [2.0**13]


def test_a_forward_pass_that_always_overflows_stops_training_at_a_scale_of_one(entry):
    model = Network()
    model.harm = lambda network, x: x * INF if network.calls > 1 else x
    prepare(entry, model=model, init_loss_scaling=4.0, train_epochs=9)
    with pytest.raises(TrainingError, match=r"step 6: the feature vector of .* holds (-?inf|nan).*bfloat16") as found:
        in_float16(Trainer(entry.config)).train()
    assert "set_on_nonfinite('skip')" in str(found.value)


@pytest.mark.parametrize("overflow", OVERFLOWS)
def test_overflows_without_end_stop_training(entry, overflow):
    model = Network()
    model.harm = lambda network, x: OVERFLOWS[overflow][0](network, x) if network.calls > 1 else x
    trainer = in_float16(Trainer(prepare(entry, model=model, max_skipped_steps=3).config))
    said = f"step 4: skipped 3 steps in a row .*; in the last {OVERFLOWS[overflow][1]}"
    with pytest.raises(TrainingError, match=said):
        trainer.train()


@pytest.mark.parametrize("harm", ["image", "center"])
def test_what_float16_does_not_explain_stops_training(entry, harm):
    trainer = in_float16(Trainer(prepare(entry).config))
    first, second, *_ = batches(trainer)
    trainer.train_step(first)
    if harm == "image":
        said = r"step 2: the input, item \d+ of Finished, holds nan"
        second = poisoned(second)
    else:
        said = "step 2: weight of the head, class 1, holds nan"
        trainer.head.parameters["weight"].detach()[1] = paddle.full([16], NAN)
        trainer._judge.check()
    with pytest.raises(TrainingError, match=said):
        trainer.train_step(second)
    assert trainer.precision.scale.value == 2.0**15


def test_a_bad_image_that_is_skipped_is_no_overflow(entry):
    trainer = in_float16(Trainer(prepare(entry, on_nonfinite="skip", decr_every_n_nan_or_inf=1).config))
    first, second, *_ = batches(trainer)
    trainer.train_step(first)
    before = everything(trainer)
    trainer.train_step(poisoned(second))
    assert_equal(everything(trainer), before)


def test_the_loss_scale_changes_no_number_that_float32_holds(entry, tmp_path):
    """A scale is a power of 2: with float32 gradients the run is that without a scale, bit for bit."""
    plain = Trainer(prepare(entry).config)
    plain.train()
    entry.set_model_save_dir(tmp_path / "scaled")
    scaled = in_float16(Trainer(prepare(entry).config))
    scaled.train()
    assert_equal(without_scale(everything(scaled)), without_scale(everything(plain)))


# On several ranks


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.cpu("its worker asks for the verdict one step later; on a GPU it is read some steps later")
def test_ranks_leave_out_a_step_together_and_name_the_rank(tmp_path):
    """An image that is bad on one rank only: 'skip' restores both ranks, 'stop' ends both, naming the sample."""
    _, output = launch(2, "judge_worker.py", log_dir=tmp_path / "log", cwd=tmp_path)
    logs = [(tmp_path / "log" / f"workerlog.{rank}").read_text() for rank in range(2)]
    for text in logs:
        assert "SKIPPED 1 equal" in text and "UNFUSED 1 equal" in text
        assert "BACKWARD 1 equal, scale 16384.0" in text and "FORWARD 1 equal, scale 16384.0" in text
        assert "step 2 skipped: the input, " in text and ", holds nan (rank 1)" in text
        assert re.search(r"CARD (rank 1: )?amp_dtype is 'bfloat16', which needs .* Tesla T4, has 7\.5", text)
        assert "STOPPED epoch 0, step 2: the input, " in text
        assert "SAVED the checkpoint save/0 was not written: rank 1: head.weight holds nan in row 5" in text
        assert "FILES []" in text


def test_warnings_name_each_skipped_step_once(entry, caplog):
    with caplog.at_level(logging.WARNING):
        prepare(entry, NAN, on_nonfinite="skip").train()
    assert len([record for record in caplog.records if "skipped" in record.message]) == 1
