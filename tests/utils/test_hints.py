"""How messages name settings, in Python and on the command line."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from plsc import Config, Entry
from plsc.utils.hints import argument, command_line, either, flag_of, setter

FLAGS = [flag_of(name) for name in Config.scalar_fields()]


@pytest.mark.parametrize(
    "name, value, python, flag",
    [
        ("lr", ..., "set_lr", "--lr"),
        ("num_classes", 5, "set_class_num(5)", "--num-classes 5"),
        ("checkpoint_dir", Path("my out"), "set_checkpoint_dir('my out')", "--checkpoint-dir 'my out'"),
        ("with_test", False, "set_with_test(False)", "--no-with-test"),
        ("calc_acc", True, "set_calc_acc(True)", "--calc-acc"),
        ("image_shape", (3, 32, 32), "set_image_shape((3, 32, 32))", "--image-shape 3,32,32"),
        ("lr_steps", ..., "set_step_boundaries", "--lr-steps"),
        ("margin1", 0.3, "entry.margin1 = 0.3", "--margin1 0.3"),
        ("augment_crop", ..., "entry.augment_crop", "--augment-crop"),
    ],
)
def test_a_setting_is_a_setter_in_python_and_a_flag_on_the_command_line(name, value, python, flag):
    assert setter(name, value) == python
    with command_line(FLAGS):
        assert setter(name, value) == flag
    assert setter(name, value) == python


def test_a_flag_that_the_command_has_not_is_named_with_its_command():
    with command_line(["--size"]):
        assert setter("val_targets", "lfw") == "--val-targets lfw of plsc train"
        assert argument("image_size", 112, of="plsc data convert") == "--size 112"
        assert argument("parts", of="plsc data convert") == "--parts of plsc data convert"
    assert argument("image_size", 112, of="plsc data convert") == "image_size=112"
    assert argument("parts", of="plsc data convert") == "parts=..."


def test_either():
    assert either("convert_for_prediction()", "plsc export") == "convert_for_prediction()"
    with command_line([]):
        assert either("convert_for_prediction()", "plsc export") == "plsc export"


def test_forked_processes_name_flags_too():
    with command_line(FLAGS), multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(setter, ("num_classes",)) == "--num-classes"


@pytest.mark.parametrize("name", Config.object_fields())
def test_a_python_object_is_set_in_a_script(name):
    with command_line(FLAGS):
        assert setter(name).endswith(" in a script") and "--" not in setter(name)


@pytest.mark.parametrize("name", Config.model_fields)
def test_the_setter_of_every_setting_exists(name):
    """Each is a method of Entry that sets it, or an assignment to an attribute."""
    found = setter(name)
    if found.startswith("entry."):
        assert found == f"entry.{name}" and not hasattr(Entry, f"set_{name}")
    else:
        assert callable(getattr(Entry, found))
