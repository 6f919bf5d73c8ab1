"""The learning rate by step, against formulas in float64."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import paddle
import pytest

from plsc.config import Config
from plsc.engine.observers import Observer
from plsc.engine.schedules import SCHEDULES, build_schedule, explain_learning_rate
from plsc.engine.trainer import Trainer
from plsc.entry import Entry
from plsc.errors import ConfigError


def schedule_of(config, global_batch=1024, steps_per_epoch=None, total_steps=None):
    return build_schedule(config, global_batch, steps_per_epoch=steps_per_epoch, total_steps=total_steps)


def test_learning_rate_scales_with_the_global_batch_and_decays():
    learning_rate = schedule_of(Config(lr_steps=(10, 20)), 2048, 5)
    assert [learning_rate(step) for step in (0, 9, 10, 20)] == pytest.approx([0.2, 0.2, 0.02, 0.002])


LINEAR = [name for name in SCHEDULES if name != "one_cycle"]  # its rise starts elsewhere


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("global_batch, start", [(2048, 0.1), (256, 0.0)])
def test_warm_up_rises_to_the_peak_and_never_falls(name, global_batch, start):
    learning_rate = schedule_of(Config(lr_schedule=name, warmup_epochs=2), global_batch, 5, 30)
    rates, peak = [learning_rate(step) for step in range(11)], 0.1 * global_batch / 1024
    assert np.all(np.diff(rates) >= 0)
    assert rates[0] == pytest.approx(start + (peak - start) / 10)
    assert rates[9:] == pytest.approx([peak] * 2)


# Of 10 warm-up steps and 40 others: the last step of the warm-up, the first after it, the middle, the last, the end.
STEPS = (9, 10, 30, 49, 50)
DECAYS = {
    "step": [1.0, 1.0, 0.5, 0.25, 0.25],
    "cosine": [1.0, 1.0, 0.5, (1 - np.cos(np.pi / 40)) / 2, 0.0],
    "polynomial": [1.0, 1.0, 0.25, 1 / 1600, 0.0],
}


@pytest.mark.parametrize("name", LINEAR)
def test_named_schedules_follow_their_formulas(name):
    config = Config(lr_schedule=name, warmup_epochs=2, lr=0.3, lr_steps=(30, 40), lr_decay_factor=0.5)
    learning_rate = schedule_of(config, 512, 5, 50)
    found = np.array([learning_rate(step) for step in STEPS], np.float64)
    assert np.allclose(found, 0.15 * np.array(DECAYS[name]), rtol=1e-13, atol=1e-17)


def test_one_cycle_rises_from_a_25th_and_falls_to_almost_nothing():
    """A rise of 30 % of the run where no warm-up is set: 15 of 50 steps; the fall is half a cosine."""
    for settings, rise in (({}, 15), ({"warmup_epochs": 2}, 10), ({"warmup_steps": 7}, 7)):
        found = [
            schedule_of(Config(lr_schedule="one-cycle", lr=0.3, **settings), 512, 5, 50)(step) for step in range(51)
        ]
        expected = []
        for step in range(51):
            if step < rise:
                expected.append(0.15 * (0.04 + 0.96 * (step + 1) / rise))
            else:
                share = (step - rise) / (50 - rise)
                expected.append(0.15 * (4e-6 + (1 - 4e-6) * (1 + np.cos(np.pi * share)) / 2))
        assert np.allclose(found, expected, rtol=1e-12, atol=0)
        assert np.argmax(found) in (rise - 1, rise) and found[50] == pytest.approx(0.15 * 4e-6)


def test_the_power_of_the_polynomial_and_its_old_name():
    one = schedule_of(Config(lr_schedule="poly", lr_power=1.0), total_steps=10)
    assert [one(step) for step in (0, 4, 10)] == pytest.approx([0.1, 0.06, 0.0])
    assert Config(lr_schedule="poly") == Config(lr_schedule="polynomial")


def test_lengths_in_epochs_and_in_steps_are_the_same():
    in_epochs = schedule_of(Config(warmup_epochs=2, lr_epochs=(4, 6)), 512, 5, 50)
    in_steps = schedule_of(Config(warmup_steps=10, lr_steps=(20, 30)), 512, 5, 50)
    rates = [in_epochs(step) for step in range(50)]
    assert rates == [in_steps(step) for step in range(50)]
    assert len({round(rate, 9) for rate in rates[10:]}) == 3
    with pytest.raises(ConfigError, match="warmup_epochs is 2 and warmup_steps is 10; set one of them"):
        Config(warmup_epochs=2, warmup_steps=10).check()
    entry = Entry()
    entry.set_warmup_epochs(3)
    entry.set_warmup_steps(5)
    assert (entry.warmup_epochs, entry.warmup_steps) == (0, 5)
    entry.set_warmup_epochs(3)
    assert (entry.warmup_epochs, entry.warmup_steps) == (3, 0)


@pytest.mark.parametrize(
    "settings, step, words",
    [
        ({}, 0, "learning rate of step 1: 0.003125 (lr 0.1 at 1024 -> 0.003125 at 32)"),
        (
            {"warmup_steps": 4},
            1,
            "learning rate of step 2: 0.0015625 (lr 0.1 at 1024 -> 0.003125 at 32; step 2 of 4 of the warm-up)",
        ),
        (
            {"warmup_steps": 20},
            1,
            "0.003125 at 32; step 2 of 20 of the warm-up; the run ends at step 10, before the warm-up)",
        ),
        (
            {"lr_schedule": "cosine"},
            5,
            "learning rate of step 6: 0.0015625 (lr 0.1 at 1024 -> 0.003125 at 32; cosine, 0.5 of that at step 6)",
        ),
        (
            {"head_lr_factor": 10, "backbone_lr_factor": 0.1},
            0,
            "0.003125 at 32), backbone 0.0003125 (x 0.1), class centers 0.03125 (x 10)",
        ),
        ({"lr_schedule": lambda step: 0.5}, 0, "learning rate of step 1: 0.5 (by the function of lr_schedule)"),
    ],
)
def test_the_first_learning_rate_is_told_with_its_reason(settings, step, words):
    config, length = Config(**settings), {"steps_per_epoch": 5, "total_steps": 10}
    schedule = build_schedule(config, 32, **length)
    assert words in explain_learning_rate(config, schedule, step, global_batch=32, **length)


def test_a_run_says_its_first_learning_rate(entry, caplog):
    caplog.set_level("INFO", "plsc")
    entry.set_head_lr_factor(4)
    entry.set_with_test(False)
    entry.train()
    assert "learning rate of step 1: 0.000976562 (lr 0.1 at 1024 -> 0.000976562 at 10), class centers" in caplog.text


@pytest.mark.parametrize("name", ["cosine", "poly"])
def test_a_decay_without_warm_up_falls_from_the_peak_at_every_step(name):
    learning_rate = schedule_of(Config(lr_schedule=name), total_steps=7)
    rates = [learning_rate(step) for step in range(8)]
    assert rates[0] == 0.1
    assert np.all(np.diff(rates) < 0)
    assert rates[6] > 0.0 and rates[7] == 0.0
    assert learning_rate(9) == 0.0, "a reader may have more batches than train_image_num says"


@pytest.mark.parametrize("name", LINEAR)
def test_a_run_may_be_shorter_than_its_warm_up(name):
    learning_rate = schedule_of(Config(lr_schedule=name, warmup_epochs=4), steps_per_epoch=5, total_steps=8)
    assert [learning_rate(step) for step in range(8)] == pytest.approx([0.1 * (step + 1) / 20 for step in range(8)])


@pytest.mark.parametrize("kind", [int, float, np.float32, np.array, paddle.to_tensor, Fraction, Decimal])
def test_a_function_gives_the_learning_rate_itself(kind):
    learning_rate = schedule_of(Config(lr_schedule=lambda step: kind(2 * step)))
    assert [learning_rate(step) for step in (0, 3)] == [0.0, 6.0]
    assert type(learning_rate(3)) is float


NO_NUMBERS = ["0.1", None, [0.1, 0.2], 1j, b"0.1", True, np.complex64(1)]


@pytest.mark.parametrize("value", [*NO_NUMBERS, float("nan"), float("inf"), -0.1, 10**400])
def test_a_function_that_gives_no_learning_rate_is_named_with_the_step(value):
    learning_rate = schedule_of(Config(lr_schedule=lambda step: value))
    with pytest.raises(ConfigError, match=r"the function returned .* for step 7; expected a number of 0 or more"):
        learning_rate(7)


def test_a_function_that_fails_is_named_with_the_step_and_the_fault():
    learning_rate = schedule_of(Config(lr_schedule=lambda step: 1 / (step - 7)))
    with pytest.raises(
        ConfigError, match="the function raised ZeroDivisionError for step 7: division by zero"
    ) as error:
        learning_rate(7)
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def fails_at(bad, value=None):
    """A function that fails at a step, or returns `value` there."""
    return lambda step: 0.1 if step != bad else 1 / 0 if value is None else value


@pytest.mark.parametrize("bad", [0, 1, 4, 8])
@pytest.mark.parametrize("value", [None, "0.1"])
def test_a_function_is_tried_before_the_first_step(entry, bad, value):
    entry.set_train_epochs(3)  # steps 0 to 8
    entry.set_lr(fails_at(bad, value))
    with pytest.raises(ConfigError, match=f"for step {bad}[:;]"):
        Trainer(entry.config)
    Trainer(entry.config.model_copy(update={"lr_schedule": fails_at(9)}))


def test_a_resumed_run_tries_the_function_from_its_own_first_step_on(entry):
    entry.train()  # steps 0 to 2
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_epochs(2)
    entry.set_lr(fails_at(2))
    Trainer(entry.config)
    entry.set_lr(fails_at(3))
    with pytest.raises(ConfigError, match="ZeroDivisionError for step 3"):
        Trainer(entry.config)


@pytest.mark.parametrize(
    "schedule",
    [lambda: 0.1, paddle.optimizer.lr.CosineAnnealingDecay, paddle.optimizer.lr.CosineAnnealingDecay(0.1, 10)],
)
def test_what_is_no_function_of_the_step_is_refused_where_it_is_set(schedule):
    with pytest.raises(ConfigError, match="lr_schedule: .*expected a function that is called with the step alone"):
        Config(lr_schedule=schedule)


def test_no_schedule_means_the_step_schedule():
    assert schedule_of(Config(lr_schedule=None))(5) == schedule_of(Config())(5) == 0.1


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"lr_schedule": "cosine"}, r"'cosine', which needs the number of training steps.*set_train_image_num"),
        ({"lr_schedule": "poly"}, r"'polynomial', which needs the number of training steps.*set_train_steps"),
        ({"warmup_epochs": 2}, r"warmup_epochs is 2, but the number of training images is unknown.*set_warmup_steps"),
        ({"lr_epochs": (2, 3)}, r"lr_epochs is 2,3, but the number of training images is unknown.*set_step_boundaries"),
    ],
)
def test_an_unknown_number_of_steps_is_named_where_it_is_needed(settings, message):
    with pytest.raises(ConfigError, match=message):
        schedule_of(Config(**settings))


def test_a_reader_of_unknown_length_trains_a_number_of_steps_by_a_named_schedule(entry):
    entry.train_reader = lambda: iter([[(np.zeros((3, 16, 16), np.float32), 0)] * 10] * 3)
    entry.set_lr("cosine")
    with pytest.raises(ConfigError, match="the length of train_reader is unknown"):
        entry.train()
    entry.set_train_steps(3)
    assert entry.train()["lr"] == pytest.approx(0.1 * 10 / 1024 * (1 + np.cos(np.pi * 2 / 3)) / 2)


class LearningRates(Observer):
    def __init__(self):
        self.found = {}

    def on_step(self, step):
        assert step.number not in self.found
        self.found[step.number] = step.values["lr"]


@pytest.mark.parametrize("name", ["cosine", "poly", "one_cycle"])
def test_a_resumed_run_has_the_learning_rates_of_an_unbroken_one(name, entry, tmp_path):
    entry.set_with_test(False)
    entry.set_async_save(False)  # otherwise a checkpoint is complete some steps later
    entry.set_warmup_epochs(1)
    entry.set_train_epochs(3)
    entry.set_lr(name)
    whole, broken = LearningRates(), LearningRates()
    Trainer(entry.config, observers=[whole]).train()

    class Stop(Observer):
        def on_save(self, step, path):
            raise KeyboardInterrupt

    entry.set_model_save_dir(tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        Trainer(entry.config, observers=[broken, Stop()]).train()
    entry.set_checkpoint_dir(tmp_path / "broken")
    Trainer(entry.config, observers=[broken]).train()
    assert broken.found == whole.found
    assert len(whole.found) == 9
