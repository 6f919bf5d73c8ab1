"""The facade: every setter of the old API, its default, and the error of a wrong value."""

from __future__ import annotations

import copy

import pytest

from plsc import CheckpointError, ConfigError, Entry

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
    ("set_rank_timeout", "minutes", 2.5, "rank_timeout"),
    ("set_lr", "lr", "cosine", "lr_schedule"),
    ("set_lr", "lr", abs, "lr_schedule"),
    ("set_loss_type", "loss_type", max, "margin_function"),
    ("set_head_optimizer", "optimizer", "any", "head_optimizer"),
    ("set_logits", "mode", "recompute", "logits"),
    ("set_center_storage", "dtype", "bfloat16", "center_storage"),
    ("set_momentum_storage", "dtype", "bfloat16", "momentum_storage"),
    ("set_center_location", "location", "disk", "center_location"),
    ("set_center_dir", "directory", "scratch", "center_dir"),
    ("set_pixel_normalization", "mean", (1.0, 2.0, 3.0), "pixel_mean"),
    ("set_bad_images", "action", "skip", "bad_images"),
    ("set_strict_images", "flag", True, "strict_images"),
    ("set_auto_resume", "flag", True, "auto_resume"),
    ("set_class_change", "action", "by_name", "class_change"),
    ("set_new_classes", "start", "random", "new_classes"),
    ("set_counters", "action", "anew", "counters"),
    ("set_optimizer", "optimizer", "lion", "optimizer"),
    ("set_optimizer", "optimizer", max, "optimizer"),
    ("set_momentum", "momentum", 0.8, "momentum"),
    ("set_weight_decay", "decay", 0.1, "weight_decay"),
    ("set_head_lr_factor", "factor", 10.0, "head_lr_factor"),
    ("set_backbone_lr_factor", "factor", 0.1, "backbone_lr_factor"),
    ("set_lr_epochs", "epochs", [3, 5], "lr_epochs"),
    ("set_lr_power", "power", 1.0, "lr_power"),
    ("set_warmup_steps", "num", 9, "warmup_steps"),
    ("set_on_nonfinite", "action", "skip", "on_nonfinite"),
    ("set_max_skipped_steps", "num", 7, "max_skipped_steps"),
    ("set_cpu_threads", "threads", 3, "cpu_threads"),
    ("set_tf32", "allowed", True, "tf32"),
    ("set_deterministic", "deterministic", True, "deterministic"),
    ("set_training_doctor", "flag", False, "training_doctor"),
]


@pytest.mark.parametrize("name, value", DEFAULTS.items())
def test_defaults_are_those_of_the_old_api(name, value):
    assert getattr(Entry(), name) == value


@pytest.mark.parametrize("setter, keyword, value, attribute", SETTERS)
def test_setters_take_their_old_keywords_and_set_an_attribute(setter, keyword, value, attribute):
    entry = Entry()
    others = {"std": 2} if setter == "set_pixel_normalization" else {}
    getattr(entry, setter)(**{keyword: value}, **others)
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
        (
            lambda e: e.set_optimizer(0.1),
            r"set_optimizer: got 0.1 \(float\), expected a name, a Paddle optimizer class",
        ),
        (lambda e: e.set_bad_images("ignore"), r"bad_images: got 'ignore'.*'stop' or 'skip'"),
        (lambda e: setattr(e, "batch_size", 3), "no setting named 'batch_size'; did you mean 'train_batch_size'"),
        (lambda e: setattr(e, "learning_rate", 3), "no setting named 'learning_rate'; did you mean 'lr'"),
        (lambda e: setattr(e, "epochs", 3), "no setting named 'epochs'; did you mean 'train_epochs'"),
        (
            lambda e: setattr(e, "train_batchsize", 3),
            r"no setting named 'train_batchsize'; did you mean 'train_batch_s",
        ),
    ],
)
def test_wrong_values_are_named_at_the_setter(act, words):
    with pytest.raises(ConfigError, match=words):
        act(Entry())


def test_a_number_keeps_a_named_schedule_and_replaces_a_function():
    entry = Entry()
    entry.set_lr("cosine")
    entry.set_lr(0.2)
    assert (entry.lr, entry.lr_schedule) == (0.2, "cosine")
    entry.set_lr(lambda step: 0.1)
    entry.set_lr(0.3)
    assert (entry.lr, entry.lr_schedule) == (0.3, "step")


def test_a_named_loss_replaces_a_margin_object_and_the_other_way_round():
    entry = Entry()
    entry.set_loss_type("cosface", margin3=0.2)
    entry.set_loss_type(max)
    assert (entry.margin_function, entry.margin3, entry.loss_type) == (max, None, "cosface")
    entry.set_loss_type("dist_arcface")
    assert entry.margin_function is None


def test_setters_of_several_settings_set_all_of_them():
    entry = Entry()
    values = {"crop": 0.1, "rotate": 5.0, "color_jitter": 0.2, "rand_augment": 1, "rand_magnitude": 3.0}
    values.update(gray=0.1, blur=0.2, erase=0.3)
    entry.set_augment(**values)
    assert {name: getattr(entry, f"augment_{name}") for name in values} == values
    values = {"use_fp16": True, "init_loss_scaling": 2.0, "incr_every_n_steps": 3, "decr_every_n_nan_or_inf": 4}
    values.update(incr_ratio=5.0, decr_ratio=0.25, use_dynamic_loss_scaling=False, amp_lists={}, amp_dtype="bfloat16")
    entry.set_mixed_precision(**values)
    assert {name: getattr(entry, name) for name in values} == values


def test_an_entry_shows_what_differs_from_the_defaults():
    entry = Entry()
    assert repr(entry) == "Entry()"
    entry.set_class_num(10)
    entry.train_batch_size = 128
    assert repr(entry) == "Entry(num_classes=10)"
    assert repr(copy.deepcopy(entry)) == repr(entry)


def test_unknown_attributes_are_attribute_errors():
    with pytest.raises(AttributeError, match="did you mean 'num_classes'"):
        _ = Entry().num_class


@pytest.mark.parametrize(
    "setter, arguments, words",
    [
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


@pytest.mark.parametrize(
    "name, meant",
    [
        ("set_batch_size", "set_train_batch_size"),
        ("set_num_classes", "set_class_num"),
        ("set_emb_dim", "set_emb_size"),
        ("set_learning_rate", "set_lr"),
        ("set_epochs", "set_train_epochs"),
        ("set_class_nums", "set_class_num"),
        ("batch_size", "train_batch_size"),
    ],
)
def test_an_unknown_method_leads_to_the_right_one(name, meant):
    with pytest.raises(AttributeError, match=f"'{name}'; did you mean '{meant}'"):
        getattr(Entry(), name)


def test_a_setter_is_not_replaced_by_a_value():
    with pytest.raises(ConfigError, match=r"set_lr is a method, got 0.1 assigned to it; call it: set_lr\(0.1\)"):
        Entry().set_lr = 0.1


@pytest.mark.parametrize("run", ["train", "test"])
def test_doubts_are_logged_before_a_run(entry, run, caplog):
    entry.set_pixel_normalization(0.5, 0.5)
    entry.set_checkpoint_dir("none")
    with pytest.raises(CheckpointError):
        getattr(entry, run)()
    assert "pixel_std 0.5 looks like a value for pixels of 0 to 1" in caplog.text


def test_contradictions_are_found_before_work_begins(entry):
    entry.set_loss_type("softmax")
    entry.set_margin(0.3)
    with pytest.raises(ConfigError, match="has no margin, but one is set"):
        entry.train()
