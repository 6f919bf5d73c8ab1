"""The settings of a run: what they derive from each other, and which of them contradict."""

from __future__ import annotations

import dataclasses
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import paddle
import pytest

from plsc import Config, ConfigError, Entry
from plsc.cli.settings import make_entry
from plsc.loss_types import LOSS_KINDS, LOSSES, LossType, Parameters, number
from plsc.utils.class_numbers import numbers_of_classes
from plsc.utils.settings import plain_type, text_of


@pytest.mark.parametrize(
    "loss, margins",
    [
        (("arcface",), (1.0, 0.5, 0.0)),
        (("cosface",), (1.0, 0.0, 0.35)),
        (("sphereface",), (1.35, 0.0, 0.0)),
        (("dist_arcface",), (1.0, 0.5, 0.0)),
        (("dist_softmax",), None),
        (("arcface", None, 0.3), (1.0, 0.3, 0.0)),
        (("mine", 1.1, 0.2, 0.1), (1.1, 0.2, 0.1)),
        (("dist_mine", 1.1, 0.2, 0.1), (1.1, 0.2, 0.1)),
        (("combined", 1.0, 0.0, 0.0), (1.0, 0.0, 0.0)),
    ],
)
def test_margins_of_each_loss(loss, margins):
    entry = Entry()
    entry.set_loss_type(*loss)
    assert entry.config.margins == margins
    assert entry.config.is_sharded == loss[0].startswith("dist_")


@pytest.mark.parametrize("loss, trained", [("mine", "combined"), ("dist_arcfase", "dist_combined")])
def test_an_unknown_loss_with_three_margins_is_combined_and_said(loss, trained, caplog):
    entry = Entry()
    entry.set_loss_type(loss, 1, 0.2, 0.3)
    assert entry.loss_type == trained
    assert f"loss_type '{loss}' is not known" in caplog.text
    assert f"is trained as '{trained}': cos(1 theta + 0.2) - 0.3" in caplog.text
    assert ("did you mean 'dist_arcface'?" in caplog.text) == (loss == "dist_arcfase")


@pytest.mark.parametrize(
    "loss, words",
    [
        (
            ("triplet", 1, 0.2, 0.3),
            "loss_type: got 'triplet', a loss that PLSC does not have; accepted: softmax, arcface",
        ),
        (
            ("dist_AdaFace", 1, 0.2, 0.3),
            "got 'dist_AdaFace', a loss that PLSC does not have; did you mean 'dist_adaface'?",
        ),
        (("triplet", 0.2), "got 'triplet' (str); accepted: softmax"),
        (("am_softmax",), "did you mean 'cosface'?"),
        (("cross-entropy",), "did you mean 'softmax'?"),
        (("own", 1, 0.2), "got 'own' (str); accepted: softmax"),
        (("softmax", 1, 0.2, 0.3), "loss_type 'softmax' has no margin, but one is set"),
        (("dist_softmax", None, 0.2), "loss_type 'dist_softmax' has no margin, but one is set"),
        (("combined", 1, 0.2), "loss_type 'combined' needs margin1, margin2 and margin3"),
        ((max, 0.2), "margin_function replaces the margins of loss_type, but margin1 is set"),
        (("arcface", -1), "margin1: got -1"),
    ],
)
def test_a_loss_and_margins_that_do_not_fit_are_refused_at_once_and_change_nothing(loss, words):
    entry = Entry()
    entry.set_loss_type("cosface", margin3=0.2)
    before = repr(entry)
    with pytest.raises(ConfigError) as error:
        entry.set_loss_type(*loss)
    assert words in str(error.value)
    assert repr(entry) == before


@pytest.mark.parametrize(
    "mean, std, doubts",
    [
        (0.5, 0.5, ["pixel_mean 0.5 looks", "pixel_std 0.5 looks"]),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), ["123.675,116.28,103.53 is", "58.395,57.12,57.375 is"]),
        (
            0,
            1 / 255,
            ["pixel_std 0.00392157 looks like a value for pixels of 0 to 1, and pixels here are 0 to 255; 1 is"],
        ),
        (1, 1, ["pixel_mean 1 looks"]),
        (127.5, 128, []),
        (0, 255, []),
        (0, 1, []),
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), []),
    ],
)
def test_pixels_of_0_to_1_are_doubted(mean, std, doubts):
    found = Config(pixel_mean=mean, pixel_std=std).doubts()
    assert len(found) == len(doubts) and all(words in text for words, text in zip(doubts, found))


def test_model_parallel_shards_whatever_the_prefix():
    entry = Entry()
    entry.set_model_parallel(True)
    entry.set_loss_type("cosface")
    assert entry.config.is_sharded


@pytest.mark.parametrize("loss, index", [("arcface", 1), ("cosface", 2), ("sphereface", 0)])
def test_set_margin_is_the_one_margin_of_the_loss(loss, index):
    entry = Entry()
    entry.set_loss_type(loss)
    entry.set_margin(0.2)
    assert entry.config.margins[index] == 0.2


@pytest.mark.parametrize("kind", ["arcface", "cosface", "sphereface"])
def test_writing_the_default_margin_means_the_same_as_leaving_it_out(kind):
    assert Config(loss_type=kind, margin=None).margins == Config(loss_type=kind).margins
    assert Config(loss_type=kind, margin=Config(loss_type=kind).main_margin).margins == Config(loss_type=kind).margins


def test_the_main_margin_is_that_of_the_loss():
    entry = Entry()
    assert entry.margin == 0.5
    entry.set_loss_type("cosface")
    assert entry.margin == 0.35
    entry.margin = 0.4
    assert (entry.margin, entry.config.margins) == (0.4, (1.0, 0.0, 0.4))


def test_steps_unset_the_default_epochs(tmp_path):
    assert (Config(train_steps=3).train_epochs, Config(train_steps=None).train_epochs) == (None, 120)
    (tmp_path / "run.yaml").write_text("train_steps: 3")
    Config.from_file(tmp_path / "run.yaml").check()


def test_verification_sets_by_name():
    assert Config().val_names == ("lfw",)
    assert Config(val_targets="a, b,").val_names == ("a", "b")
    assert Config(val_targets="").val_names == ()
    assert Config(val_targets=["lfw", "cfp_fp"]).val_targets == "lfw,cfp_fp", "as a list of YAML"


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"loss_type": "softmax", "margin2": 0.3}, "has no margin, but one is set"),
        ({"loss_type": "combined", "margin1": 1.0}, "for ArcFace they are 1, 0.5 and 0, for CosFace 1, 0 and"),
        ({"loss_type": "combined", "margin1": 1.0, "margin2": 0.1, "margin3": 0.1, "margin": 0.2}, "no single margin"),
        ({"margin_function": max, "margin3": 0.1}, "margin_function replaces the margins .*, but margin3 is set"),
        ({"margin_function": max, "loss_type": "softmax"}, "has no margin, but margin_function is set"),
        (
            {"loss_type": "adaface", "margin": 0.3},
            "has no margin, but one is set; its parameters are m, h, average, see",
        ),
        (
            {"loss_options": {"h": 0.3}},
            "loss_options: loss 'arcface' has no parameter 'h'; its margin is that of set_margin, its scale that of "
            "set_scale$",
        ),
        (
            {"loss_type": "combined", "margin1": 1, "margin2": 0.3, "margin3": 0, "loss_options": {"m": 0.3}},
            "its margin is that of set_loss_type with margin1, margin2 and margin3",
        ),
        (
            {"loss_type": "softmax", "loss_options": {"m": 0.3}},
            "has no parameter 'm'; it has none, and neither a margin nor a scale$",
        ),
        (
            {"loss_type": "dist_adaface", "loss_options": {"std": 0.3}},
            "loss 'adaface' has no parameter 'std'; its parameters are m, h, average",
        ),
        (
            {"loss_type": "adaface", "loss_options": {"average": 3}},
            "loss_options: average: got 3.0, expected a number, at least 0 and at most 1",
        ),
        (
            {"loss_type": "magface", "loss_options": {"m": 0.3}, "margin_function": max},
            "loss 'magface' has no parameter 'm'",
        ),
        (
            {"loss_type": "adaface", "loss_options": {"m": 0.3}, "margin_function": max},
            "margin_function replaces the margins of loss_type, but m of loss_options is set",
        ),
        ({"loss_type": "softmax", "margin_warmup": 10}, "has no margin, but margin_warmup is set"),
        ({"train_steps": 3, "train_epochs": 120}, "train_epochs is 120 and train_steps is 3; set one of them"),
        ({"train_epochs": None}, "train_epochs is None and train_steps is None"),
    ],
)
def test_contradictions(settings, words):
    with pytest.raises(ConfigError, match=words):
        Config(**settings).check()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"pixel_mean": None}, r"pixel_mean: got None \(NoneType\); expected a valid tuple"),
        ({"pixel_std": 0}, r"pixel_std: got 0 \(int\); expected numbers above 0"),
        ({"image_shape": "3,112"}, "expected three numbers, as 3,112,112"),
        ({"lr_steps": "9,5"}, "expected steps of 1 or more in ascending order"),
        ({"lr_schedule": "cosin"}, "did you mean 'cosine'? accepted: step, cosine, polynomial, one_cycle"),
        (
            {"lr_schedule": 3},
            "lr_schedule: got 3 (int); expected step, cosine, polynomial, one_cycle or a function of the step",
        ),
        ({"margin_function": 3}, "margin_function: got 3 (int); expected callable"),
        (
            {"loss_options": {"avarage": 1}},
            "no loss has a parameter 'avarage'; did you mean 'average'? known: average, ",
        ),
        (
            {"loss_options": {"s": 30}},
            "'s' is no parameter of a loss; set_scale sets the scale of any loss",
        ),
        (
            {"optimizer": "adam"},
            "did you mean 'adamw'? accepted: momentum, sgd, adamw, lars, lion, or a class, as 'paddle.optimizer:Adam'",
        ),
        ({"loss_options": "m=0.4,h"}, "loss_options: got 'm=0.4,h' (str); expected numbers by name, as m=0.4,h=0.333"),
        ({"loss_options": "m=0.4,m=0.3"}, "'m' is given twice"),
        ({"loss_options": "m=much"}, "loss_options: got 'much' (str); expected a valid number"),
        ({"label_smoothing": 1.0}, "label_smoothing: got 1.0 (float); expected less than 1"),
        ({"class_weights": [1.0, -2.0]}, "the number of class 1 is -2, expected 0 or more"),
        ({"class_weights": [[1.0]]}, "expected one number per class, got an array of shape [1, 1]"),
        ({"class_counts": ["many"]}, "expected an array of numbers, one per class, or the path of a file"),
        ({"class_counts": [0, 0]}, "all numbers are 0"),
    ],
)
def test_wrong_values(settings, words):
    with pytest.raises(ConfigError) as error:
        Config(**settings)
    assert words.replace("\\", "") in str(error.value)


def test_values_as_text_and_one_number_for_three_channels():
    config = Config(pixel_mean="100", pixel_std=2, image_shape="3,32,48", lr_steps="5, 9", flip="no")
    assert (config.pixel_mean, config.pixel_std) == ((100.0,) * 3, (2.0,) * 3)
    assert (config.image_shape, config.lr_steps, config.flip) == ((3, 32, 48), (5, 9), False)


def test_a_schedule_is_saved_by_its_name():
    def falling(step):
        return 0.1 / (step + 1)

    assert Config(lr_schedule="cosine").model_dump(mode="json")["lr_schedule"] == "cosine"
    assert Config(lr_schedule=None).lr_schedule == "step"
    assert Config(lr_schedule=falling).model_dump(mode="json")["lr_schedule"].endswith("falling")


def test_the_description_names_every_choice():
    assert set(LOSS_KINDS) <= set(re.findall(r"\w+", Config.model_fields["loss_type"].description))


def test_the_spelling_of_1_0_is_accepted():
    entry = Entry()
    with pytest.raises(ConfigError, match="grey is the old name of gray, and both are given; leave out grey"):
        entry.set_augment(gray=0.1, grey=0.2)
    entry.set_augment(grey=0.2)
    assert (entry.augment_gray, entry.augment_grey) == (0.2, 0.2)
    entry.augment_grey = 0.3
    assert entry.config.augment_gray == 0.3
    entry.set_pixel_normalisation(1, 2)
    assert entry.pixel_std == (2.0, 2.0, 2.0)


def test_a_new_kind_of_loss_needs_no_margins_of_the_common_formula(monkeypatch):
    monkeypatch.setitem(LOSSES, "linear", LossType(scale=30.0))
    monkeypatch.setattr("plsc.config.LOSS_TYPES", ("linear",))
    config = Config(loss_type="linear")
    assert (config.margins, config.main_margin, config.loss_scale) == (None, None, 30.0)
    with pytest.raises(ConfigError, match="'linear' has no margin, but one is set"):
        Config(loss_type="linear", margin=0.3).check()


@pytest.mark.parametrize("kind", [float, np.float32, np.array, Fraction, Decimal, paddle.to_tensor])
def test_the_learning_rate_is_a_number_of_any_kind_through_every_setter(kind):
    entry = Entry()
    entry.set_lr(kind(0.5))
    assert (type(entry.lr), entry.lr) == (float, 0.5)
    entry.lr = kind(0.25)
    assert (type(entry.lr), entry.lr) == (float, 0.25)
    assert Config(lr=kind(0.5)).lr == 0.5


@pytest.mark.parametrize("value", [None, 1j, True, b"0.1", np.array([0.1, 0.2]), float("nan"), float("inf"), -0.1, 0])
def test_what_is_no_learning_rate_is_refused_by_every_setter(value):
    entry = Entry()
    for assign in (entry.set_lr, lambda value: setattr(entry, "lr", value), lambda value: Config(lr=value)):
        with pytest.raises(ConfigError, match="lr: got "):
            assign(value)


@pytest.mark.parametrize(
    "value", [np.float32(100), np.array(100), np.array([100.0]), [np.int64(100)] * 3, np.full(3, 100)]
)
def test_pixel_normalization_takes_numbers_and_arrays_of_numpy(value):
    entry = Entry()
    entry.set_pixel_normalization(value, value)
    assert entry.pixel_mean == entry.pixel_std == (100.0, 100.0, 100.0)


FLOATS = [
    name for name, field in Config.scalar_fields().items() if "float" in str(field.annotation) and name != "lr_schedule"
]
NONFINITE = [float("nan"), float("inf"), float("-inf"), np.float32("nan"), np.float64("inf"), "nan", "inf", "1e400"]


@pytest.mark.parametrize("name", FLOATS)
def test_a_number_that_is_not_finite_or_beyond_float32_is_refused(name, tmp_path):
    """By construction, assignment, a flag and a file."""
    assert {"lr", "scale", "pixel_mean", "pixel_std", "margin"} <= set(FLOATS)
    takes_three = plain_type(Config.model_fields[name].annotation) is tuple
    for value in [*NONFINITE, 1e39, 1e-46]:
        values = [value, [0.5, value, 0.5], f"0.5,{value},0.5"] if takes_three else [value]
        for given in values:
            for make in (
                lambda given=given: Config(**{name: given}),
                lambda given=given: setattr(Config(), name, given),
            ):
                with pytest.raises(ConfigError, match=rf"^{name}: got "):
                    make()
            with pytest.raises(ConfigError, match=rf"^{name}: got "):
                make_entry({name: text_of(given)})
    for text in (".nan", ".inf", "-.inf", "1.0e+39"):
        (tmp_path / "run.yaml").write_text(f"{name}: {text}\n")
        with pytest.raises(ConfigError, match=rf"run\.yaml: {name}: got "):
            Config.from_file(tmp_path / "run.yaml")


def test_setters_refuse_numbers_that_are_not_finite():
    entry = Entry()
    nan = float("nan")
    for call in (
        lambda: entry.set_lr(nan),
        lambda: entry.set_scale(nan),
        lambda: entry.set_margin(nan),
        lambda: entry.set_loss_type("combined", 1.0, nan, 0.1),
        lambda: entry.set_pixel_normalization(nan, 1.0),
        lambda: entry.set_pixel_normalization(127.5, [1.0, nan, 1.0]),
        lambda: entry.set_mixed_precision(True, init_loss_scaling=nan),
    ):
        with pytest.raises(ConfigError, match="got"):
            call()
    assert entry.config.lr == 0.1 and entry.scale == 64.0


def test_parameters_of_a_loss_in_every_way_that_they_can_be_given(tmp_path):
    entry = Entry()
    entry.set_loss_type("adaface")
    entry.set_loss_options(m=0.3, h=0.5)
    (tmp_path / "run.yaml").write_text("loss_type: adaface\nloss_options: {m: 0.3, h: 0.5}\n")
    (tmp_path / "text.yaml").write_text("loss_type: adaface\nloss_options: m=0.3,h=0.5\n")
    flags = make_entry({"loss_type": "adaface", "loss_options": "m=0.3, h=0.5"}).config
    for config in (entry.config, flags, *map(Config.from_file, (tmp_path / "run.yaml", tmp_path / "text.yaml"))):
        assert config.loss_options == {"m": 0.3, "h": 0.5}
        assert dataclasses.asdict(config.loss_parameters) == {"m": 0.3, "h": 0.5, "average": 0.01}
    assert text_of(entry.config.loss_options) == "m=0.3,h=0.5"


@pytest.mark.parametrize("kind, scale", [("arcface", 64.0), ("dynamic_margin", 80.0), ("dist_dynamic_margin", 80.0)])
def test_the_scale_is_that_of_the_loss_unless_it_is_given(kind, scale):
    entry = Entry()
    entry.set_loss_type(kind)
    assert entry.scale == entry.config.loss_scale == scale
    entry.set_scale(30)
    assert entry.scale == entry.config.loss_scale == 30.0


def test_the_range_of_a_parameter_is_said(monkeypatch):
    @dataclasses.dataclass(eq=False)
    class Odd(Parameters):
        free: float = number(0.0, "Any number.")
        most: float = number(0.0, "Below.", most=3.0)

    monkeypatch.setitem(LOSSES, "odd", LossType(parameters=Odd))
    monkeypatch.setattr("plsc.config.LOSS_TYPES", ("odd",))
    for options, words in (({"most": 4.0}, "most: got 4.0, expected a number, at most 3"),):
        with pytest.raises(ConfigError, match=words):
            Config(loss_type="odd", loss_options=options).check()
    assert Config(loss_type="odd", loss_options={"free": -7.0}).loss_parameters.free == -7.0


@pytest.mark.parametrize("setting", ["class_weights", "class_counts"])
def test_numbers_of_classes_are_given_as_an_array_or_a_file(setting, tmp_path):
    np.save(tmp_path / "n.npy", np.array([1.0, 2.5, 0.0]))
    (tmp_path / "n.txt").write_bytes(b"\xef\xbb\xbf1\r\n2.5\r\n0\r\n")  # as an editor on Windows writes it
    entry = Entry()
    for given in (tmp_path / "n.npy", str(tmp_path / "n.txt"), [1, 2.5, 0], np.array([1.0, 2.5, 0.0], np.float32)):
        getattr(entry, f"set_{setting}")(given)
        found = numbers_of_classes(setting, getattr(entry.config, setting), 3)
        np.testing.assert_array_equal(found, [1.0, 2.5, 0.0])
    described = entry.config.model_dump(mode="json")[setting]
    assert described.startswith("3 numbers (") and described in repr(entry)
    setattr(entry, setting, [1, 2.5, 1])
    assert entry.config.model_dump(mode="json")[setting] != described


@pytest.mark.parametrize(
    "text, words",
    [
        ("1\n2\n", "2 numbers, expected one for each of the 3 classes; give 3 numbers"),
        ("1\ntwo\n3\n", "line 2 is 'two', expected a number; a file holds one number per class"),
        ("1\nnan\n3\n", "the number of class 1 is nan, expected 0 or more"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_that_does_not_hold_numbers_of_classes_is_named(text, words, tmp_path):
    path = tmp_path / "weights.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as error:
        numbers_of_classes("class_weights", str(path), 3)
    assert words in str(error.value) and "class_weights: " in str(error.value) and str(path) in str(error.value)
