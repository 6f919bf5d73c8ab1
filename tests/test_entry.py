"""The facade: every setter of the old API, its default, and what a wrong value is told."""

from __future__ import annotations

import paddle
import pytest

import plsc
from plsc import ConfigError, Entry
from plsc.models.base_model import BaseModel

DEFAULTS = {
    "num_classes": 85742,
    "emb_dim": 512,
    "image_shape": (3, 112, 112),
    "model_name": "ResNet50",
    "loss_type": "dist_arcface",
    "margin": 0.5,
    "scale": 64.0,
    "sample_ratio": 1.0,
    "dataset_dir": "./train_data",
    "train_batch_size": 128,
    "test_batch_size": 120,
    "train_epochs": 120,
    "warmup_epochs": 0,
    "lr_steps": (100000, 160000, 220000),
    "lr_decay_factor": 0.1,
    "lr": 0.1,
    "checkpoint_dir": "",
    "model_save_dir": "output",
    "max_last_checkpoint_num": 5,
    "val_targets": "lfw",
    "with_test": True,
    "test_period": 0,
    "calc_acc": False,
    "log_period": 200,
    "train_reader": None,
    "test_reader": None,
    "predict_reader": None,
    "train_dataset": None,
    "test_dataset": None,
}

# Setter, keyword as users' scripts pass it, value, attribute.
SETTERS = [
    ("set_class_num", "num", 10, "num_classes"),
    ("set_emb_size", "size", 64, "emb_dim"),
    ("set_image_shape", "shape", (3, 32, 32), "image_shape"),
    ("set_model_name", "model_name", "ResNet101", "model_name"),
    ("set_sample_ratio", "sample_ratio", 0.1, "sample_ratio"),
    ("set_dataset_dir", "directory", "d", "dataset_dir"),
    ("set_train_image_num", "num", 7, "train_image_num"),
    ("set_train_batch_size", "batch_size", 4, "train_batch_size"),
    ("set_test_batch_size", "batch_size", 4, "test_batch_size"),
    ("set_train_epochs", "num", 2, "train_epochs"),
    ("set_train_steps", "num", 9, "train_steps"),
    ("set_warmup_epochs", "num", 1, "warmup_epochs"),
    ("set_step_boundaries", "boundaries", [5, 9], "lr_steps"),
    ("set_lr_decay_factor", "factor", 0.5, "lr_decay_factor"),
    ("set_checkpoint_dir", "directory", "c", "checkpoint_dir"),
    ("set_model_save_dir", "directory", "o", "model_save_dir"),
    ("set_max_last_checkpoint_num", "num", 2, "max_last_checkpoint_num"),
    ("set_val_targets", "targets", "a,b", "val_targets"),
    ("set_with_test", "with_test", False, "with_test"),
    ("set_test_period", "period", 3, "test_period"),
    ("set_calc_acc", "calc", True, "calc_acc"),
    ("set_log_period", "period", 1, "log_period"),
    ("set_model_parallel", "flag", True, "model_parallel"),
    ("set_mixed_precision", "use_fp16", True, "use_fp16"),
    ("set_seed", "seed", 3, "seed"),
    ("set_margin", "margin", 0.3, "margin"),
    ("set_scale", "scale", 30.0, "scale"),
    ("set_lr", "lr", 0.2, "lr"),
    ("set_augment", "rotate", 5.0, "augment_rotate"),
    ("set_class_balanced", "flag", True, "class_balanced"),
    ("set_min_images_per_class", "num", 3, "min_images_per_class"),
    ("set_worker_timeout", "seconds", 9.0, "worker_timeout"),
]


@pytest.mark.parametrize("name, value", DEFAULTS.items())
def test_defaults_are_those_of_the_old_api(name, value):
    assert getattr(Entry(), name) == value


@pytest.mark.parametrize("setter, keyword, value, attribute", SETTERS)
def test_setters_take_their_old_keywords_and_set_an_attribute(setter, keyword, value, attribute):
    entry = Entry()
    getattr(entry, setter)(**{keyword: value})
    assert getattr(entry, attribute) == (tuple(value) if isinstance(value, list) else value)


def test_epochs_and_steps_unset_each_other():
    entry = Entry()
    entry.set_train_steps(5)
    assert (entry.train_epochs, entry.train_steps) == (None, 5)
    entry.set_train_epochs(3)
    assert (entry.train_epochs, entry.train_steps) == (3, None)


def test_attributes_can_be_set_by_hand_and_entries_share_nothing():
    one, other = Entry(), Entry()
    one.train_batch_size = 32
    one.train_reader = list
    assert (one.config.train_batch_size, one.train_reader) == (32, list)
    assert (other.train_batch_size, other.train_reader) == (128, None)


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
    ],
)
def test_margins_of_each_loss(loss, margins):
    entry = Entry()
    entry.set_loss_type(*loss)
    assert entry.config.margins == margins
    assert entry.config.is_sharded == loss[0].startswith("dist_")


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


@pytest.mark.parametrize(
    "act, words",
    [
        (lambda e: e.set_class_num(0), r"num_classes: got 0 \(int\); expected greater than or equal to 1"),
        (lambda e: e.set_class_num("many"), r"num_classes: got 'many' \(str\); expected a valid integer"),
        (lambda e: e.set_emb_size(True), r"emb_dim: got True \(bool\); expected a number"),
        (lambda e: e.set_loss_type("dist_arcfase"), r"loss_type: got 'dist_arcfase'.*did you mean 'dist_arcface'"),
        (lambda e: e.set_model_name("resnet50"), r"model_name: got 'resnet50'.*did you mean 'ResNet50'"),
        (lambda e: e.set_image_shape((112, 112)), r"image_shape"),
        (lambda e: e.set_image_shape((1, 112, 112)), r"expected \(3, height, width\)"),
        (lambda e: e.set_step_boundaries([9, 5]), r"lr_steps: got \[9, 5\].*ascending"),
        (lambda e: e.set_sample_ratio(0), r"sample_ratio: got 0 \(int\); expected greater than 0"),
        (lambda e: e.set_model("ResNet50"), r"set_model: got 'ResNet50' \(str\), expected an instance of .*BaseModel"),
        (lambda e: e.set_optimizer(0.1), r"set_optimizer: got 0.1 \(float\), expected a Paddle optimizer class"),
        (lambda e: e.set_bad_images("ignore"), r"bad_images: got 'ignore'.*'stop' or 'skip'"),
        (
            lambda e: setattr(e, "train_batchsize", 3),
            r"no setting named 'train_batchsize'; did you mean 'train_batch_s",
        ),
    ],
)
def test_wrong_values_are_named_at_the_setter(act, words):
    with pytest.raises(ConfigError, match=words):
        act(Entry())


def test_unknown_attributes_are_attribute_errors():
    with pytest.raises(AttributeError, match="did you mean 'num_classes'"):
        _ = Entry().num_class


@pytest.mark.parametrize(
    "setter, arguments, words",
    [
        ("set_hdfs_info", ("fs", "name,secret"), "nothing is fetched or uploaded"),
        ("set_input_info", (None,), "no effect"),
        ("set_use_quant", (True,), "not supported yet"),
    ],
)
def test_settings_of_later_work_say_what_they_do(setter, arguments, words, caplog):
    getattr(Entry(), setter)(*arguments)
    assert words in caplog.text
    assert "secret" not in caplog.text


def test_old_import_paths():
    from plsc.config import config
    from plsc.models.base_model import BaseModel
    from plsc.models.resnet import ResNet50, ResNet101, ResNet152
    from plsc.utils import base64_reader, jpeg_reader
    from plsc.utils.verification import evaluate

    assert config.num_classes == 85742
    assert all(issubclass(net, BaseModel) for net in (ResNet50, ResNet101, ResNet152))
    readers = (jpeg_reader.arc_train, jpeg_reader.test, base64_reader.train, base64_reader.test)
    assert all(map(callable, (*readers, evaluate)))


class LegacyNet(BaseModel):
    """A network in the form of the old API."""

    def __init__(self):
        super().__init__(emb_dim=16)
        self.fc = paddle.nn.Linear(3 * 16 * 16, 16)

    def build_network(self, input, label, is_train=True):
        return self.fc(input.flatten(1))


def test_a_legacy_network_trains_and_exports(entry):
    entry.set_model(LegacyNet())
    assert entry.train()["lfw/accuracy"] > 0.5
    model = plsc.load_inference_model(entry.convert_for_prediction())
    assert model.emb_dim == 16


class NoLayers(BaseModel):
    """As a static graph was built: layers made at each call."""

    def build_network(self, input, label, is_train=True):
        return paddle.nn.Linear(3 * 16 * 16, 16)(input.flatten(1))


@pytest.mark.parametrize(
    "model, words",
    [
        (lambda: paddle.nn.Conv2D(3, 16, 1), r"Conv2D returned \[10, 16, 16, 16\] for 10 images, expected \[10, 16\]"),
        (lambda: NoLayers(), "has no parameters"),
    ],
)
def test_networks_that_break_the_contract(entry, model, words):
    entry.set_model(model())
    with pytest.raises(ConfigError, match=words):
        entry.train()


def test_a_wrong_embedding_size_names_both(entry):
    entry.set_model(LegacyNet())
    entry.set_emb_size(32)
    with pytest.raises(ConfigError, match=r"returned \[10, 16\] for 10 images, expected \[10, 32\]"):
        entry.train()


def test_contradictions_are_found_before_work_begins(entry):
    entry.set_loss_type("softmax")
    entry.set_margin(0.3)
    with pytest.raises(ConfigError, match="has no margin, but one is set"):
        entry.train()
